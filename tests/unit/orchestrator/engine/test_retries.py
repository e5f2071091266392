"""A failed attempt is followed by another, or it is not; and a step that waits holds no slot."""

from datetime import timedelta
from typing import Any

import pytest

from orchestrator.engine import codes
from orchestrator.engine.decide import apply
from orchestrator.engine.decision import SendTask, Verdict
from orchestrator.engine.events import step_changes
from orchestrator.engine.inputs import AttemptOverdue, RetryDue, SlotsFree, TaskReported, TaskUndeliverable
from orchestrator.engine.moment import Moment
from orchestrator.engine.plan import AgentPlan, Plan, RetryPolicy
from orchestrator.engine.retries import Failure, pause_after
from orchestrator.engine.state import RunState, Wanted
from schemas.messages import AgentError, ErrorInfo
from schemas.statuses import ReportStatus, StepStatus
from tests.unit.orchestrator.engine.scene import (
    NOW,
    RUN,
    TASK,
    agent,
    answer,
    block_row,
    branch_row,
    counted_ids,
    decided,
    known,
    parallel,
    plan_of,
    report,
    step_row,
)

COMPLETED, FAILED, PENDING, QUEUED = StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.PENDING, StepStatus.QUEUED
RUNNING = StepStatus.RUNNING
MOMENT = Moment(NOW, counted_ids(), lambda: 0.0)
THRICE = {"max_attempts": 3, "initial_interval_seconds": 10, "jitter": False}
DUE = RetryDue(RUN, "step")


def policy(**retry: Any) -> RetryPolicy:
    return planned(plan_of(step=agent(retry=THRICE | retry)))


def older(**strategy: Any) -> RetryPolicy:
    return planned(plan_of(step=agent(retry_strategy=strategy)))


def planned(plan: Plan) -> RetryPolicy:
    step = plan.steps["step"]
    assert isinstance(step, AgentPlan)
    assert step.retry is not None
    return step.retry


def alone(**fields: Any) -> RunState:
    """Return a run whose only step may be tried three times and is in an attempt."""
    return known(step_row(**fields), plan=plan_of(step=agent(retry=THRICE)))


def gated(*rows: Any, **counters: Any) -> RunState:
    """Return a run with a block of three branches, one at a time, that may be tried three times."""
    plan = plan_of(block=parallel("a", "b", "c", max_parallelism=1, retry=THRICE), a=agent(), b=agent(), c=agent())
    return known(block_row(max_parallelism=1, **counters), *rows, plan=plan)


def failed(**error: Any) -> TaskReported:
    given = {"type": "ValueError", "message": "no luck"} | error
    return TaskReported(report(ReportStatus.FAILED, error=AgentError(**given)))


def failure(code: str = codes.AGENT_ERROR, kind: str | None = "ValueError", **fields: Any) -> Failure:
    return Failure(ErrorInfo(code=code, message="no luck"), kind=kind, **fields)


def pauses(policy: RetryPolicy, count: int, *, jitter: float = 0.0) -> list[float]:
    return [policy.pause(attempts, jitter=jitter).total_seconds() for attempts in range(1, count + 1)]


# How long


def test_pauses_grow_by_the_factor_up_to_the_longest() -> None:
    assert pauses(policy(initial_interval_seconds=1, backoff=3, max_interval_seconds=20), 5) == [1, 3, 9, 20, 20]


def test_the_older_form_grows_as_its_type_says() -> None:
    times = {"initial_delay_ms": 500, "max_delay_ms": 1_800, "backoff_multiplier": 2}
    assert pauses(older(**times), 4) == [0.5, 1, 1.8, 1.8]
    assert pauses(older(type="linear_backoff", **times), 4) == [0.5, 1, 1.5, 1.8]
    assert pauses(older(type="fixed_delay", **times), 3) == [0.5, 0.5, 0.5]
    assert pauses(older(type="immediate", **times), 3) == [0, 0, 0]


def test_jitter_shortens_a_pause_by_up_to_its_half() -> None:
    assert pauses(policy(jitter=True), 1, jitter=0.0) == [10]
    assert pauses(policy(jitter=True), 1, jitter=0.5) == [7.5]
    assert pauses(policy(jitter=False), 1, jitter=0.5) == [10]


def test_a_pause_too_long_to_compute_is_the_longest() -> None:
    assert policy(backoff=1_000, max_attempts=1_000).pause(999, jitter=0) == timedelta(seconds=60)


# Whether


