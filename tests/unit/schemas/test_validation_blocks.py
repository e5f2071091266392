"""What can be wrong with `fork_join` and `conditional` steps, and with how blocks are joined."""

from typing import Any

import pytest

from schemas.statuses import JoinPolicy
from schemas.validation import parse_workflow, validate_workflow
from schemas.workflow import ForkJoinStep, OnDecided

Document = dict[str, Any]
A, B = "steps.f.fork_join_config.branches.a", "steps.f.fork_join_config.branches.b"
CONFIG = "steps.f.fork_join_config"


def forked(config: Document | None = None, **steps: Any) -> Document:
    """A workflow of one fork_join step with the branches a (a1, a2) and b (b1), and a step behind it."""
    branches = {"a": {"steps": ["a1", "a2"]}, "b": {"steps": ["b1"]}}
    return {
        "name": "forked",
        "start_step": "f",
        "steps": {
            "f": {
                "type": "fork_join",
                "fork_join_config": {"branches": branches, **(config or {})},
                "next_step": "g",
            },
            **{name: {"agent_name": "x", **steps.pop(name, {})} for name in ("a1", "a2", "b1", "g")},
            **steps,
        },
    }


def choosing(expression: str = "${s.output.score} > 1", **step: Any) -> Document:
    """A workflow of a step s, a conditional c that leads to yes or no, and a step behind it."""
    condition = {"type": "conditional", "condition": {"expression": expression}, "next_step": "end"}
    return {
        "name": "choosing",
        "start_step": "s",
        "steps": {
            "s": {"agent_name": "x", "next_step": "c"},
            "c": {**condition, "if_true_step": "yes", "if_false_step": "no", **step},
            "yes": {"agent_name": "x"},
            "no": {"agent_name": "x"},
            "end": {"agent_name": "x", "input_mapping": {"yes": "${yes.status}", "c": "${c.output.result}"}},
        },
    }


def found(document: Document) -> list[tuple[str, str, str | None]]:
    return [(problem.place, problem.code, problem.suggestion) for problem in validate_workflow(document)]


def test_a_fork_join_step_has_its_defaults() -> None:
    step = parse_workflow(forked()).steps["f"]
    assert isinstance(step, ForkJoinStep)
    config = step.fork_join_config
    assert (config.join_policy, config.on_decided) == (JoinPolicy.ALL, OnDecided.WAIT)
    assert (config.max_parallelism, config.branch_timeout_seconds) == (None, None)


@pytest.mark.parametrize(
    ("config", "place", "code"),
    [
        ({"branches": {}}, f"{CONFIG}.branches", "empty_block"),
        ({"branches": {"a": {"steps": []}}}, f"{A}.steps", "empty_block"),
        ({"branches": {"a": {}}}, f"{A}.steps", "missing_field"),
        ({"branches": []}, f"{CONFIG}.branches", "wrong_type"),
        ({"join_policy": "most"}, f"{CONFIG}.join_policy", "not_allowed"),
        ({"join_policy": "n_of_m"}, f"{CONFIG}.n_required", "missing_field"),
        ({"join_policy": "any", "n_required": 1}, f"{CONFIG}.n_required", "inconsistent"),
        ({"join_policy": "n_of_m", "n_required": 3}, f"{CONFIG}.n_required", "out_of_range"),
        ({"on_decided": "stop"}, f"{CONFIG}.on_decided", "not_allowed"),
        ({"branch_timeout_seconds": 0}, f"{CONFIG}.branch_timeout_seconds", "out_of_range"),
        ({"max_paralelism": 2}, f"{CONFIG}.max_paralelism", "unknown_field"),
    ],
)
def test_the_configuration_of_a_fork_join_step_is_checked(config: Document, place: str, code: str) -> None:
    assert (place, code) in [(one[0], one[1]) for one in found(forked(config))]


@pytest.mark.parametrize("name", ["a.b", "a[0]", " a", "", "x" * 101])
def test_references_must_be_able_to_name_a_branch(name: str) -> None:
    document = forked({"branches": {name: {"steps": ["a1", "a2"]}, "b": {"steps": ["b1"]}}})
    [(_, code, _)] = found(document)
    assert code == "bad_name"


def test_a_misspelt_field_of_a_branch_is_told_once() -> None:
    document = forked({"branches": {"a": {"step": ["a1", "a2"]}, "b": {"steps": ["b1"]}}})
    assert found(document) == [(f"{A}.step", "unknown_field", "steps")]


def test_a_parallel_step_has_the_same_policies() -> None:
    block = {"type": "parallel", "parallel_steps": ["a1", "b1"], "join_policy": "n_of_m", "n_required": 3}
    steps = {"f": block, "a1": {"agent_name": "x"}, "b1": {"agent_name": "x"}}
    document = {"name": "p", "start_step": "f", "steps": steps}
    assert found(document) == [("steps.f.n_required", "out_of_range", None)]


