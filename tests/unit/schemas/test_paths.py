"""Where a run goes on behind the paths of conditionals."""

from schemas.paths import Crossing, ways


def step(following: str | None = None, *handlers: str) -> Crossing:
    return Crossing(following, handlers)


def choice(following: str | None, *choices: str) -> Crossing:
    return Crossing(following, (), choices)


def test_without_a_choice_each_step_leads_where_it_says() -> None:
    assert ways("a", {"a": step("b"), "b": step(), "c": step("a")}) == ({"a": "b", "b": None}, {})


def test_a_path_goes_on_behind_its_conditional() -> None:
    found = ways("if", {"if": choice("end", "a", "b"), "a": step("a2"), "a2": step(), "b": step(), "end": step()})
    assert found.following == {"if": "end", "a": "a2", "a2": "end", "b": "end", "end": None}
    assert found.uncertain == {}


def test_a_path_that_leads_on_itself_has_left() -> None:
    found = ways("if", {"if": choice("end", "a"), "a": step("end"), "end": step()})
    assert found.following["end"] is None


def test_paths_lie_within_paths() -> None:
    crossings = {
        "outer": choice("end", "inner", "b"),
        "inner": choice(None, "a"),
        "a": step(),
        "b": choice("behind", "c"),
        "c": step(),
        "behind": step(),
        "end": step(),
    }
    found = ways("outer", crossings)
    assert found.following == {
        "outer": "end", "inner": "end", "a": "end", "b": "behind", "c": "behind", "behind": "end", "end": None,
    }  # fmt: skip


def test_a_handler_lies_on_the_path_of_the_step_that_failed() -> None:
    found = ways("if", {"if": choice("end", "a"), "a": step(None, "rescue"), "rescue": step(), "end": step()})
    assert found.following["rescue"] == "end"


def test_a_step_on_two_paths_that_go_on_elsewhere_is_uncertain() -> None:
    crossings = {
        "one": choice("two", "shared"),
        "two": choice("end", "shared"),
        "shared": step(),
        "end": step(),
    }
    assert ways("one", crossings).uncertain == {"shared": ("two", "end")}


def test_nor_does_it_hide_behind_two_paths_that_go_on_alike() -> None:
    crossings = {
        "one": Crossing("end", ("two",), ("two",)),
        "two": Crossing("end", ("shared",), ("shared",)),
        "shared": step(),
        "end": step("shared"),
    }
    assert ways("one", crossings).uncertain == {"shared": ("end", None)}


def test_a_step_that_says_where_it_leads_is_not() -> None:
    crossings = {
        "one": choice("two", "shared"),
        "two": choice("end", "shared"),
        "shared": step("end"),
        "end": step(),
    }
    assert ways("one", crossings).uncertain.keys() == {"end"}


def test_cycles_and_unknown_steps_do_no_harm() -> None:
    crossings = {"if": choice("if", "a", "nowhere"), "a": step("if", "a")}
    assert ways("if", crossings).following == {"if": "if", "a": "if"}


def test_a_long_chain_of_choices_takes_no_recursion() -> None:
    count = 20_000
    crossings = {f"c{number}": choice(None, f"c{number + 1}") for number in range(count)} | {f"c{count}": step()}
    crossings["c0"] = choice("end", "c1")
    crossings["end"] = step()
    assert ways("c0", crossings).following[f"c{count}"] == "end"
    nested = {f"c{number}": choice(f"e{number}", f"c{number + 1}") for number in range(count)} | {f"c{count}": step()}
    nested |= {f"e{number}": step() for number in range(count)}
    found = ways("c0", nested).following
    assert (found[f"c{count}"], found[f"e{count - 1}"], found["e0"]) == (f"e{count - 1}", f"e{count - 2}", None)
