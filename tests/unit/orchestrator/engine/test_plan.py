"""A plan: from executions to steps, and to the executions around them and beside them."""

from typing import Any

import pytest

from orchestrator.engine.plan import Plan
from tests.unit.orchestrator.engine.scene import agent, loop, parallel, plan_of

# A loop over first, block and then; a loop lies in one branch of the block, and a step beside it in the other.
LOOPS = plan_of(
    start=agent(next_step="outer"),
    outer=loop("first", "block", "then"),
    first=agent(),
    block=parallel("inner", "z"),
    inner=loop("x", "y"),
    x=agent(),
    y=agent(),
    z=agent(),
    then=agent(),
)
# A loop directly in the body of a loop.
NESTED = plan_of(outer=loop("inner"), inner=loop("x"), x=agent())


@pytest.mark.parametrize(
    ("execution", "step_id"), [("outer", "outer"), ("first[3]", "first"), ("x[3][0]", "x"), ("start", "start")]
)
def test_an_execution_is_of_the_step_that_its_id_begins_with(execution: str, step_id: str) -> None:
    assert LOOPS.step(execution) is LOOPS.steps[step_id]


@pytest.mark.parametrize(
    ("execution", "step_id", "beside"),
    [
        ("x[3][0]", "y", "y[3][0]"),
        ("x[3][0]", "then", "then[3]"),  # out of the inner loop
        ("x[3][0]", "inner", "inner[3]"),
        ("x[3][0]", "outer", "outer"),
        ("x[3][0]", "start", "start"),
        ("first[12]", "z", "z[12]"),
        ("start", "outer", "outer"),
    ],
)
def test_the_execution_beside_another_shares_the_loops_around_its_own_step(
    execution: str, step_id: str, beside: str
) -> None:
    assert LOOPS.beside(execution, step_id) == beside


@pytest.mark.parametrize(
    ("execution", "around"),
    [
        ("x[3][0]", "inner[3]"),
        ("inner[3]", "block[3]"),
        ("z[3]", "block[3]"),
        ("block[3]", "outer"),
        ("outer", None),
        ("start", None),
    ],
)
def test_around_an_execution_is_the_block_or_loop_that_it_lies_in(execution: str, around: str | None) -> None:
    assert LOOPS.around(execution) == around


def test_all_that_lies_around_an_execution_comes_from_the_inside_out() -> None:
    assert list(LOOPS.all_around("x[3][0]")) == ["inner[3]", "block[3]", "outer"]
    assert list(LOOPS.all_around("start")) == []


def test_a_loop_within_a_loop_lies_in_an_iteration_of_it() -> None:
    assert list(NESTED.all_around("x[1][0]")) == ["inner[1]", "outer"]


def test_without_loops_blocks_lie_around_their_steps() -> None:
    branches = {"left": {"steps": ["inner", "z"]}, "right": {"steps": ["a"]}}
    plan = plan_of(
        block={"type": "fork_join", "fork_join_config": {"branches": branches}},
        inner=parallel("x", "y"),
        **{name: agent() for name in ("x", "y", "z", "a")},
    )
    assert [list(plan.all_around(step)) for step in ("x", "inner", "block")] == [
        ["inner", "block"], ["block"], [],
    ]  # fmt: skip


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_blocks_nest_as_deep_as_they_may(depth: int) -> None:
    steps: dict[str, Any] = {f"b{level}": parallel(f"b{level + 1}") for level in range(depth - 1)}
    plan = plan_of(**steps, **{f"b{depth - 1}": parallel("leaf")}, leaf=agent())
    assert len(list(plan.all_around("leaf"))) == depth


@pytest.mark.parametrize(
    ("plan", "execution", "found"),
    [
        (LOOPS, "x[3][0]", "inner[3]"),
        (LOOPS, "z[3]", "outer"),  # the block between is none
        (LOOPS, "inner[3]", "outer"),
        (LOOPS, "outer", None),
        (NESTED, "x[1][0]", "inner[1]"),
        (NESTED, "inner[1]", "outer"),
    ],
)
def test_the_loop_around_an_execution_is_the_innermost_one(plan: Plan, execution: str, found: str | None) -> None:
    assert plan.loop_around(execution) == found


@pytest.mark.parametrize(
    ("execution", "lane"),
    [
        ("first[3]", ("first[3]", "block[3]", "then[3]")),
        ("x[3][0]", ("x[3][0]", "y[3][0]")),
        ("inner[3]", ("inner[3]",)),
        ("z[3]", ("z[3]",)),
    ],
)
def test_a_lane_holds_the_executions_of_one_branch_in_their_order(execution: str, lane: tuple[str, ...]) -> None:
    assert LOOPS.lane(execution) == lane