@pytest.mark.parametrize("mark", ["fork_join_config", "condition"])
def test_a_step_that_does_not_say_its_type_is_told_which_it_has(mark: str) -> None:
    document = forked() if mark == "fork_join_config" else choosing()
    step = "f" if mark == "fork_join_config" else "c"
    meant = document["steps"][step].pop("type")
    assert found(document) == [(f"steps.{step}.type", "missing_field", meant)]


# Steps of branches


@pytest.mark.parametrize(
    ("branches", "place", "code"),
    [
        ({"a": {"steps": ["a1", "a2"]}, "b": {"steps": ["b1", "a1"]}}, f"{B}.steps[1]", "duplicate_branch"),
        ({"a": {"steps": ["a1", "a2", "a1"]}, "b": {"steps": ["b1"]}}, f"{A}.steps[2]", "duplicate_branch"),
        ({"a": {"steps": ["a1", "a2", "f"]}, "b": {"steps": ["b1"]}}, f"{A}.steps[2]", "nested_block"),
        ({"a": {"steps": ["a1", "a2", "zzz"]}, "b": {"steps": ["b1"]}}, f"{A}.steps[2]", "unknown_step"),
    ],
)
def test_each_step_of_a_branch_is_an_agent_step_of_its_own(branches: Document, place: str, code: str) -> None:
    assert [(one[0], one[1]) for one in found(forked({"branches": branches}))] == [(place, code)]


def branching(steps: list[str], **choice: Any) -> Document:
    """The workflow of `forked` in which the branch a lists these steps, and the conditional c leads to p or q."""
    document = forked({"branches": {"a": {"steps": steps}, "b": {"steps": ["b1"]}}})
    document["steps"] |= {
        "c": {
            "type": "conditional", "condition": {"expression": "true"},
            "if_true_step": "p", "if_false_step": "q", **choice,
        },
        "p": {"agent_name": "x"},
        "q": {"agent_name": "x"},
    }  # fmt: skip
    return document


@pytest.mark.parametrize("steps", [["c", "a1", "a2"], ["a1", "c", "a2"], ["a1", "a2", "c"]])
def test_a_conditional_may_be_a_step_of_a_branch(steps: list[str]) -> None:
    assert found(branching(steps)) == []


@pytest.mark.parametrize("path", ["if_true_step", "if_false_step"])
@pytest.mark.parametrize("steps", [["a1", "c", "a2"], ["a2", "c", "a1"]])
def test_a_step_on_a_path_of_a_conditional_does_not_stand_in_the_list_of_the_branch(
    path: str, steps: list[str]
) -> None:
    document = branching(steps, **{path: "a2"})
    del document["steps"]["p" if path == "if_true_step" else "q"]
    assert found(document) == [(f"steps.c.{path}", "path_step_in_branch", None)]


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("b1", ("steps.c.if_true_step", "leads_out_of_branch", None)),
        ("pp", ("steps.c.if_true_step", "unknown_step", "p")),
    ],
)
def test_a_path_of_a_conditional_in_a_branch_stays_in_it(target: str, problem: Any) -> None:
    assert problem in found(branching(["a1", "c", "a2"], if_true_step=target))


def test_a_step_may_say_itself_which_step_of_its_branch_follows() -> None:
    assert found(forked(a1={"next_step": "a2"})) == []
    assert found(forked(a2={"next_step": "g"})) == [("steps.a2.next_step", "branch_with_next_step", None)]


@pytest.mark.parametrize(
    ("step", "reference", "code"),
    [
        ("a2", "${a1.output}", None),
        ("g", "${a2.output}", None),
        ("g", "${f.output.a}", None),
        ("a1", "${a2.output}", "reference_to_later_step"),
        ("b1", "${a1.output}", "reference_between_siblings"),
        ("a2", "${f.output}", "reference_to_own_block"),
    ],
)
def test_a_step_may_use_earlier_ones_of_its_branch(step: str, reference: str, code: str | None) -> None:
    document = forked(**{step: {"input_mapping": {"it": reference}}})
    assert [one[1] for one in found(document)] == ([code] if code is not None else [])


@pytest.mark.parametrize(
    ("reference", "code", "suggestion"),
    [
        ("${f.errors}", None, None),
        ("${f.errors.a.message}", None, None),
        ("${f.errors.aa}", "reference_to_unknown_branch", "a"),
        ("${a1.errors}", "reference_to_errors", "error"),
    ],
)
def test_the_errors_of_branches_go_by_their_names(reference: str, code: str | None, suggestion: str | None) -> None:
    document = forked(g={"input_mapping": {"it": reference}})
    assert [one[1:] for one in found(document)] == ([(code, suggestion)] if code is not None else [])


# Conditionals


