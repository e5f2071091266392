"""What can be wrong with `loop` steps, and with conditional steps in branches; one mistake gives one problem."""

from typing import Any

import pytest

from orchestrator.engine.compilation import compile_plan
from schemas.validation import parse_workflow, validate_workflow
from schemas.workflow import ExecutionMode, LoopStep, OnError

Document = dict[str, Any]
Found = tuple[str, str, str | None]
CONFIG = "steps.l.loop_config"
COLLECTION, BODY = f"{CONFIG}.collection", f"{CONFIG}.loop_body"


def agent(**fields: Any) -> Document:
    return {"agent_name": "x", **fields}


def uses(reference: str) -> Document:
    return agent(input_mapping={"it": reference})


def loop(*body: str, **fields: Any) -> Document:
    config = {"collection": "${s.output.items}", "loop_body": list(body), **fields.pop("config", {})}
    return {"type": "loop", "loop_config": config, **fields}


def choice(expression: str = "true", **fields: Any) -> Document:
    return {"type": "conditional", "condition": {"expression": expression}, **fields}


def asking(expression: str) -> Document:
    return choice(expression, if_true_step="p")


def looped(config: Document | None = None, **steps: Any) -> Document:
    """A workflow of a step s, a loop l with the body x, y, and a step e behind it."""
    given = {"s": agent(next_step="l"), "l": loop("x", "y", next_step="e", config=config or {})}
    return {
        "name": "looped",
        "start_step": "s",
        "steps": {**given, "x": agent(), "y": agent(), "e": agent(), **steps},
    }


def choosing(body: list[str] | None = None, **steps: Any) -> Document:
    """The workflow of `looped` with the body x, c, y, in which c leads to p or q."""
    paths = choice(if_true_step="p", if_false_step="q")
    given: Document = {"c": paths, "p": agent(), "q": agent()}
    return looped({"loop_body": body or ["x", "c", "y"]}, **(given | steps))


def found(document: Document) -> list[Found]:
    return [(problem.place, problem.code, problem.suggestion) for problem in validate_workflow(document)]


def message(document: Document) -> str:
    (problem,) = validate_workflow(document)
    return problem.message


# The configuration


def test_a_loop_is_sequential_and_stops_unless_told_otherwise() -> None:
    step = parse_workflow(looped()).steps["l"]
    assert isinstance(step, LoopStep)
    config = step.loop_config
    assert (config.execution_mode, config.on_error) == (ExecutionMode.SEQUENTIAL, OnError.STOP)
    assert (config.max_parallelism, config.max_iterations) == (None, None)


@pytest.mark.parametrize(
    ("config", "place", "code", "suggestion"),
    [
        ({"loop_body": []}, BODY, "empty_block", None),
        ({"loop_body": "x"}, BODY, "wrong_type", None),
        ({"loop_body": {"a": "x"}}, BODY, "wrong_type", None),
        ({"loop_body": ["x", 3]}, f"{BODY}[1]", "wrong_type", None),
        ({"loop_body": [["x", "y"]]}, f"{BODY}[0]", "wrong_type", None),
        ({"loop_body": ["x", "yy"]}, f"{BODY}[1]", "unknown_step", "y"),
        ({"loop_body": ["x", "other"]}, f"{BODY}[1]", "unknown_step", None),
        ({"loop_body": ["x", "y", "x"]}, f"{BODY}[2]", "duplicate_branch", None),
        ({"loop_body": ["x", "y", "l"]}, f"{BODY}[2]", "nested_block", None),
        ({"execution_mode": "serial"}, f"{CONFIG}.execution_mode", "not_allowed", None),
        ({"on_error": "fail"}, f"{CONFIG}.on_error", "not_allowed", None),
        ({"on_error": None}, f"{CONFIG}.on_error", "not_allowed", None),
        ({"max_parallelism": 0}, f"{CONFIG}.max_parallelism", "out_of_range", None),
        ({"max_parallelism": "2"}, f"{CONFIG}.max_parallelism", "wrong_type", None),
        ({"max_parallelism": True}, f"{CONFIG}.max_parallelism", "wrong_type", None),
        ({"max_iterations": 0}, f"{CONFIG}.max_iterations", "out_of_range", None),
        ({"max_iterations": 1.5}, f"{CONFIG}.max_iterations", "wrong_type", None),
        ({"max_paralelism": 2}, f"{CONFIG}.max_paralelism", "unknown_field", "max_parallelism"),
        ({"next": "e"}, f"{CONFIG}.next", "unknown_field", None),
        ({"branch_timeout_seconds": 3}, f"{CONFIG}.branch_timeout_seconds", "unknown_field", None),
        ({"collection": 3}, COLLECTION, "wrong_type", None),
        ({"collection": None}, COLLECTION, "wrong_type", None),
        ({"collection": {"a": 1}}, COLLECTION, "wrong_type", None),
        ({"collection": "items"}, COLLECTION, "not_a_collection", None),
        ({"collection": ""}, COLLECTION, "not_a_collection", None),
        ({"collection": "$${s.output}"}, COLLECTION, "not_a_collection", None),
        ({"collection": "${s.output.a} and ${s.output.b}"}, COLLECTION, "not_a_collection", None),
        ({"collection": "${s.output"}, COLLECTION, "malformed_reference", None),
        ({"collection": "${s.outptu}"}, COLLECTION, "malformed_reference", "${s.output}"),
    ],
)
def test_what_is_wrong_with_its_configuration_is_told_once(
    config: Document, place: str, code: str, suggestion: str | None
) -> None:
    assert found(looped(config)) == [(place, code, suggestion)]


