"""Branches of more than one step: they keep their slot from the first to the last, and may run out of time."""

from typing import Any

import pytest

from orchestrator.engine import codes
from orchestrator.engine.block import fork
from orchestrator.engine.decision import Decision, Fork, SendTask, Ticket, Verdict
from orchestrator.engine.inputs import (
    AttemptOverdue,
    BlockDrained,
    BranchArrived,
    RetryDue,
    SlotsFree,
    StepEnded,
    StepReached,
    TaskReported,
)
from orchestrator.engine.plan import Plan
from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import RunState
from schemas.references import StepOutcome
from schemas.statuses import ReportStatus, StepStatus
from tests.unit.orchestrator.engine.scene import (
    NOW,
    RUN,
    TASK,
    after,
    agent,
    before_fork,
    block_row,
    counted_ids,
    decided,
    known,
    plan_of,
    report,
    step_row,
)

COMPLETED, FAILED = ReportStatus.COMPLETED, ReportStatus.FAILED


def forked_plan(**config: Any) -> Plan:
    """Return the plan of a block with the branches left (a1, a2, a3) and right (b1)."""
    branches = {"left": {"steps": ["a1", "a2", "a3"]}, "right": {"steps": ["b1"], "timeout_seconds": 7.0}}
    steps = {
        "a1": agent(),
        "a2": agent(input_mapping={"before": "${a1.output}"}),
        "a3": agent(retry={"max_attempts": 2, "initial_interval_seconds": 5, "jitter": False}),
        "b1": agent(),
    }
    block = {"type": "fork_join", "fork_join_config": {"branches": branches, **config}, "next_step": "after"}
    return plan_of(block=block, **steps, after=agent())


def row(step_id: str, status: StepStatus = StepStatus.RUNNING, **fields: Any) -> StepExecution:
    name = "left" if step_id.startswith("a") else "right"
    place = {"position": 0 if name == "left" else 1, "ordinal": int(step_id[1]) - 1}
    return step_row(step_id, status, **({"parent_step_id": "block", "branch_name": name} | place | fields))


def two(**counters: Any) -> StepExecution:
    return block_row(**({"total": 2, "open": 2} | counters))


def ended(state: RunState, status: ReportStatus) -> Decision:
    return decided(state, TaskReported(report(status)))


def test_only_the_first_steps_have_rows_at_first() -> None:
    plan = forked_plan()
    rows = [step for step, _ in fork(before_fork(plan), Fork("block"), NOW, counted_ids())]
    assert [(step.step_id, step.branch_name, step.position, step.branch_due_at) for step in rows] == [
        ("a1", "left", 0, None),
        ("b1", "right", 1, after(7)),
    ]


def test_a_step_that_another_follows_leaves_its_block_alone() -> None:
    decision = ended(known(two(), row("a1"), plan=forked_plan()), COMPLETED)
    assert [step.step_id for step in decision.steps] == ["a1"]
    assert (decision.then, decision.released) == ((StepEnded(RUN, "a1"),), None)


def test_the_next_step_of_a_branch_sees_the_one_before_and_has_what_is_left_of_its_time() -> None:
    state = known(two(), row("a1", StepStatus.COMPLETED, branch_due_at=after(30)), plan=forked_plan())
    assert decided(state, StepEnded(RUN, "a1")).then == (StepReached(RUN, "a2", after="a1"),)
    state.outcomes["a1"] = StepOutcome(StepStatus.COMPLETED, {"said": "one"}, None)
    decision = decided(state, StepReached(RUN, "a2", after="a1"), after(1))
    (step,) = decision.steps
    assert (step.input, step.status, step.ordinal) == ({"before": {"said": "one"}}, StepStatus.QUEUED, 1)
    assert (step.branch_due_at, step.due_at) == (after(30), after(30))
    assert decision.sends == (SendTask(step),)