def test_a_conditional_leads_into_paths_behind_which_the_run_goes_on() -> None:
    assert found(choosing()) == []
    assert found(choosing(if_false_step=None)) == [("steps.no", "unreachable_step", None)]


@pytest.mark.parametrize(
    ("step", "problem"),
    [
        ({"condition": {}}, ("steps.c.condition.expression", "missing_field", None)),
        ({"condition": {"expression": ""}}, ("steps.c.condition.expression", "empty", None)),
        ({"condition": {"expresion": "true"}}, ("steps.c.condition.expresion", "unknown_field", "expression")),
        ({"condition": {"expression": "1 <"}}, ("steps.c.condition.expression", "malformed_expression", None)),
        ({"if_true_step": "yess"}, ("steps.c.if_true_step", "unknown_step", "yes")),
        ({"retry": {}}, ("steps.c.retry", "unknown_field", None)),
    ],
)
def test_what_is_wrong_with_a_conditional_is_told_where_it_stands(step: Document, problem: Any) -> None:
    assert problem in found(choosing(**step))


def test_a_conditional_without_a_path_is_none() -> None:
    document = choosing(if_true_step=None, if_false_step=None)
    assert ("steps.c.if_true_step", "missing_field", None) in found(document)


@pytest.mark.parametrize(
    ("expression", "code"),
    [
        ("${end.output} == 1", "reference_to_later_step"),
        ("${nobody.output} == 1", "reference_to_unknown_step"),
        ("${c.output} == 1", "reference_to_itself"),
    ],
)
def test_a_condition_asks_only_what_comes_before_it(expression: str, code: str) -> None:
    assert [(one[0], one[1]) for one in found(choosing(expression))] == [("steps.c.condition.expression", code)]


def test_a_path_that_leads_back_is_a_cycle() -> None:
    assert ("steps.c.if_false_step", "cycle", None) in found(choosing(if_false_step="s"))


def test_a_step_on_two_paths_must_say_where_it_leads() -> None:
    document = choosing()
    second = {"type": "conditional", "condition": {"expression": "true"}, "if_true_step": "yes", "next_step": "last"}
    document["steps"] |= {"no": second, "last": {"agent_name": "x"}}
    assert ("steps.yes", "uncertain_next_step", None) in found(document)


# Blocks within blocks


def nested(depth: int) -> Document:
    """A workflow of so many blocks within each other, and an agent step in the innermost one."""
    blocks = {
        f"b{level}": {"type": "parallel", "parallel_steps": [f"b{level + 1}" if level + 1 < depth else "leaf"]}
        for level in reversed(range(depth))
    }
    return {"name": "nested", "start_step": "b0", "steps": {**blocks, "leaf": {"agent_name": "x"}}}


def test_blocks_lie_within_blocks_to_a_stated_depth() -> None:
    assert found(nested(8)) == []
    assert found(nested(9)) == [("steps.b7.parallel_steps[0]", "nested_too_deep", None)]
    assert found(nested(20_000)) == found(nested(9))


def test_a_block_does_not_lie_within_itself() -> None:
    document = nested(3)
    document["steps"]["b2"]["parallel_steps"] = ["leaf", "b0"]
    assert found(document) == [("steps.b2.parallel_steps[1]", "nested_block", None)]


@pytest.mark.parametrize(
    ("step", "reference", "code"),
    [
        ("z", "${x.output}", None),  # what lies in an earlier step of the branch
        ("z", "${inner.output.x}", None),
        ("g", "${x.output}", None),
        ("x", "${first.output}", None),  # an earlier step of a branch around it
        ("x", "${y.output}", "reference_between_siblings"),
        ("x", "${b1.output}", "reference_between_siblings"),
        ("b1", "${x.output}", "reference_between_siblings"),
        ("x", "${inner.output}", "reference_to_own_block"),
        ("x", "${f.output}", "reference_to_own_block"),
        ("x", "${z.output}", "reference_to_later_step"),
        ("first", "${x.output}", "reference_to_later_step"),
        ("x", "${g.output}", "reference_to_later_step"),
    ],
)
def test_what_a_step_within_blocks_may_use(step: str, reference: str, code: str | None) -> None:
    branches = {"a": {"steps": ["first", "inner", "z"]}, "b": {"steps": ["b1"]}}
    names = ("first", "x", "y", "z", "b1", "g")
    document = {
        "name": "nested",
        "start_step": "f",
        "steps": {
            "f": {"type": "fork_join", "fork_join_config": {"branches": branches}, "next_step": "g"},
            "inner": {"type": "parallel", "parallel_steps": ["x", "y"]},
            **{name: {"agent_name": "x"} for name in names},
            step: {"agent_name": "x", "input_mapping": {"it": reference}},
        },
    }
    assert [one[1] for one in found(document)] == ([code] if code is not None else [])
