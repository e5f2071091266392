from collections.abc import Callable
from typing import Any

import pytest

from schemas.errors import Problem
from schemas.validation import parse_workflow, validate_workflow

Found = Callable[[object], list[tuple[str, str, str | None]]]
Document = dict[str, Any]


def chain(*names: str, **changes: dict[str, Any]) -> Document:
    """A workflow whose steps follow each other, with changes to some steps."""
    followers = dict(zip(names, [*names[1:], None], strict=True))
    steps = {
        name: {"agent_name": "x", "next_step": follower, **changes.get(name, {})}
        for name, follower in followers.items()
    }
    return {"name": "chain", "start_step": names[0], "steps": steps}


def fan_out(branches: int, **block: Any) -> Document:
    """A workflow of one block, with a step behind it."""
    names = [f"branch-{index}" for index in range(branches)]
    mapping = {"topic": "${workflow.input.topic}"}
    return {
        "name": "fan-out",
        "start_step": "block",
        "steps": {
            "block": {"type": "parallel", "parallel_steps": names, "next_step": "end", **block},
            **{name: {"agent_name": "x", "input_mapping": mapping} for name in names},
            "end": {"agent_name": "y", "input_mapping": {"all": "${block.output}"}},
        },
    }


def only(document: Document) -> Problem:
    [problem] = validate_workflow(document)
    return problem


# Steps that are not there


@pytest.mark.parametrize(
    ("step", "field", "value"),
    [("block", "next_step", "fnal-step"), ("final-step", "on_failure", "reprot"), ("step-b", "on_failure", "reportt")],
)
def test_an_edge_to_an_unknown_step_suggests_the_nearest_one(
    found: Found, workflow: Document, step: str, field: str, value: str
) -> None:
    workflow["steps"][step][field] = value
    suggestion = "final-step" if "f" in value else "report"

    assert found(workflow) == [(f"steps.{step}.{field}", "unknown_step", suggestion)]


def test_an_unknown_start_step_suggests_the_nearest_one(found: Found, workflow: Document) -> None:
    workflow["start_step"] = "blok"

    assert found(workflow) == [("start_step", "unknown_step", "block")]


def test_an_unknown_start_step_like_no_other_makes_nothing_unreachable(found: Found, workflow: Document) -> None:
    workflow["start_step"] = "qqqqqqqqqq"

    assert found(workflow) == [("start_step", "unknown_step", None)]


def test_a_name_that_no_step_can_have_is_an_unknown_step_and_no_more(found: Found, workflow: Document) -> None:
    workflow["steps"]["final-step"]["next_step"] = "../etc/passwd"
    workflow["steps"]["block"]["parallel_steps"].append("#")

    assert found(workflow) == [
        ("steps.block.parallel_steps[3]", "unknown_step", None),
        ("steps.final-step.next_step", "unknown_step", None),
    ]


def test_an_unknown_branch_is_named_with_its_index(found: Found, workflow: Document) -> None:
    workflow["steps"]["block"]["parallel_steps"][1] = "stepb"

    assert found(workflow) == [("steps.block.parallel_steps[1]", "unknown_step", "step-b")]


# Blocks


def test_a_block_needs_branches(found: Found) -> None:
    document = fan_out(0)

    assert found(document) == [("steps.block.parallel_steps", "empty_block", None)]
    assert str(only(document)) == "steps.block.parallel_steps: a block needs at least one branch [empty_block]"


def test_a_branch_that_is_no_string_is_one_problem(found: Found, workflow: Document) -> None:
    workflow["steps"]["block"]["parallel_steps"][1] = {"agent_name": "x"}

    assert found(workflow) == [("steps.block.parallel_steps[1]", "wrong_type", None)]


def test_a_branch_runs_once_in_its_block(found: Found, workflow: Document) -> None:
    workflow["steps"]["block"]["parallel_steps"].append("step-a")

    assert found(workflow) == [("steps.block.parallel_steps[3]", "duplicate_branch", None)]


def test_a_step_is_in_one_block_at_most(workflow: Document) -> None:
    workflow["steps"]["final-step"]["next_step"] = "second"
    workflow["steps"]["second"] = {"type": "parallel", "parallel_steps": ["step-d", "step-b"]}
    workflow["steps"]["step-d"] = {"agent_name": "x"}

    assert str(only(workflow)) == (
        'steps.second.parallel_steps[1]: "step-b" is a branch of block "block" already; a step is in one block at most '
        "[step_in_two_blocks]"
    )


