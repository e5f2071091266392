"""Every input meets every status: it always has a verdict, nothing raises, and what is final stays as it is."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.engine.compilation import compile_plan
from orchestrator.engine.decide import apply, decide
from orchestrator.engine.decision import Decision, Verdict
from orchestrator.engine.inputs import (
    AttemptOverdue,
    BranchArrived,
    CancelRequested,
    ExternalInput,
    RetryDue,
    RetryRequested,
    RunOverdue,
    RunRequested,
    SlotsFree,
    TaskMissing,
    TaskReported,
    TaskUndeliverable,
)
from orchestrator.engine.moment import Moment
from orchestrator.engine.records import Branches, ReplyAddress, Run, StepExecution
from orchestrator.engine.state import EarlierRun, Line, RunState, RunValues, Wanted
from schemas.messages import AgentError, AgentResult, ErrorInfo
from schemas.statuses import ReportStatus, RunStatus, StepStatus
from schemas.validation import parse_workflow
from schemas.worker_codes import WorkerErrorCode

RUN, TASK, OTHER_TASK, EARLIER = UUID(int=1), UUID(int=2), UUID(int=3), UUID(int=4)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLAN = compile_plan(
    parse_workflow(
        {
            "name": "sample",
            "start_step": "block",
            "steps": {
                "block": {"type": "parallel", "parallel_steps": ["a", "b", "c"], "next_step": "alone"},
                **{name: {"agent_name": "x"} for name in ("a", "b", "c", "alone")},
                "a": {"agent_name": "x", "retry": {"max_attempts": 2}},
            },
            "timeout_seconds": 30.0,
        }
    )
)
ERROR = ErrorInfo(code="agent_error", message="no luck")

TIMES = st.sampled_from([NOW - timedelta(days=1), NOW, NOW + timedelta(days=1)])
REPLIES = st.none() | st.just(ReplyAddress("replies", "c-1"))
VALUES = st.sampled_from([None, {"n": 1}, ["x"], 0, ""])
WORKERS = st.sampled_from(["worker-1", "worker-2"])


# States


@st.composite
def rows(draw: st.DrawFn, status: StepStatus, step_id: str, parent: str | None) -> StepExecution:
    """Draw the row of an agent step, as far as its status allows."""
    sent = status not in {StepStatus.PENDING, StepStatus.SKIPPED}
    return StepExecution(
        run_id=RUN,
        step_id=step_id,
        status=status,
        parent_step_id=parent,
        agent_name="x",
        attempt=int(sent),
        task_id=TASK if sent else None,
        worker_id=draw(WORKERS) if sent and status is not StepStatus.QUEUED else None,
        timeout_seconds=5.0,
        queue_timeout_seconds=7.0,
        heartbeat_timeout_seconds=draw(st.none() | st.just(4.0)),
        created_at=NOW,
        heartbeat_at=draw(st.none() | TIMES) if status is StepStatus.RUNNING else None,
        due_at=draw(st.none() | TIMES) if not status.is_final else None,
        error=ERROR if status is StepStatus.FAILED else None,
    )


@st.composite
def blocks(draw: st.DrawFn, branch: StepExecution) -> StepExecution:
    """Draw the row of a block of three that fits its branch: it is open as long as one of them is."""
    statuses = [StepStatus.RUNNING] if not branch.status.is_final else list(StepStatus)[2:]
    status = draw(st.sampled_from(statuses))
    limit = draw(st.sampled_from([None, 1, 2, 3]))
    is_gated = limit is not None and limit < 3
    taken = int(branch.is_dispatched) if is_gated else 0
    waits = branch.status is StepStatus.PENDING
    return StepExecution(
        run_id=RUN,
        step_id="block",
        status=status,
        branches=Branches(
            total=3,
            open=draw(st.integers(1, 3)) if not status.is_final else 0,
            failed=draw(st.integers(0, 1)),
            dispatched=draw(st.integers(taken, limit)) if is_gated and limit is not None else 0,
            passed=0 if waits or not is_gated else draw(st.integers(taken, 3)),
            max_parallelism=limit,
        ),
        error=ERROR if status is StepStatus.FAILED else None,
    )


@st.composite
def states(draw: st.DrawFn, status_of_step: StepStatus) -> RunState:
    """Draw what is known of a run with a step of its own, or with a block and one of its branches."""
    status = draw(st.sampled_from(RunStatus))
    due_at = draw(st.none() | TIMES) if not status.is_final else None
    fields = {"definition_id": "d-1", "workflow_id": "case", "request_digest": "digest", "started_at": NOW}
    run = Run(id=RUN, status=status, reply=draw(REPLIES), due_at=due_at, **fields)
    state = RunState(draw(st.sampled_from([run, None])), plan=PLAN, run_values=RunValues({}, None, None))
    branch = draw(rows(status_of_step, "a", "block"))
    block = draw(blocks(branch))
    for row in draw(st.sampled_from([(block, branch), (draw(rows(status_of_step, "alone", None)),)])):
        state.put_step(row)
    for step_id in ("block", "a", "alone"):
        state.steps.setdefault(step_id, None)
    for task_id in (TASK, OTHER_TASK):
        state.tasks.setdefault(task_id, None)
    earlier = replace(run, id=EARLIER, status=draw(st.sampled_from(RunStatus)))
    state.earlier[EARLIER] = draw(st.sampled_from([EarlierRun(earlier, "alone"), None]))
    assert block.branches is not None
    line = (branch,) if branch.status is StepStatus.PENDING else ()
    state.waiting["block"] = Line(block.branches.passed, 3, line)
    return state


# Inputs


@st.composite
def reports(draw: st.DrawFn, status: ReportStatus) -> TaskReported:
    error = AgentError(
        type=draw(st.sampled_from(["ValueError", *WorkerErrorCode])),
        message="no luck",
        details=draw(st.none() | st.just({"type": "mine"})),
    )
    return TaskReported(
        AgentResult(
            task_id=draw(st.sampled_from([TASK, OTHER_TASK])),
            run_id=RUN,
            status=status,
            output=draw(VALUES),
            error=error if status is ReportStatus.FAILED else None,
            worker_id=draw(WORKERS),
            started_at=draw(st.none() | TIMES),
            finished_at=draw(st.none() | TIMES),
        )
    )


STEPS = st.sampled_from(["a", "alone"])
TASKS = st.sampled_from([TASK, OTHER_TASK])
INPUTS: dict[str, st.SearchStrategy[ExternalInput]] = {
    **{f"report {status}": reports(status) for status in ReportStatus},
    "overdue": st.builds(AttemptOverdue, st.just(RUN), STEPS, TASKS),
    "retry due": st.builds(RetryDue, st.just(RUN), STEPS),
    "run overdue": st.builds(RunOverdue, st.just(RUN)),
    "undeliverable": st.builds(TaskUndeliverable, st.just(RUN), STEPS, TASKS),
    "missing": st.builds(TaskMissing, st.just(RUN), STEPS, TASKS, st.just(NOW) | TIMES),
    "ticket": st.builds(BranchArrived, st.just(RUN), st.just("block"), STEPS),
    "slots": st.builds(SlotsFree, st.just(RUN), st.sampled_from(["block", "alone"])),
    "cancel": st.builds(CancelRequested, st.just(RUN), st.none() | st.just("enough")),
    "retry": st.builds(
        RetryRequested,
        run_id=st.just(RUN),
        retry_of=st.just(EARLIER),
        request_digest=st.sampled_from(["digest", "another"]),
        reply=REPLIES,
    ),
    "request": st.builds(
        RunRequested,
        run_id=st.just(RUN),
        definition_id=st.just("d-1"),
        workflow_id=st.just("sample"),
        workflow_version=st.just("1.0"),
        request_digest=st.sampled_from(["digest", "another"]),
        input=VALUES,
        labels=st.just({}),
        reply=REPLIES,
    ),
}


@pytest.mark.parametrize("happens", INPUTS)
@pytest.mark.parametrize("status", StepStatus)
@settings(max_examples=25, derandomize=True, deadline=None)
@given(data=st.data())
def test_every_input_has_a_verdict_at_every_status_and_takes_effect_at_most_once(
    status: StepStatus, happens: str, data: st.DataObject
) -> None:
    state = data.draw(states(status), "state")
    event = data.draw(INPUTS[happens], "input")
    before = known(state)

    decision = ask(state, event)
    assert known(state) == before, "deciding changes nothing"
    check_verdict(decision)

    apply(state, decision, MOMENT)
    check_final(before, state)
    check_counters(state)

    after = known(state)
    again = ask(state, event)
    apply(state, again, MOMENT)
    check_repeated(event, again)
    assert statuses(known(state)) == statuses(after), "the second time no status changes"


Known = tuple[Run | None, dict[str, StepExecution | None]]


def known(state: RunState) -> Known:
    return state.run, dict(state.steps)


def statuses(known: Known) -> tuple[RunStatus | None, dict[str, StepStatus]]:
    run, steps = known
    return run.status if run is not None else None, {
        step_id: row.status for step_id, row in steps.items() if row is not None
    }


def ask(state: RunState, event: ExternalInput) -> Decision:
    answer = decide(state, event, MOMENT)
    assert not isinstance(answer, Wanted), f"everything is known: {answer}"
    return answer


def check_verdict(decision: Decision) -> None:
    if decision.verdict in {Verdict.STALE, Verdict.NOT_YET, Verdict.REJECTED}:
        assert decision.code, "why it was not applied must be told"
    if decision.verdict is not Verdict.APPLIED:
        assert not decision.steps
        assert not decision.then
        assert not decision.cancels_open_steps


def check_final(before: Known, state: RunState) -> None:
    run, steps = before
    if run is not None and run.status.is_final:
        assert state.run == run
    for step_id, row in steps.items():
        if row is not None and row.status.is_final:
            assert state.steps[step_id] == row


def check_counters(state: RunState) -> None:
    block = state.steps["block"]
    if block is not None and block.branches is not None:
        assert 0 <= block.branches.open <= block.branches.total
        assert 0 <= block.branches.dispatched <= (block.branches.max_parallelism or 0)


def check_repeated(event: ExternalInput, again: Decision) -> None:
    """As when a batch is decided once more because nobody knows whether its COMMIT succeeded."""
    assert again.created_run is None
    assert not again.then
    is_sign_of_life = isinstance(event, TaskReported) and not event.report.status.ends_attempt
    if not is_sign_of_life:
        assert again.verdict is not Verdict.APPLIED


_ids = count(100)
_LATER = NOW + timedelta(seconds=1)  # whatever was heard of came before
MOMENT = Moment(_LATER, lambda: UUID(int=next(_ids)), lambda: 0.5)
