"""When the branches of a block suffice, and when the rest of them is not waited for."""

from typing import Any

import pytest

from orchestrator.engine.decision import SendCancellation
from orchestrator.engine.inputs import BlockDrained, BlockForked, SlotsFree, TaskReported
from orchestrator.engine.plan import Plan
from orchestrator.engine.state import FailedBranch, RunState
from schemas.statuses import JoinPolicy, ReportStatus, StepStatus
from tests.unit.orchestrator.engine.scene import (
    ERROR,
    RUN,
    agent,
    block_plan,
    block_row,
    branch_row,
    decided,
    known,
    parallel,
    plan_of,
    report,
    three_branches,
)

COMPLETED, FAILED = ReportStatus.COMPLETED, ReportStatus.FAILED


@pytest.mark.parametrize(
    ("join", "needed"),
    [
        ({}, 3),
        ({"join_policy": "all"}, 3),
        ({"join_policy": "any"}, 1),
        ({"join_policy": "majority"}, 2),
        ({"join_policy": "n_of_m", "n_required": 2}, 2),
    ],
)
@pytest.mark.parametrize("failed", [0, 1, 2, 3])
def test_a_block_is_completed_when_as_many_branches_are_as_its_policy_needs(
    join: dict[str, Any], needed: int, failed: int
) -> None:
    state = with_failures(three_branches(**join), failed)
    (block,) = decided(state, BlockDrained(RUN, "block")).steps
    assert block.status is (StepStatus.COMPLETED if 3 - failed >= needed else StepStatus.FAILED)
    assert (block.error is None) == (block.status is StepStatus.COMPLETED)


@pytest.mark.parametrize(("total", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3)])
def test_a_majority_is_more_than_half(total: int, needed: int) -> None:
    names = [f"s{number}" for number in range(total)]
    plan = plan_of(block=parallel(*names, join_policy="majority"), **dict.fromkeys(names, agent()))
    assert (block_plan(plan).join_policy, block_plan(plan).needed) == (JoinPolicy.MAJORITY, needed)


def test_the_error_says_how_many_had_to_complete() -> None:
    state = with_failures(three_branches(join_policy="n_of_m", n_required=2), 2)
    error = decided(state, BlockDrained(RUN, "block")).steps[0].error
    assert error is not None
    assert error.message == "2 of 3 branches failed, and 2 had to complete: a: no luck; b: no luck"


@pytest.mark.parametrize(
    ("join", "failed", "end", "is_decided"),
    [
        ({"join_policy": "any"}, 0, COMPLETED, True),
        ({"join_policy": "any"}, 0, FAILED, False),
        ({"join_policy": "all"}, 0, FAILED, True),
        ({"join_policy": "all"}, 0, COMPLETED, False),
        ({"join_policy": "n_of_m", "n_required": 2}, 1, FAILED, True),
        ({"join_policy": "n_of_m", "n_required": 2}, 0, FAILED, False),
    ],
)
@pytest.mark.parametrize("on_decided", ["wait", "cancel"])
def test_a_block_goes_on_once_it_is_decided_where_it_does_not_wait(
    join: dict[str, Any], failed: int, end: ReportStatus, is_decided: bool, on_decided: str
) -> None:
    plan = three_branches(on_decided=on_decided, **join)
    block = block_row(open=3 - failed, failed=failed)
    decision = decided(known(block, branch_row(), plan=plan), TaskReported(report(end)))
    goes_on = is_decided and on_decided == "cancel"
    assert decision.then == ((BlockDrained(RUN, "block"),) if goes_on else ())


def test_what_cannot_matter_any_more_is_cancelled_and_the_workers_hear_of_it() -> None:
    plan = three_branches(on_decided="cancel", join_policy="any", max_parallelism=2)
    state = known(block_row(open=2, dispatched=1, passed=2, max_parallelism=2), plan=plan)
    decision = decided(state, BlockDrained(RUN, "block"))
    (block,) = decision.steps
    assert (block.status, decision.cancels_branches_of) == (StepStatus.COMPLETED, "block")
    assert decision.sends == (SendCancellation(RUN, "block"),)
    assert block.branches is not None
    assert (block.branches.open, block.branches.dispatched) == (0, 0)
    assert decided(known(block, plan=plan), SlotsFree(RUN, "block")).steps == ()


def test_where_nothing_is_open_nothing_is_cancelled() -> None:
    decision = decided(known(block_row(open=0), plan=three_branches(on_decided="cancel")), BlockDrained(RUN, "block"))
    assert (decision.cancels_branches_of, decision.sends) == (None, ())


def test_no_slot_is_handed_on_by_the_branch_that_decides() -> None:
    plan = three_branches(on_decided="cancel", join_policy="any", max_parallelism=1)
    block = block_row(dispatched=1, passed=1, max_parallelism=1)
    decision = decided(known(block, branch_row(), plan=plan), TaskReported(report(COMPLETED)))
    assert decision.afterwards is None


def test_branches_that_fail_at_birth_may_decide() -> None:
    plan = three_branches(on_decided="cancel")
    assert decided(known(block_row(), plan=plan), BlockForked(RUN, "block", 1)).then == (BlockDrained(RUN, "block"),)
    plan = three_branches()
    assert decided(known(block_row(), plan=plan), BlockForked(RUN, "block", 1)).then == ()


def with_failures(plan: Plan, failed: int) -> RunState:
    state = known(block_row(open=0, failed=failed), plan=plan)
    state.failures["block"] = tuple(FailedBranch(name, ERROR) for name in "abc"[:failed])
    return state