def test_a_block_cannot_be_its_own_branch(found: Found, workflow: Document) -> None:
    workflow["steps"]["block"]["parallel_steps"].append("block")

    assert found(workflow) == [("steps.block.parallel_steps[3]", "nested_block", None)]


def test_a_branch_has_no_next_step(workflow: Document) -> None:
    workflow["steps"]["step-a"]["next_step"] = "final-step"

    assert str(only(workflow)) == (
        'steps.step-a.next_step: a branch has no next step: when all are done, block "block" leads on '
        "[branch_with_next_step]"
    )


def test_a_step_that_only_a_branch_leads_to_is_not_unreachable_as_well(found: Found, workflow: Document) -> None:
    workflow["steps"]["step-a"]["next_step"] = "final-step"
    del workflow["steps"]["block"]["next_step"]

    assert found(workflow) == [("steps.step-a.next_step", "branch_with_next_step", None)]


@pytest.mark.parametrize("field", ["next_step", "on_failure"])
def test_no_edge_leads_to_a_branch(found: Found, workflow: Document, field: str) -> None:
    workflow["steps"]["final-step"][field] = "step-b"

    assert found(workflow) == [(f"steps.final-step.{field}", "branch_reached_directly", "block")]


def test_a_run_does_not_start_with_a_branch(found: Found, workflow: Document) -> None:
    workflow["start_step"] = "step-a"

    assert found(workflow) == [("start_step", "branch_reached_directly", "block")]


def test_a_branch_may_name_where_the_failure_of_its_block_leads(found: Found, workflow: Document) -> None:
    del workflow["steps"]["block"]["on_failure"]
    workflow["steps"]["step-b"]["on_failure"] = "report"

    assert found(workflow) == []


# Cycles


def test_a_cycle_is_shown_with_its_path() -> None:
    document = chain("a", "b", "c", "d", d={"next_step": "b"})

    assert str(only(document)) == (
        "steps.d.next_step: this closes a cycle, and the run might never end: b -> c -> d -> b [cycle]"
    )


def test_a_cycle_is_closed_where_it_goes_back_whatever_the_order_of_the_steps() -> None:
    document = chain("a", "b", "c", c={"on_failure": "a"})
    document["steps"] = dict(reversed(document["steps"].items()))

    assert only(document).place == "steps.c.on_failure"


def test_a_step_that_leads_to_itself_is_a_cycle() -> None:
    problem = only(chain("a", a={"on_failure": "a"}))

    assert (problem.place, problem.code) == ("steps.a.on_failure", "cycle")
    assert problem.message.endswith("a -> a")


def test_each_edge_that_closes_a_cycle_is_a_problem(found: Found) -> None:
    document = chain("a", "b", "c", b={"on_failure": "a"}, c={"next_step": "a", "on_failure": "a"})

    assert found(document) == [
        ("steps.b.on_failure", "cycle", None),
        ("steps.c.next_step", "cycle", None),
        ("steps.c.on_failure", "cycle", None),
    ]


def test_a_cycle_may_go_through_the_failure_of_a_branch(workflow: Document) -> None:
    workflow["steps"]["step-b"]["on_failure"] = "block"

    problem = only(workflow)

    assert (problem.place, problem.code) == ("steps.step-b.on_failure", "cycle")


def test_a_long_cycle_is_not_shown_in_full() -> None:
    names = [f"s{index}" for index in range(1000)]

    problem = only(chain(*names, s999={"next_step": "s0"}))

    assert problem.message.endswith("s0 -> s1 -> s2 -> s3 -> s4 -> s5 -> s6 -> s7 -> s8 -> (991 more) -> s0")


def test_two_ways_to_one_step_are_no_cycle(found: Found) -> None:
    assert found(chain("a", "b", "c", a={"on_failure": "c"})) == []


# Steps that cannot be reached


def test_a_step_that_nothing_leads_to_is_unreachable(workflow: Document) -> None:
    workflow["steps"]["orphan"] = {"agent_name": "x"}

    assert str(only(workflow)) == (
        "steps.orphan: the run never gets here: nothing leads from the start step to it [unreachable_step]"
    )


def test_what_hangs_on_an_unreachable_step_is_not_reported_as_well(found: Found, workflow: Document) -> None:
    workflow["steps"] |= chain("orphan", "second", "third")["steps"]
    workflow["steps"] |= {"lone-block": {"type": "parallel", "parallel_steps": ["x"]}, "x": {"agent_name": "x"}}

    assert found(workflow) == [
        ("steps.orphan", "unreachable_step", None),
        ("steps.lone-block", "unreachable_step", None),
    ]