@pytest.mark.parametrize(
    ("step_id", "end", "failed"), [("a3", COMPLETED, 0), ("a1", FAILED, 1), ("a2", FAILED, 1), ("b1", COMPLETED, 0)]
)
def test_a_branch_is_over_with_its_last_step_or_with_one_that_failed(
    step_id: str, end: ReportStatus, failed: int
) -> None:
    block = two(max_parallelism=1, dispatched=1, passed=1)
    decision = ended(known(block, row(step_id), plan=forked_plan(max_parallelism=1)), end)
    counted = decision.steps[1].branches
    assert counted is not None
    assert (counted.open, counted.failed, counted.dispatched) == (1, failed, 0)
    assert decision.released == Ticket("block", "a1" if step_id.startswith("a") else "b1")
    assert decision.afterwards == SlotsFree(RUN, "block")


def test_a_step_whose_input_cannot_be_made_ends_its_branch_and_frees_its_slot() -> None:
    plan = forked_plan(max_parallelism=1)
    block = two(max_parallelism=1, dispatched=1, passed=1)
    decision = decided(known(block, row("a2", StepStatus.FAILED), plan=plan), StepEnded(RUN, "a2"))
    (counted,) = decision.steps
    assert counted.branches is not None
    assert (counted.branches.open, counted.branches.failed, counted.branches.dispatched) == (1, 1, 0)


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        ([row("a1", StepStatus.COMPLETED), row("a2")], Verdict.DUPLICATE),
        ([row("a1", StepStatus.COMPLETED), row("a2", StepStatus.FAILED)], Verdict.STALE),
        ([row("a1", StepStatus.FAILED)], Verdict.STALE),
        ([row("b1", StepStatus.COMPLETED)], Verdict.STALE),
    ],
)
def test_a_ticket_is_held_while_its_branch_goes_on(rows: list[StepExecution], verdict: Verdict) -> None:
    plan = forked_plan(max_parallelism=1)
    state = known(two(max_parallelism=1, passed=1, dispatched=1), *rows, plan=plan)
    for step_id in plan.steps:
        state.steps.setdefault(step_id, None)
    assert decided(state, BranchArrived(RUN, "block", rows[0].step_id)).verdict is verdict


@pytest.mark.parametrize("status", [StepStatus.QUEUED, StepStatus.RUNNING])
def test_a_branch_that_takes_too_long_fails_with_the_step_that_is_open(status: StepStatus) -> None:
    late = row("a3", status, branch_due_at=NOW, due_at=NOW, branch_timeout_seconds=4.0)
    decision = decided(known(two(open=1), late, plan=forked_plan()), AttemptOverdue(RUN, "a3", TASK))
    step = decision.steps[0]
    assert step.error is not None
    assert (step.status, step.error.code) == (StepStatus.FAILED, codes.BRANCH_TIMEOUT)
    assert step.error.message == 'branch "left" took longer than its timeout of 4 s'
    assert decision.then == (BlockDrained(RUN, "block"),)


@pytest.mark.parametrize(("ready_at", "ready"), [(None, 0), (NOW, 1)], ids=["waits for its time", "waits for a slot"])
def test_a_branch_may_run_out_of_time_while_its_step_waits_to_be_tried_again(ready_at: Any, ready: int) -> None:
    block = two(max_parallelism=1, passed=2, dispatched=1, ready=ready)
    late = row("a3", StepStatus.PENDING, branch_due_at=NOW, due_at=NOW, ready_at=ready_at, branch_timeout_seconds=4.0)
    decision = decided(known(block, late, plan=forked_plan(max_parallelism=1)), RetryDue(RUN, "a3"))
    step, counted = decision.steps
    assert counted.branches is not None
    assert (step.status, step.due_at, step.ready_at) == (StepStatus.FAILED, None, None)
    assert (counted.branches.open, counted.branches.dispatched, counted.branches.ready) == (1, 1, 0)


def test_the_next_attempt_does_not_outlive_its_branch() -> None:
    step = row("a3", branch_due_at=after(3), branch_timeout_seconds=4.0)
    waiting = ended(known(two(), step, plan=forked_plan()), FAILED).steps[0]
    assert (waiting.status, waiting.due_at) == (StepStatus.PENDING, after(3))
