"""One run, and everything around the core: the queues, the workers, the clients and the clock.

A world commits transactions, keeps the messages that they sent, and knows what may happen next: what is due, and also
what comes too early, too late, twice, or from nobody.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

from orchestrator.engine import codes
from orchestrator.engine.compilation import compile_plan
from orchestrator.engine.decision import (
    Decision,
    Send,
    SendCancellation,
    SendCancelRun,
    SendResult,
    SendTask,
    SendTicket,
    Verdict,
)
from orchestrator.engine.executions import execution_id, iterations_of, step_of
from orchestrator.engine.inputs import (
    AttemptOverdue,
    BranchArrived,
    ChildEnded,
    ChildStarted,
    ExternalInput,
    Input,
    RetryDue,
    RetryRequested,
    RunOverdue,
    RunRequested,
    SlotsFree,
    TaskReported,
    TaskUndeliverable,
)
from orchestrator.engine.moment import Moment
from orchestrator.engine.records import ReplyAddress, StepExecution
from schemas.messages import AgentError, AgentResult, ErrorInfo, RunResult
from schemas.statuses import ReportStatus, ResultStatus, RunStatus, StepStatus
from schemas.validation import parse_workflow
from tests.property.cases import INPUT, LONG, Behaviour, Case, lanes, said
from tests.property.transaction import EARLIER, RUN, Effects, Rows, Transaction

NOBODYS_TASK = UUID(int=2)
ANOTHER = "another digest"
ENDS = {Behaviour.COMPLETES: ReportStatus.COMPLETED, Behaviour.FAILS: ReportStatus.FAILED}


class World:
    """A run and all that happens to it."""

    def __init__(self, case: Case, earlier: "World | None" = None) -> None:
        """Make a world in which nothing has happened.

        Args:
            case: The workflow, and what its agents do.
            earlier: Another one, whose run has ended, where this run is its retry.
        """
        self.case = case
        self.rows = Rows()
        self.earlier = earlier.rows if earlier is not None else None
        self.kept: set[str] = set()  # steps that were taken over as they ended
        self.tasks: dict[str, UUID] = {}  # sent to agents, by step
        self.tickets: list[str] = []  # sent to gates
        self.arrived: set[str] = set()  # tickets that reached the holder of the gate
        self.held: set[str] = set()  # those that it has not acked
        self.accepted: Counter[str] = Counter()  # ends of attempts that had an effect, by step
        self.retried: Counter[str] = Counter()  # attempts that were followed by another, by step
        self.told: defaultdict[str, list[StepStatus]] = defaultdict(list)
        self.children: dict[UUID, str] = {}  # runs that were asked for, with the steps that they carry out
        self.ended_children: list[UUID] = []  # those whose end had an effect
        self.stopped_children: list[UUID] = []
        self.results: list[SendResult] = []
        self.cancellations: list[SendCancellation] = []
        self.to_be_told: list[ReplyAddress] = []  # where a result must go, in that order
        self.now = earlier.now if earlier is not None else datetime(2026, 1, 1, tzinfo=UTC)
        self._plan = replace(compile_plan(parse_workflow(case.document)), timeout_seconds=LONG)
        self._ids = count(100)
        self._replies = count(1)
        self._asked_last: list[ReplyAddress] = []

    def __str__(self) -> str:
        run = self.rows.run
        steps = (f"{step.step_id} {step.status}" for step in self.rows.steps.values())
        return f"the run is {run and run.status}; {', '.join(steps)}"

    @property
    def is_stopped(self) -> bool:
        """Whether the run was ended before its steps were."""
        run = self.rows.run
        timed_out = run is not None and run.error is not None and run.error.code == codes.RUN_TIMEOUT
        return timed_out or (run is not None and run.status is RunStatus.CANCELLED)

    @property
    def is_over(self) -> bool:
        return self.rows.run is not None and self.rows.run.status.is_final

    @property
    def may_be_retried(self) -> bool:
        return self.rows.run is not None and self.rows.run.status in {RunStatus.FAILED, RunStatus.CANCELLED}

    def branches(self, block_id: str) -> list[StepExecution]:
        """Return of each branch of a block the step that it has got to."""
        rows = (step for step in self.rows.branches(block_id) if step.status is not StepStatus.SKIPPED)
        return list({step.position: step for step in rows}.values())

    def block_of(self, step_id: str) -> StepExecution:
        block_id = self.rows.steps[step_id].parent_step_id
        assert block_id is not None, f"{step_id} is a step of a branch"
        return self.rows.steps[block_id]

    def ticket_of(self, step: StepExecution) -> str:
        """Return the id that stands on the ticket of a branch: that of its first step."""
        assert step.parent_step_id is not None
        block = self.case.step(step.parent_step_id)
        lane = lanes(block)["body" if "loop_config" in block else str(step.branch_name)]
        return execution_id(lane[0], iterations_of(step.step_id))

    def deliver(self, inputs: Sequence[ExternalInput]) -> None:
        """Decide *inputs* in one transaction, and commit it."""
        self.now += timedelta(seconds=1)
        transaction = Transaction(
            self.rows, self._plan, Moment(self.now, lambda: UUID(int=next(self._ids)), lambda: 0.5), self.earlier
        )
        transaction.decide_all(inputs)
        before, self.rows = self.rows, transaction.rows
        self._check_final(before)
        self._take(transaction.effects)
        self._take_requests(transaction.effects)

    def finish(self) -> None:
        """Let what is due happen, one after the other, until the run is over."""
        for _ in range(60 * len(self.case.steps)):
            if self.is_over:
                return
            self.now += timedelta(seconds=60)
            self.deliver([next(self._due())])
        raise AssertionError(f"the run goes on for ever: {self}")

    def _due(self) -> Iterator[ExternalInput]:
        for step_id in self.open_tasks():
            yield self.end(step_id)
        for step in self.rows.steps.values():
            if step.status is StepStatus.PENDING and step.due_at is not None:
                yield RetryDue(RUN, step.step_id)
        for block in self.rows.steps.values():
            # Every ticket was lost. Once one has arrived, branches that end hand their slots on.
            if block.status is not StepStatus.RUNNING or block.branches is None:
                continue
            if block.branches.is_gated and block.branches.passed == 0:
                yield SlotsFree(RUN, block.step_id)
        raise AssertionError(f"nothing is due, and the run is not over: {self}")

    def _check_final(self, before: Rows) -> None:
        for step in before.steps.values():
            if step.status.is_final:
                assert self.rows.steps[step.step_id] == step, f"{step.step_id} was {step.status} and changed"
        if before.run is not None and before.run.status.is_final:
            assert self.rows.run == before.run, "the run had ended and changed"

    def _take(self, effects: Effects) -> None:
        self.retried.update(effects.retried)  # first: the next attempt may start in the same transaction
        for send in effects.sent:
            self._send(send)
        self.kept |= {one.after.step_id for one in effects.taken_over if not one.is_done_again}
        for step_id, status in effects.told:
            self.told[step_id].append(status)
        for event, decision in effects.answers:
            self._answered(event, decision)
        self.held -= set(effects.released)

    def _take_requests(self, effects: Effects) -> None:
        """Of those who asked before the run ended the last one is told, then everybody who asks after it."""
        self._asked_last = [*self._asked_last, *effects.asked_before_the_end][-1:]
        if self.is_over:
            self.to_be_told += [*self._asked_last, *effects.asked_after_the_end]
            self._asked_last = []

    def _send(self, send: Send) -> None:
        match send:
            case SendTask(step):
                assert step.task_id is not None
                sent = step.attempt - 1 if step.step_id in self.tasks else 0
                assert sent == self.retried[step.step_id], f"attempt {step.attempt} of {step.step_id} is sent twice"
                self.tasks[step.step_id] = step.task_id
                if step.child_run_id is not None:
                    self.children[step.child_run_id] = step.step_id
            case SendTicket(step):
                assert step.step_id not in self.tickets, f"{step.step_id} is sent to its gate twice"
                self.tickets.append(step.step_id)
            case SendResult():
                self.results.append(send)
            case SendCancellation():
                self.cancellations.append(send)
            case SendCancelRun(run_id):
                self.stopped_children.append(run_id)

    def _answered(self, event: Input, decision: Decision) -> None:
        applied = decision.verdict is Verdict.APPLIED
        match event:
            case BranchArrived():
                self.arrived.add(event.step_id)
                is_held = decision.verdict is not Verdict.STALE
                self.held = self.held | {event.step_id} if is_held else self.held - {event.step_id}
            case TaskReported(report) if applied and report.status.ends_attempt:
                self.accepted[decision.steps[0].step_id] += 1
            case ChildEnded() if applied:
                self.accepted[decision.steps[0].step_id] += 1
                self.ended_children.append(event.task_id)
            case AttemptOverdue() | TaskUndeliverable() if applied:
                self.accepted[event.step_id] += 1
            case RunRequested() | RetryRequested():
                assert (decision.verdict is Verdict.REJECTED) == (event.request_digest == ANOTHER)
            case _:
                pass

    # What may happen

    def request(self, *, reply: bool, digest: str = "digest") -> RunRequested:
        """Return the client's request; each one that wants a reply has an address of its own."""
        return RunRequested(
            run_id=RUN,
            definition_id="d-1",
            workflow_id="case",
            workflow_version="1.0",
            request_digest=digest,
            input=INPUT,
            labels={},
            reply=ReplyAddress(f"replies-{next(self._replies)}", None) if reply else None,
        )

    def retry(self, *, reply: bool, digest: str = "digest") -> RetryRequested:
        """Return the client's request to retry the earlier run."""
        return RetryRequested(
            run_id=RUN,
            retry_of=EARLIER,
            request_digest=digest,
            reply=ReplyAddress(f"replies-{next(self._replies)}", None) if reply else None,
        )

    def open_tasks(self) -> list[str]:
        """Return the steps whose tasks were sent and have not ended."""
        return [
            step_id for step_id in self.tasks if self.rows.steps[step_id].task_id is not None and self._open(step_id)
        ]

    def _open(self, step_id: str) -> bool:
        return not self.rows.steps[step_id].status.is_final

    def possible(self) -> Mapping[str, ExternalInput]:
        """Return by a short name what may happen now, whether it makes sense or not."""
        happenings: dict[str, ExternalInput] = {}
        for step_id, task_id in self.tasks.items():
            happenings |= self._of_task(step_id, task_id)
            happenings[f"{step_id} again"] = RetryDue(RUN, step_id)
        for step_id in self.tickets:
            block_id = self.rows.steps[step_id].parent_step_id
            assert block_id is not None
            happenings[f"ticket of {step_id}"] = BranchArrived(RUN, block_id, step_id)
            happenings[f"slots of {block_id}"] = SlotsFree(RUN, block_id)
        for step in self.rows.steps.values():
            if step.status is StepStatus.PENDING and step.due_at is not None:
                happenings[f"{step.step_id} again"] = RetryDue(RUN, step.step_id)
        happenings["the run overdue"] = RunOverdue(RUN)
        happenings["requested again"] = self.request(reply=False)
        happenings["requested again with a reply address"] = self.request(reply=True)
        happenings["retried"] = self.retry(reply=True)
        happenings["another request with the same id"] = self.request(reply=True, digest=ANOTHER)
        return happenings

    def end(self, step_id: str) -> ExternalInput:
        """Return what ends the attempt of a step as its agent behaves, or comes a step nearer to it."""
        task_id, row = self.tasks[step_id], self.rows.steps[step_id]
        if step_of(step_id) in self.case.delegated:
            return self._end_of_child(step_id, task_id)
        match self.case.behaviour_of(step_id, row.attempt):
            case Behaviour.IS_MISSING:
                return TaskUndeliverable(RUN, step_id, task_id, codes.UNKNOWN_AGENT)
            case Behaviour.IS_IGNORED:
                return AttemptOverdue(RUN, step_id, task_id)
            case Behaviour.HANGS if row.status is StepStatus.QUEUED:
                return self._report(ReportStatus.STARTED, task_id)
            case Behaviour.HANGS:
                return AttemptOverdue(RUN, step_id, task_id)
            case behaviour:
                return self._report(ENDS[behaviour], task_id, output=said(step_id, row.input))

    def _end_of_child(self, step_id: str, task_id: UUID) -> ExternalInput | ChildStarted:
        row = self.rows.steps[step_id]
        match self.case.behaviour_of(step_id, row.attempt):
            case Behaviour.HANGS if row.status is StepStatus.QUEUED:
                return ChildStarted(RUN, task_id)
            case Behaviour.HANGS:
                return AttemptOverdue(RUN, step_id, task_id)
            case Behaviour.COMPLETES:
                return _ended(ResultStatus.COMPLETED, task_id, output=said(step_id, row.input))
            case _:
                return _ended(ResultStatus.FAILED, task_id)

    def _of_child(self, step_id: str, task_id: UUID) -> dict[str, ExternalInput | ChildStarted]:
        row = self.rows.steps[step_id]
        happenings: dict[str, ExternalInput | ChildStarted] = {
            f"end of somebody's run for {step_id}": _ended(ResultStatus.COMPLETED, NOBODYS_TASK),
            f"{step_id} overdue": AttemptOverdue(RUN, step_id, task_id),
            f"run of {step_id} starts": ChildStarted(RUN, task_id),
            f"{step_id} reported by a worker": self._report(ReportStatus.COMPLETED, task_id),
        }
        if row.status.is_final or row.task_id is None:
            return happenings | {f"{step_id} {status} too late": _ended(status, task_id) for status in ResultStatus}
        return happenings | {f"{step_id} {self.case.behaviour_of(step_id, row.attempt)}": self.end(step_id)}

    def _of_task(self, step_id: str, task_id: UUID) -> dict[str, ExternalInput]:
        if step_of(step_id) in self.case.delegated:
            return self._of_child(step_id, task_id)
        row = self.rows.steps[step_id]
        happenings: dict[str, ExternalInput] = {
            f"result of {step_id} with a wrong task id": self._report(ReportStatus.COMPLETED, NOBODYS_TASK),
        }
        may_be_late = self.case.behaviour_of(step_id, row.attempt) in {Behaviour.HANGS, Behaviour.IS_IGNORED}
        if may_be_late or row.due_at is None or row.due_at > self.now + timedelta(minutes=1):  # others answer in time
            happenings[f"{step_id} overdue"] = AttemptOverdue(RUN, step_id, task_id)
        if row.status.is_final or row.task_id is None:
            happenings |= {f"{step_id} {status} too late": self._report(status, task_id) for status in ReportStatus}
        else:
            happenings[f"{step_id} {self.case.behaviour_of(step_id, row.attempt)}"] = self.end(step_id)
        if row.status is not StepStatus.QUEUED:
            happenings[f"{step_id} undeliverable too late"] = TaskUndeliverable(
                RUN, step_id, task_id, codes.UNKNOWN_AGENT
            )
        if self.case.behaviour_of(step_id, row.attempt) not in {Behaviour.IS_MISSING, Behaviour.IS_IGNORED}:
            for worker in ("w1", "w2"):
                happenings[f"{step_id} started by {worker}"] = self._report(ReportStatus.STARTED, task_id, worker)
            happenings[f"{step_id} alive"] = self._report(ReportStatus.HEARTBEAT, task_id)
        return happenings

    def _report(self, status: ReportStatus, task_id: UUID, worker_id: str = "w1", output: Any = None) -> TaskReported:
        failed = status is ReportStatus.FAILED
        report = AgentResult(
            task_id=task_id,
            run_id=RUN,
            status=status,
            output=None if failed else output,
            error=AgentError(type="ValueError", message="no luck") if failed else None,
            worker_id=worker_id,
            started_at=self.now,
        )
        return TaskReported(report)


def _ended(status: ResultStatus, task_id: UUID, output: Any = None) -> ChildEnded:
    error = ErrorInfo(code="step_failed", message="no luck") if status is not ResultStatus.COMPLETED else None
    return ChildEnded(RUN, task_id, RunResult(run_id=task_id, status=status, output=output, error=error))