def test_an_unreachable_cycle_is_reported_at_its_first_step(found: Found, workflow: Document) -> None:
    workflow["steps"] |= chain("x", "y", y={"next_step": "x"})["steps"]

    assert found(workflow) == [("steps.y.next_step", "cycle", None), ("steps.x", "unreachable_step", None)]


@pytest.mark.parametrize("broken", [5, {"agent_name": "x", "next_step": 5}])
def test_a_step_behind_a_broken_one_is_not_unreachable(found: Found, broken: object) -> None:
    document = chain("a", "b", "c")
    document["steps"]["b"] = broken

    assert [code for _, code, _ in found(document)] == ["wrong_type"]


def test_a_step_behind_an_unknown_field_is_not_unreachable(found: Found) -> None:
    document = chain("a", "b", "c")
    document["steps"]["b"] = {"agent_name": "x", "then": "c"}

    assert found(document) == [("steps.b.then", "unknown_field", None)]


def test_branches_that_an_agent_step_lists_are_not_unreachable(found: Found, workflow: Document) -> None:
    workflow["steps"]["block"] = {"type": "agent", "agent_name": "x", "parallel_steps": ["step-a", "step-b", "step-c"]}
    workflow["steps"] = {key: workflow["steps"][key] for key in ("block", "step-a", "step-b", "step-c")}

    assert found(workflow) == [("steps.block.parallel_steps", "unknown_field", None)]


# Everything at once


def test_one_broken_step_does_not_hide_what_is_wrong_with_the_rest(found: Found, workflow: Document) -> None:
    steps = workflow["steps"]
    steps["step-c"] = "not an object"
    steps["block"]["max_parallelism"] = 0
    steps["step-a"]["input_mapping"]["x"] = "${step-b.output} ${late.output} ${missing.output} ${"
    steps["step-b"]["next_step"] = "final-step"
    steps["final-step"] |= {"next_step": "late", "colour": 1}
    steps["late"] = {"agent_name": "a b", "on_failure": "final-step"}
    steps["orphan"] = {"agent_name": "x", "next_step": "nowhere-at-all"}

    assert sorted(found(workflow), key=str) == sorted(
        [
            ("steps.step-c", "wrong_type", None),
            ("steps.block.max_parallelism", "out_of_range", None),
            ("steps.step-a.input_mapping.x", "reference_between_siblings", None),
            ("steps.step-a.input_mapping.x", "reference_to_later_step", None),
            ("steps.step-a.input_mapping.x", "reference_to_unknown_step", None),
            ("steps.step-a.input_mapping.x", "malformed_reference", None),
            ("steps.step-b.next_step", "branch_with_next_step", None),
            ("steps.final-step.colour", "unknown_field", None),
            ("steps.late.agent_name", "bad_name", None),
            ("steps.late.on_failure", "cycle", None),
            ("steps.orphan", "unreachable_step", None),
            ("steps.orphan.next_step", "unknown_step", None),
        ],
        key=str,
    )


# Large documents


@pytest.mark.parametrize("branches", [1, 10_000])
def test_a_block_may_have_one_branch_or_very_many(branches: int) -> None:
    assert len(parse_workflow(fan_out(branches)).steps) == branches + 2


def test_a_long_chain_with_references_far_back_is_validated_without_recursion(found: Found) -> None:
    names = [f"s{index}" for index in range(10_000)]
    mappings = {
        name: {"input_mapping": {"a": f"${{s{index // 2}.output}}", "b": "${s0.output}"}}
        for index, name in enumerate(names)
        if index
    }

    assert found(chain(*names, **mappings)) == []


def test_a_long_chain_that_always_goes_back_has_a_cycle_at_each_step(found: Found) -> None:
    names = [f"s{index}" for index in range(10_000)]

    problems = found(chain(*names, **{name: {"on_failure": "s0"} for name in names}))

    assert problems == [(f"steps.{name}.on_failure", "cycle", None) for name in names]


def test_suggestions_for_very_many_wrong_names_come_to_an_end(found: Found) -> None:
    document = fan_out(5_000)
    document["steps"]["block"]["parallel_steps"] = [f"brunch-{index}" for index in range(5_000)]

    problems = [problem for problem in found(document) if problem[1] == "unknown_step"]

    assert len(problems) == 5_000
    assert problems[0][2] is not None
    assert problems[-1][2] is None
