"""A block: fork, count down, join."""

from itertools import islice
from uuid import UUID

import pytest

from orchestrator.engine import codes
from orchestrator.engine.block import DESCRIBED_FAILURES, branch_ended, fork, forked, new_block
from orchestrator.engine.decision import Fork, Join, JoinForm, SendTask, SendTicket, Verdict
from orchestrator.engine.inputs import BlockDrained, BlockForked, StepEnded
from orchestrator.engine.plan import Plan
from orchestrator.engine.records import Branches, StepExecution
from orchestrator.engine.state import FailedBranch, RunState, Wanted
from schemas.messages import ErrorInfo
from schemas.statuses import StepStatus
from tests.unit.orchestrator.engine.scene import (
    NOW,
    RUN,
    after,
    agent,
    agent_plan,
    answer,
    before_fork,
    block_plan,
    block_row,
    branch_row,
    counted_ids,
    decided,
    known,
    parallel,
    plan_of,
    three_branches,
)

BROKEN = {"x": "${workflow.input.missing}"}


def forked_rows(plan: Plan) -> list[tuple[str, StepStatus, str | None]]:
    """Return id, status and message of each branch that a fork makes."""
    made = fork(before_fork(plan), Fork("block"), NOW, counted_ids())
    return [(step.step_id, step.status, type(send).__name__ if send else None) for step, send in made]


# Fork


def test_a_new_block_counts_all_its_branches_as_open() -> None:
    row = new_block(RUN, block_plan(three_branches(max_parallelism=2)), "block", None, NOW)
    assert (row.status, row.started_at, row.parent_step_id) == (StepStatus.PENDING, None, None)
    assert row.branches == Branches(total=3, open=3, failed=0, dispatched=0, passed=0, max_parallelism=2)


def test_a_fork_sends_every_branch_of_a_block_without_a_limit_at_once_in_definition_order() -> None:
    plan = plan_of(block=parallel("c", "a", "b"), a=agent(), b=agent(), c=agent())
    assert forked_rows(plan) == [(name, StepStatus.QUEUED, "SendTask") for name in ("c", "a", "b")]


def test_a_fork_sends_every_branch_of_a_limited_block_to_the_gate_and_none_to_an_agent() -> None:
    plan = three_branches(max_parallelism=2)
    assert forked_rows(plan) == [(name, StepStatus.PENDING, "SendTicket") for name in ("a", "b", "c")]


def test_a_limit_that_holds_nobody_back_makes_no_gate() -> None:
    assert {send for _, _, send in forked_rows(three_branches(max_parallelism=3))} == {"SendTask"}


@pytest.mark.parametrize(("limit", "others"), [(None, StepStatus.QUEUED), (1, StepStatus.PENDING)])
def test_a_branch_without_a_valid_input_is_born_failed_and_its_siblings_go_ahead(
    limit: int | None, others: StepStatus
) -> None:
    plan = plan_of(
        block=parallel("a", "b", "c", max_parallelism=limit), a=agent(), b=agent(input_mapping=BROKEN), c=agent()
    )
    rows = forked_rows(plan)
    assert [(name, status) for name, status, _ in rows] == [("a", others), ("b", StepStatus.FAILED), ("c", others)]
    assert [send is None for _, _, send in rows] == [False, True, False]


def test_each_message_of_a_fork_carries_the_row_that_is_stored() -> None:
    for limit in (None, 1):
        plan = three_branches(max_parallelism=limit)
        for step, send in fork(before_fork(plan), Fork("block"), NOW, counted_ids()):
            assert isinstance(send, SendTask | SendTicket)
            assert send.step is step


def test_a_fork_is_lazy_so_that_a_huge_block_passes_in_pieces() -> None:
    new_id = counted_ids(first=100)
    plan = three_branches()
    assert len(list(islice(fork(before_fork(plan), Fork("block"), NOW, new_id), 2))) == 2
    assert new_id() == UUID(int=102), "only the two that were asked for drew ids"


@pytest.mark.parametrize(
    ("limit", "gated"), [(None, False), (1, True), (2, True), (3, False), (4, False), (70_000, False)]
)
def test_a_block_has_a_gate_only_where_its_limit_can_hold_a_branch_back(limit: int | None, gated: bool) -> None:
    assert is_gated(three_branches(max_parallelism=limit)) is gated


def test_one_branch_alone_needs_no_gate() -> None:
    assert not is_gated(plan_of(block=parallel("a", max_parallelism=1), a=agent()))


def is_gated(plan: Plan) -> bool:
    row = new_block(RUN, block_plan(plan), "block", None, NOW)
    assert row.branches is not None
    return row.branches.is_gated


# Forked


def test_after_a_fork_the_branches_that_failed_at_birth_are_counted() -> None:
    decision = forked(known(block_row()), BlockForked(RUN, "block", 2), NOW)
    assert counters(decision.steps[0]) == {"open": 1, "failed": 2, "dispatched": 0}
    assert decision.then == ()


def test_a_block_whose_branches_all_failed_at_birth_is_drained_at_once() -> None:
    decision = forked(known(block_row()), BlockForked(RUN, "block", 3), NOW)
    assert counters(decision.steps[0]) == {"open": 0, "failed": 3, "dispatched": 0}
    assert decision.then == (BlockDrained(RUN, "block"),)


