"""Rows: what columns hold. Values of type JSON are text, as Postgres keeps them, so that nobody shares an object."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from uuid import UUID

from orchestrator.engine.agent_limit import AgentLimit, Bucket
from orchestrator.engine.inputs import RunRequested
from orchestrator.engine.records import Branches, Run, StepExecution
from orchestrator.storage.changes import OutboxRow
from orchestrator.storage.dead_letters import NewDeadLetter
from orchestrator.storage.rows import to_error, to_value
from schemas.codec import dump_json
from schemas.statuses import RunStatus, StepStatus

StepKey = tuple[UUID, str]

ATTEMPT_OPEN: Final = frozenset({StepStatus.QUEUED, StepStatus.RUNNING})


@dataclass(frozen=True, slots=True)
class StepRow:
    """A row of step_executions: the record without its JSON columns, and those."""

    record: StepExecution
    input: str | None
    output: str | None
    error: str | None

    @property
    def key(self) -> StepKey:
        """Its primary key."""
        return self.record.run_id, self.record.step_id

    @property
    def has_open_attempt(self) -> bool:
        """Whether its task is with the broker or with a worker."""
        return self.record.status in ATTEMPT_OPEN and self.record.agent_name is not None

    def step(self, *, with_input: bool = False) -> StepExecution:
        """Return the record as a decision sees it."""
        if self.error is None and not with_input:
            return self.record
        return self.record._replace(input=to_value(self.input) if with_input else None, error=to_error(self.error))

    def cancelled(self, now: datetime) -> "StepRow":
        """Return what a cancelled run makes of it."""
        branches = self.record.branches
        if branches is not None:
            branches = branches._replace(open=0, dispatched=0, ready=0)
        ended = {"status": StepStatus.CANCELLED, "finished_at": now, "due_at": None, "ready_at": None}
        return replace(self, record=self.record._replace(branches=branches, **ended))


@dataclass(frozen=True, slots=True)
class EndedRow:
    """A row of step_attempts."""

    task_id: UUID | None
    worker_id: str | None
    error: str
    finished_at: datetime | None
    retry_at: datetime


@dataclass(frozen=True, slots=True)
class RunRow:
    """A row of runs: the record without its JSON columns, and those that somebody reads."""

    record: Run
    input: str | None
    output: str | None
    error: str | None

    def run(self) -> Run:
        """Return the record with its error, for oracles; decisions never see that."""
        return self.record if self.error is None else replace(self.record, error=to_error(self.error))


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """A row of outbox."""

    row: OutboxRow
    created_at: datetime
    due_at: datetime
    returned_at: datetime | None = None
    held_at: datetime | None = None  # it is never due then


@dataclass(frozen=True, slots=True)
class LimitRow:
    """A row of agent_limits."""

    limit: AgentLimit
    bucket: Bucket
    changed_at: datetime
    counted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class HeldGate:
    """A row of gates."""

    run_id: UUID
    block_id: str
    max_parallelism: int
    holder: str
    lease_until: datetime


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A row of dead_letters."""

    id: int
    received_at: datetime
    letter: NewDeadLetter


@dataclass(frozen=True, slots=True)
class StoredDefinition:
    """A row of workflows."""

    definition_id: str
    workflow_id: str
    version: str
    document: str
    registration: int | None = None  # counts up; the newest counts


def inserted_run(run: Run, request: RunRequested) -> RunRow:
    """Return the row of a new run; how it ends is never known yet."""
    record = replace(run, finished_at=None, output=None, error=None)
    return RunRow(record, dump_json(request.input), None, None)


def updated_run(row: RunRow, run: Run) -> RunRow:
    """Return a run's row after an update: null as output or error means "as it was"."""
    record = replace(row.record, status=run.status, reply=run.reply, finished_at=run.finished_at, due_at=run.due_at)
    output = dump_json(run.output) if run.status is RunStatus.COMPLETED else row.output
    error = dump_json(run.error) if run.error is not None else row.error
    return RunRow(record, row.input, output, error)


def inserted_step(step: StepExecution) -> StepRow:
    """Return the row of a new step execution."""
    values = dump_json(step.input) if step.branches is None else None
    return StepRow(_bare(step), values, _output(step), _error(step))


def updated_step(row: StepRow, step: StepExecution) -> StepRow:
    """Return a step's row after an update, which leaves alone what never changes."""
    record = row.record._replace(
        status=step.status,
        attempt=step.attempt,
        task_id=step.task_id,
        worker_id=step.worker_id,
        branches=_counted(row.record.branches, step.branches),
        queued_at=step.queued_at,
        started_at=step.started_at,
        heartbeat_at=step.heartbeat_at,
        finished_at=step.finished_at,
        due_at=step.due_at,
        ready_at=step.ready_at,
        branch_due_at=step.branch_due_at,
        postponed=step.postponed,
    )
    return StepRow(record, row.input, _output(step) or row.output, _error(step) or row.error)


def _bare(step: StepExecution) -> StepExecution:
    if step.input is None and step.output is None and step.error is None:
        return step
    return step._replace(input=None, output=None, error=None)


def _output(step: StepExecution) -> str | None:
    # That of a block is put together by its join; an agent that returned null has an output.
    return dump_json(step.output) if step.status is StepStatus.COMPLETED and step.branches is None else None


def _error(step: StepExecution) -> str | None:
    return dump_json(step.error) if step.error is not None else None


def _counted(before: Branches | None, after: Branches | None) -> Branches | None:
    if before is None:
        return None
    assert after is not None, "a block's counters would be null"
    return after._replace(max_parallelism=before.max_parallelism)