def test_attempts_are_counted() -> None:
    assert [pause_after(policy(), failure(), tried, lambda: 0) is not None for tried in (1, 2, 3)] == [
        True,
        True,
        False,
    ]
    assert [pause_after(older(max_retries=1), failure(), tried, lambda: 0) is not None for tried in (1, 2)] == [
        True,
        False,
    ]
    assert pause_after(None, failure(), 1, lambda: 0) is None


@pytest.mark.parametrize("name", ["ValueError", "shop.errors.ValueError", "agent_error"])
def test_errors_that_are_not_to_be_retried_are_told_by_code_or_type(name: str) -> None:
    met = failure(kind="shop.errors.ValueError")
    assert pause_after(policy(non_retryable=[name]), met, 1, lambda: 0) is None
    assert pause_after(policy(non_retryable=["KeyError"]), met, 1, lambda: 0) is not None


def test_the_older_form_may_name_what_is_retried() -> None:
    only = older(retry_on_errors=["ValueError", "timeout"])
    assert pause_after(only, failure(), 1, lambda: 0) is not None
    assert pause_after(only, failure(codes.TIMEOUT, None), 1, lambda: 0) is not None
    assert pause_after(only, failure(kind="KeyError"), 1, lambda: 0) is None


@pytest.mark.parametrize("code", [codes.INVALID_INPUT, codes.PAYLOAD_TOO_LARGE, codes.UNKNOWN_AGENT])
def test_what_another_attempt_cannot_mend_is_not_retried_unless_somebody_says_so(code: str) -> None:
    assert pause_after(policy(), failure(code, None), 1, lambda: 0) is None
    assert pause_after(policy(), failure(code, None, retryable=True), 1, lambda: 0) is not None
    assert pause_after(older(retry_on_errors=[code]), failure(code, None), 1, lambda: 0) is not None


def test_an_agent_may_say_that_another_attempt_cannot_help() -> None:
    assert pause_after(policy(), failure(retryable=False), 1, lambda: 0) is None


def test_an_agent_that_asks_to_be_called_later_is_whatever_the_policy() -> None:
    later = failure(after=timedelta(seconds=7))
    for some in (None, policy(), policy(non_retryable=["ValueError"])):
        assert pause_after(some, later, 99, lambda: 0) == timedelta(seconds=7)


# What becomes of the step


def test_a_failed_attempt_lets_the_step_wait_for_the_next_one_and_goes_into_its_history() -> None:
    state = alone(status=RUNNING, worker_id="w1", started_at=NOW, heartbeat_at=NOW, due_at=NOW)
    decision = decided(state, failed())
    [waiting] = decision.steps
    assert decision.verdict is Verdict.APPLIED
    assert (waiting.status, waiting.attempt, waiting.due_at) == (PENDING, 1, NOW + timedelta(seconds=10))
    assert {waiting.task_id, waiting.worker_id, waiting.started_at, waiting.heartbeat_at, waiting.finished_at} == {None}
    assert waiting.error is None
    ended = decision.ended
    assert ended is not None
    assert (ended.step.task_id, ended.step.worker_id, ended.step.finished_at) == (TASK, "worker-1", NOW)
    assert (ended.error.code, ended.retry_at) == (codes.AGENT_ERROR, waiting.due_at)
    assert not decision.sends
    assert not decision.then


def test_the_type_that_counts_is_that_of_the_exception_whatever_the_details_call_type() -> None:
    plan = plan_of(step=agent(retry=THRICE | {"non_retryable": ["ValueError"]}))
    decision = decided(known(step_row(), plan=plan), failed(details={"type": "of paper"}))
    assert decision.steps[0].status is FAILED


def test_the_last_attempt_fails_the_step() -> None:
    decision = decided(alone(attempt=3), failed())
    assert decision.ended is None
    assert decision.steps[0].status is FAILED


def test_attempts_that_were_put_off_do_not_count() -> None:
    [waiting] = decided(alone(attempt=9, postponed=7), failed()).steps
    assert waiting.status is PENDING
    assert decided(alone(attempt=9, postponed=6), failed()).steps[0].status is FAILED


def test_an_agent_that_asks_to_be_called_later_is_and_that_does_not_count() -> None:
    state = known(step_row(), plan=plan_of(step=agent()))
    [waiting] = decided(state, failed(type="retry_later", retry_after_seconds=30.0)).steps
    assert (waiting.status, waiting.postponed, waiting.due_at) == (PENDING, 1, NOW + timedelta(seconds=30))


def test_attempts_that_time_out_or_cannot_be_delivered_are_retried_too() -> None:
    state = alone(status=RUNNING, timeout_seconds=5.0, due_at=NOW)
    assert decided(state, AttemptOverdue(RUN, "step", TASK)).steps[0].status is PENDING
    lost = TaskUndeliverable(RUN, "step", TASK, codes.WORKER_LOST)
    assert decided(alone(), lost).steps[0].status is PENDING