@pytest.mark.parametrize("collection", [[], [1, {"a": None}], ["${s.output}", 2], "${s.output}", "${workflow.input}"])
def test_a_collection_is_an_array_or_just_one_reference(collection: Any) -> None:
    assert found(looped({"collection": collection})) == []


@pytest.mark.parametrize("field", ["collection", "loop_body"])
def test_it_must_say_what_it_goes_through_and_how(field: str) -> None:
    document = looped()
    del document["steps"]["l"]["loop_config"][field]
    assert found(document) == [(f"{CONFIG}.{field}", "missing_field", None)]


@pytest.mark.parametrize("config", [3, None, ["x"]])
def test_a_configuration_that_is_no_object_is_told_in_our_words(config: Any) -> None:
    document = looped()
    document["steps"]["l"]["loop_config"] = config
    assert found(document) == [(CONFIG, "wrong_type", None)]
    assert message(document).endswith("it must be an object")


def test_a_misspelt_body_is_told_once() -> None:
    document = looped()
    config = document["steps"]["l"]["loop_config"]
    config["loop_boddy"] = config.pop("loop_body")
    assert found(document) == [(f"{CONFIG}.loop_boddy", "unknown_field", "loop_body")]


def test_options_that_stand_beside_the_configuration_are_told_where_they_belong() -> None:
    document = looped()
    step = document["steps"]["l"]
    step |= {**step.pop("loop_config"), "max_parallelism": 2}
    assert found(document) == [
        (f"steps.l.{name}", "unknown_field", f"loop_config.{name}")
        for name in ("collection", "loop_body", "max_parallelism")
    ]


def test_one_option_may_have_gone_astray() -> None:
    document = looped()
    document["steps"]["l"]["on_error"] = "collect"
    assert message(document) == 'a loop step has the field "on_error" in its "loop_config"'
    assert found(document) == [("steps.l.on_error", "unknown_field", "loop_config.on_error")]


def test_so_may_one_of_a_fork_join_step() -> None:
    config = {"branches": {"a": {"steps": ["x"]}, "b": {"steps": ["y"]}}}
    document = looped(l={"type": "fork_join", "fork_join_config": config, "max_parallelism": 1, "next_step": "e"})
    assert found(document) == [("steps.l.max_parallelism", "unknown_field", "fork_join_config.max_parallelism")]


def test_a_step_with_a_configuration_and_no_type_is_told_which_it_has() -> None:
    document = looped()
    del document["steps"]["l"]["type"]
    assert found(document) == [("steps.l.type", "missing_field", "loop")]


# Where steps lie and lead


def test_a_step_is_in_one_body_at_most() -> None:
    document = looped(e=loop("x"))
    assert found(document) == [("steps.e.loop_config.loop_body[0]", "step_in_two_blocks", None)]