# Counting down


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        (StepStatus.COMPLETED, {"open": 1, "failed": 1, "dispatched": 1}),
        (StepStatus.FAILED, {"open": 1, "failed": 2, "dispatched": 1}),
    ],
)
@pytest.mark.parametrize("before", [StepStatus.QUEUED, StepStatus.RUNNING])
def test_an_ended_branch_is_counted_once_and_gives_its_slot_back(
    before: StepStatus, ended: StepStatus, expected: dict[str, int]
) -> None:
    block = block_row(open=2, failed=1, dispatched=2, passed=3, max_parallelism=2)
    assert counters(count(block, branch_row(status=before), branch_row(status=ended))) == expected


def count(block: StepExecution, before: StepExecution, after: StepExecution) -> StepExecution:
    state = known(block, before)
    assert state.plan is not None
    decision = branch_ended(state, agent_plan(state.plan, before.step_id), after, before=before)
    assert decision.steps[0] == after
    return decision.steps[1]


def test_a_branch_that_never_took_a_slot_gives_none_back() -> None:
    block = block_row(dispatched=1, passed=1, max_parallelism=1)
    counted = count(block, branch_row("b", StepStatus.PENDING), branch_row("b", StepStatus.FAILED))
    assert counters(counted)["dispatched"] == 1


def test_a_block_without_a_gate_counts_no_slots() -> None:
    counted = count(block_row(), branch_row(), branch_row(status=StepStatus.COMPLETED))
    assert counters(counted) == {"open": 2, "failed": 0, "dispatched": 0}


@pytest.mark.parametrize(
    ("limit", "dispatched", "passed", "free"),
    [(2, 0, 0, 2), (2, 1, 1, 1), (2, 2, 2, 0), (2, 0, 2, 1), (2, 1, 3, 0), (2, 0, 3, 0), (None, 0, 0, 0), (3, 0, 0, 0)],
)
def test_slots_are_free_up_to_the_limit_and_for_branches_that_are_left(
    limit: int | None, dispatched: int, passed: int, free: int
) -> None:
    row = block_row(dispatched=dispatched, passed=passed, max_parallelism=limit)
    assert row.branches is not None
    assert row.branches.free_slots == free


# Join


def test_a_drained_block_without_failures_is_completed_and_joined() -> None:
    decision = decided(known(block_row(open=0)), BlockDrained(RUN, "block"), after(5))
    (block,) = decision.steps
    assert (decision.verdict, block.status, block.finished_at) == (Verdict.APPLIED, StepStatus.COMPLETED, after(5))
    assert decision.join == Join("block", JoinForm.COMPLETED, around=None)
    assert decision.then == (StepEnded(RUN, "block"),)


def test_a_drained_block_with_failures_wants_to_see_them_first() -> None:
    state = known(block_row(open=0, failed=1))
    assert answer(state, BlockDrained(RUN, "block")) == Wanted(failures=frozenset({"block"}))


def test_a_drained_block_with_failures_is_failed_and_joined_all_the_same() -> None:
    decision = decided(drained_state(failures=1, total=3), BlockDrained(RUN, "block"), after(5))
    (block,) = decision.steps
    assert (block.status, block.finished_at) == (StepStatus.FAILED, after(5))
    assert decision.join == Join("block", JoinForm.COMPLETED, around=None)
    assert decision.then == (StepEnded(RUN, "block"),)


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        (1, "1 of 40 branches failed: s0: no luck 0"),
        (3, "3 of 40 branches failed: s0: no luck 0; s1: no luck 1; s2: no luck 2"),
        (5, "5 of 40 branches failed: s0: no luck 0; s1: no luck 1; s2: no luck 2; and 2 more"),
        (30, "30 of 40 branches failed: s0: no luck 0; s1: no luck 1; s2: no luck 2; and 27 more"),
    ],
)
def test_the_error_of_a_block_counts_all_failures_and_words_the_first_three(failures: int, message: str) -> None:
    error = drained_error(failures)
    assert (error.code, error.message) == (codes.BRANCHES_FAILED, message)


@pytest.mark.parametrize(("failures", "described"), [(1, 1), (20, 20), (30, DESCRIBED_FAILURES)])
def test_the_error_of_a_block_describes_so_many_failures_and_no_more(failures: int, described: int) -> None:
    details = drained_error(failures).details
    assert details is not None
    assert details["failed_count"] == failures
    assert details["failed_steps"] == [
        {"step_id": f"s{number}", "code": "agent_error", "message": f"no luck {number}"} for number in range(described)
    ]


def drained_state(failures: int, total: int) -> RunState:
    """Return the state in which a block's last branch has ended; of the errors only the first ones are known."""
    names = [f"s{number}" for number in range(total)]
    plan = plan_of(block=parallel(*names), **dict.fromkeys(names, agent()))
    state = known(block_row(total=total, open=0, failed=failures), plan=plan)
    state.failures["block"] = tuple(
        FailedBranch(
            f"s{number}",
            ErrorInfo(code="agent_error", message=f"no luck {number}") if number < DESCRIBED_FAILURES else None,
        )
        for number in range(failures)
    )
    return state


def drained_error(failures: int) -> ErrorInfo:
    error = decided(drained_state(failures, total=40), BlockDrained(RUN, "block")).steps[0].error
    assert error is not None
    return error


def counters(block: StepExecution) -> dict[str, int]:
    assert block.branches is not None
    return {name: getattr(block.branches, name) for name in ("open", "failed", "dispatched")}