def test_whatever_is_still_heard_of_the_attempt_is_about_nothing() -> None:
    state = alone()
    apply(state, decided(state, failed()), MOMENT)
    for status in ReportStatus:
        late = decided(state, TaskReported(report(status)))
        assert (late.verdict, late.code) == (Verdict.STALE, codes.UNKNOWN_TASK)
    assert decided(state, AttemptOverdue(RUN, "step", TASK)).verdict is Verdict.STALE


def test_followers_see_the_attempt_run_and_fail_and_the_step_wait() -> None:
    state = alone()
    decision = decided(state, TaskReported(report(ReportStatus.FAILED, started_at=NOW)))
    told = step_changes(state.steps["step"], decision.steps[0], decision.ended)
    assert [(change.status, change.attempt, change.error is not None) for change in told] == [
        (RUNNING, 1, False),
        (PENDING, 1, True),
    ]


# The next attempt


def waiting_row(**fields: Any) -> Any:
    return step_row(status=PENDING, attempt=1, due_at=NOW, **fields)


def test_the_next_attempt_has_a_task_of_its_own() -> None:
    decision = decided(known(waiting_row()), DUE)
    [queued] = decision.steps
    assert (queued.status, queued.attempt, queued.due_at, queued.queued_at) == (QUEUED, 2, None, NOW)
    assert queued.task_id not in {None, TASK}
    assert decision.sends == (SendTask(queued),)


@pytest.mark.parametrize(
    "row",
    [
        None,
        step_row(status=PENDING, attempt=1, due_at=NOW + timedelta(seconds=1)),
        step_row(status=PENDING, attempt=1),
        step_row(due_at=NOW),
        step_row(status=FAILED),
    ],
)
def test_a_step_that_does_not_wait_or_not_any_more_or_whose_time_has_not_come_stays(row: Any) -> None:
    state = known(row) if row is not None else RunState(known().run, steps={"step": None})
    decision = decided(state, DUE)
    assert (decision.verdict, decision.code, decision.steps) == (Verdict.STALE, codes.NOT_WAITING, ())


# Slots


def test_a_waiting_branch_gives_its_slot_to_the_next_in_line() -> None:
    decision = decided(gated(branch_row("a"), dispatched=1, passed=1), failed())
    waiting, block = decision.steps
    assert (waiting.status, block.branches.dispatched, block.branches.open) == (PENDING, 0, 3)
    assert decision.afterwards == SlotsFree(RUN, "block")
    assert decision.released is None, "its ticket is held until the branch has ended"


def test_a_branch_whose_time_has_come_is_ready_and_goes_before_the_line() -> None:
    row = branch_row("a", PENDING, attempt=1, due_at=NOW)
    state = gated(row, dispatched=0, passed=1)
    decision = decided(state, RetryDue(RUN, "a"))
    ready, block = decision.steps
    assert (ready.status, ready.due_at, ready.ready_at, block.branches.ready) == (PENDING, None, NOW, 1)
    assert decision.afterwards == SlotsFree(RUN, "block")
    apply(state, decision, MOMENT)

    wanted = Wanted(ready=frozenset({("block", 1)}))
    assert answer(state, SlotsFree(RUN, "block")) == wanted
    state.put_ready("block", 1, [ready])
    decision = decided(state, SlotsFree(RUN, "block"))
    block, queued = decision.steps
    assert (queued.step_id, queued.status, queued.attempt, queued.ready_at) == ("a", QUEUED, 2, None)
    assert (block.branches.dispatched, block.branches.ready, block.branches.passed) == (1, 0, 1)
    apply(state, decision, MOMENT)
    assert state.ready_again("block", 1) is None, "what was known of it is out of date"


def test_a_branch_that_is_ready_waits_while_all_slots_are_taken() -> None:
    state = gated(branch_row("b"), dispatched=1, passed=2, ready=1)
    assert decided(state, SlotsFree(RUN, "block")).code == codes.NO_FREE_SLOT


def test_slots_that_the_ready_ones_leave_go_to_the_line() -> None:
    plan = plan_of(block=parallel("a", "b", "c", max_parallelism=2, retry=THRICE), a=agent(), b=agent(), c=agent())
    state = known(block_row(max_parallelism=2, passed=1, ready=1), plan=plan)
    asked = answer(state, SlotsFree(RUN, "block"))
    assert asked == Wanted(ready=frozenset({("block", 1)}), waiting=frozenset({("block", 1, 1)}))