def test_a_loop_does_not_lie_within_itself() -> None:
    document = looped({"loop_body": ["x", "y", "m"]}, m=loop("n"), n=loop("l"))
    assert found(document) == [("steps.n.loop_config.loop_body[0]", "nested_block", None)]


@pytest.mark.parametrize("target", ["e", "l", "s"])
def test_the_last_step_of_a_body_leads_nowhere(target: str) -> None:
    assert found(looped(y=agent(next_step=target))) == [("steps.y.next_step", "branch_with_next_step", None)]


def test_a_step_of_a_body_may_name_the_next_one_of_the_list_and_no_other() -> None:
    assert found(looped(x=agent(next_step="y"))) == []
    assert found(looped(y=agent(next_step="x"))) == [("steps.y.next_step", "branch_with_next_step", None)]


def test_nobody_leads_into_a_body() -> None:
    assert found(looped(s=agent(next_step="x"))) == [("steps.s.next_step", "branch_reached_directly", "l")]


def test_the_failure_handler_of_a_step_in_a_body_lies_outside_of_the_loop() -> None:
    assert found(looped(x=agent(on_failure="e"))) == []
    assert found(looped(x=agent(on_failure="y"))) == [("steps.x.on_failure", "branch_reached_directly", None)]
    assert "lies in block" in message(looped(x=agent(on_failure="y")))


# References


@pytest.mark.parametrize(
    ("step", "reference", "code", "suggestion"),
    [
        ("x", "${loop.item.name} ${loop.index} ${loop.total} ${loop.is_first} ${loop.is_last}", None, None),
        ("x", "${s.output}", None, None),
        ("y", "${x.output}", None, None),
        ("e", "${l.output.iterations[0].output}", None, None),
        ("e", "${l.error.message} ${l.status}", None, None),
        ("s", "${loop.item}", "reference_outside_loop", None),
        ("e", "${loop.index}", "reference_outside_loop", None),
        ("e", "${x.output}", "reference_into_loop", "${l.output.iterations}"),
        ("e", "${y.status}", "reference_into_loop", "${l.output.iterations}"),
        ("e", "${x.errors}", "reference_into_loop", "${l.output.iterations}"),
        ("e", "${l.errors}", "reference_to_errors", "output.iterations"),
        ("e", "${l.errors.a.message}", "reference_to_errors", "output.iterations"),
        ("x", "${y.output}", "reference_to_later_step", None),
        ("x", "${e.output}", "reference_to_later_step", None),
        ("x", "${l.output}", "reference_to_own_block", None),
        ("x", "${x.output}", "reference_to_itself", None),
        ("x", "${loop.itm}", "malformed_reference", "${loop.item}"),
        ("x", "${loop.output}", "reference_to_unknown_step", None),
    ],
)
def test_what_steps_in_and_around_a_loop_may_use(
    step: str, reference: str, code: str | None, suggestion: str | None
) -> None:
    expected = [] if code is None else [(f"steps.{step}.input_mapping.it", code, suggestion)]
    next_step = {"s": "l"}.get(step)
    assert found(looped(**{step: uses(reference) | {"next_step": next_step}})) == expected


@pytest.mark.parametrize(
    ("collection", "code"),
    [
        ("${loop.item}", "reference_outside_loop"),
        ("${x.output}", "reference_to_later_step"),
        ("${e.output}", "reference_to_later_step"),
        ("${l.output}", "reference_to_itself"),
        ("${nobody.output}", "reference_to_unknown_step"),
    ],
)
def test_a_collection_is_made_before_the_loop_begins(collection: str, code: str) -> None:
    assert found(looped({"collection": collection})) == [(COLLECTION, code, None)]


@pytest.mark.parametrize("index", [0, 1])
def test_references_within_a_collection_are_told_where_they_stand(index: int) -> None:
    collection: list[Any] = [1, 2]
    collection[index] = {"a": "${loop.item}"}
    assert found(looped({"collection": collection})) == [(f"{COLLECTION}[{index}].a", "reference_outside_loop", None)]


def nested(**steps: Any) -> Document:
    """The workflow of `looped` in which y is a loop over the item, with the body n."""
    return looped(**({"y": loop("n", config={"collection": "${loop.item}"}), "n": agent()} | steps))


