"""The place of a new row."""

from orchestrator.engine.placement import new_row
from orchestrator.engine.plan import Plan
from orchestrator.engine.records import StepExecution
from schemas.statuses import JoinPolicy, StepStatus
from tests.unit.orchestrator.engine.scene import NOW, RUN, agent, loop, parallel, plan_of


def placed(plan: Plan, execution: str, status: StepStatus = StepStatus.PENDING) -> StepExecution:
    return new_row(RUN, plan.step(execution), execution, plan.around(execution), NOW, status)


def test_a_row_in_no_branch_has_no_place() -> None:
    row = placed(plan_of(alone=agent()), "alone", StepStatus.SKIPPED)
    assert row == StepExecution(RUN, "alone", StepStatus.SKIPPED, created_at=NOW)


def test_a_row_in_a_branch_stands_where_its_step_does() -> None:
    branches = {"left": {"steps": ["a"]}, "right": {"steps": ["b", "c"], "timeout_seconds": 7.0}}
    block = {"type": "fork_join", "fork_join_config": {"branches": branches, "join_policy": "any"}}
    row = placed(plan_of(block=block, a=agent(), b=agent(), c=agent()), "c")
    assert row == StepExecution(
        RUN,
        "c",
        StepStatus.PENDING,
        position=1,
        ordinal=1,
        parent_step_id="block",
        branch_name="right",
        join_policy=JoinPolicy.ANY,
        branch_timeout_seconds=7.0,
        created_at=NOW,
    )


def test_in_a_body_the_number_of_the_iteration_is_name_and_position() -> None:
    row = placed(plan_of(loop=loop("x", "y"), x=agent(), y=agent()), "y[4]")
    assert (row.step_id, row.parent_step_id) == ("y[4]", "loop")
    assert (row.branch_name, row.position, row.ordinal, row.join_policy) == ("4", 4, 1, None)


def test_in_a_loop_within_a_loop_the_iteration_of_the_inner_one_counts() -> None:
    row = placed(plan_of(outer=loop("inner"), inner=loop("x"), x=agent()), "x[4][2]")
    assert (row.parent_step_id, row.branch_name, row.position) == ("inner[4]", "2", 2)


def test_in_a_block_within_a_body_the_branch_keeps_its_name_and_position() -> None:
    row = placed(plan_of(loop=loop("block"), block=parallel("a", "b"), a=agent(), b=agent()), "b[4]")
    assert (row.parent_step_id, row.branch_name, row.position) == ("block[4]", "b", 1)