@pytest.mark.parametrize(
    ("step", "reference", "code", "suggestion"),
    [
        ("n", "${loop.item} ${x.output} ${s.output}", None, None),
        ("z", "${y.output.iterations}", None, None),
        ("z", "${n.output}", "reference_into_loop", "${y.output.iterations}"),
        ("e", "${n.output}", "reference_into_loop", "${l.output.iterations}"),
        ("n", "${y.output}", "reference_to_own_block", None),
        ("n", "${l.output}", "reference_to_own_block", None),
        ("n", "${z.output}", "reference_to_later_step", None),
        ("x", "${n.output}", "reference_into_loop", "${y.output.iterations}"),
    ],
)
def test_what_steps_of_loops_within_loops_may_use(
    step: str, reference: str, code: str | None, suggestion: str | None
) -> None:
    document = nested(z=agent())
    document["steps"]["l"]["loop_config"]["loop_body"] = ["x", "y", "z"]
    document["steps"][step] = uses(reference)
    assert found(document) == ([] if code is None else [(f"steps.{step}.input_mapping.it", code, suggestion)])


# Conditional steps in branches


@pytest.mark.parametrize("body", [["c", "x", "y"], ["x", "c", "y"], ["x", "y", "c"]])
def test_a_body_may_choose_anywhere(body: list[str]) -> None:
    assert found(choosing(body)) == []


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ({"c": choice(if_true_step="p", if_false_step="e")}, ("c.if_false_step", "leads_out_of_branch", None)),
        ({"c": choice(if_true_step="p", if_false_step="l")}, ("c.if_false_step", "leads_out_of_branch", None)),
        ({"c": choice(if_true_step="p", if_false_step="zzz")}, ("c.if_false_step", "unknown_step", None)),
        ({"c": choice(if_true_step="p", if_false_step="ee")}, ("c.if_false_step", "unknown_step", "e")),
        ({"c": choice(if_true_step="p", if_false_step="x")}, ("c.if_false_step", "path_step_in_branch", None)),
        ({"c": choice(if_true_step="p", if_false_step="y")}, ("c.if_false_step", "path_step_in_branch", None)),
        ({"c": choice(if_true_step="p", next_step="e")}, ("c.next_step", "branch_with_next_step", None)),
        ({"c": choice(if_true_step="p", if_false_step=3)}, ("c.if_false_step", "wrong_type", None)),
        ({"c": choice()}, ("c.if_true_step", "missing_field", None)),
        ({"p": agent(next_step="e")}, ("p.next_step", "leads_out_of_branch", None)),
        ({"p": agent(next_step="c")}, ("p.next_step", "cycle", None)),
        ({"p": agent(next_step="p")}, ("p.next_step", "cycle", None)),
        ({"p": agent(next_step="x")}, ("p.next_step", "cycle", None)),
        ({"p": uses("${q.output}")}, ("p.input_mapping.it", "reference_to_later_step", None)),
        ({"x": uses("${p.output}")}, ("x.input_mapping.it", "reference_to_later_step", None)),
        ({"c": asking("${y.output.n} > 1")}, ("c.condition.expression", "reference_to_later_step", None)),
        ({"c": asking("${c.output.result}")}, ("c.condition.expression", "reference_to_itself", None)),
        ({"e": uses("${p.status}")}, ("e.input_mapping.it", "reference_into_loop", "${l.output.iterations}")),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_choice_in_a_body_is_told_once(steps: Document, problem: Found) -> None:
    document = choosing(**steps)
    if "q" not in {document["steps"]["c"].get(name) for name in ("if_true_step", "if_false_step")}:
        del document["steps"]["q"]
    if "p" not in {document["steps"]["c"].get(name) for name in ("if_true_step", "if_false_step")}:
        del document["steps"]["p"]
    place, code, suggestion = problem
    assert found(document) == [(f"steps.{place}", code, suggestion)]


@pytest.mark.parametrize(
    "steps",
    [
        {"y": uses("${p.status} ${q.status} ${c.output.result}")},
        {"c": choice("${loop.item} > 2 and ${x.output}", if_true_step="p", if_false_step="q")},
        {"p": agent(next_step="r"), "q": agent(next_step="r"), "r": agent()},
        {"p": agent(next_step="y")},
        {"c": choice(if_true_step="p", if_false_step="q", next_step="y")},
        {"p": choice("${loop.is_last}", if_true_step="r", next_step="t"), "r": agent(), "t": agent()},
        {"p": agent(on_failure="e")},
        {"p": loop("n", config={"collection": "${loop.item}"}), "n": uses("${loop.item} ${x.output}")},
        {"p": {"type": "parallel", "parallel_steps": ["n"]}, "n": uses("${loop.item}"), "y": uses("${n.status}")},
    ],
)
def test_paths_in_a_body_may(steps: Document) -> None:
    assert found(choosing(**steps)) == []


def test_a_step_on_two_paths_of_a_body_must_say_where_it_leads() -> None:
    steps = {"q": choice(if_true_step="p", next_step="t"), "t": agent()}
    assert found(choosing(**steps)) == [("steps.p", "uncertain_next_step", None)]
    assert '"t" or "y"' in message(choosing(**steps)) or '"y" or "t"' in message(choosing(**steps))
    assert found(choosing(p=agent(next_step="t"), **steps)) == []


def test_the_paths_of_two_branches_do_not_meet() -> None:
    branches = {"a": {"steps": ["x"]}, "b": {"steps": ["y"]}}
    document = looped(
        l={"type": "fork_join", "fork_join_config": {"branches": branches}, "next_step": "e"},
        x=choice(if_true_step="p"),
        y=choice(if_true_step="p"),
        p=agent(),
    )
    assert found(document) == [("steps.y.if_true_step", "leads_out_of_branch", None)]


def test_a_path_leads_to_a_block_and_not_into_it() -> None:
    steps = {"q": {"type": "parallel", "parallel_steps": ["n"]}, "n": agent(), "p": agent(next_step="n")}
    assert found(choosing(**steps)) == [("steps.p.next_step", "branch_reached_directly", "q")]


def test_a_path_outside_of_all_branches_does_not_lead_into_a_body() -> None:
    document = choosing(e=choice(if_true_step="p"))
    assert found(document) == [("steps.c.if_true_step", "leads_out_of_branch", None)]


# Depth


def nest(depth: int) -> Document:
    """Blocks of all kinds within each other; those within a loop lie on the path of a conditional."""
    steps: Document = {}
    for level in range(depth):
        inner = f"b{level + 1}" if level + 1 < depth else "leaf"
        match level % 3:
            case 0:
                steps[f"b{level}"] = loop(f"before{level}", f"if{level}", config={"collection": [1, 2]})
                steps[f"before{level}"] = uses("${loop.item}")
                steps[f"if{level}"] = choice(f"${{before{level}.output}} > ${{loop.index}}", if_true_step=inner)
            case 1:
                branches = {"a": {"steps": [inner, f"behind{level}"]}}
                steps[f"b{level}"] = {"type": "fork_join", "fork_join_config": {"branches": branches}}
                steps[f"behind{level}"] = agent()
            case _:
                steps[f"b{level}"] = {"type": "parallel", "parallel_steps": [inner]}
    steps["leaf"] = uses("${loop.item} ${before0.output} ${before6.output}")
    return {"name": "nest", "start_step": "b0", "steps": steps}


def test_blocks_loops_and_choices_nest_eight_deep() -> None:
    assert found(nest(8)) == []
    plan = compile_plan(parse_workflow(nest(8)))
    assert list(plan.all_around("leaf[0][1][2]")) == [
        "b7[0][1][2]", "b6[0][1]", "b5[0][1]", "b4[0][1]", "b3[0]", "b2[0]", "b1[0]", "b0",
    ]  # fmt: skip


@pytest.mark.parametrize("depth", [9, 10, 12])
def test_a_nest_that_is_too_deep_is_told_once(depth: int) -> None:
    assert found(nest(depth)) == [("steps.b7.fork_join_config.branches.a.steps[0]", "nested_too_deep", None)]


def test_a_path_may_lead_too_deep() -> None:
    document = nest(8)
    document["steps"]["b8"] = loop("deepest", next_step=None, config={"collection": "${loop.item}"})
    document["steps"]["deepest"] = uses("${loop.item} ${before0.output}")
    document["steps"]["leaf"] = choice("${loop.item} > 0 and ${before6.output}", if_true_step="b8")
    assert found(document) == [("steps.leaf.if_true_step", "nested_too_deep", None)]
