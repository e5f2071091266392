"""What the core knows of a run and its step executions: frozen copies of rows.

A record holds the columns that decisions read or write. Large columns (a step's output, a run's input) are not part of
them; the core asks for those when it needs them, see `orchestrator.engine.state`.

Those of steps are named tuples: each result makes and changes some, which takes a frozen dataclass four times as long.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from orchestrator.engine.transitions import Trigger, next_run_status, next_step_status
from schemas.messages import ErrorInfo
from schemas.statuses import JoinPolicy, RunStatus, StepStatus


@dataclass(frozen=True, slots=True)
class ReplyAddress:
    """Where a RunResult goes, as AMQP's `reply_to` and `correlation_id` of the request said."""

    queue: str
    correlation_id: str | None


@dataclass(frozen=True, slots=True)
class Parent:
    """The step execution that a run belongs to as its sub-workflow, and how it came to that."""

    run_id: UUID
    step_id: str
    ancestors: tuple[str, ...]  # the workflows of the runs above, the outermost first


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One execution of a workflow."""

    id: UUID
    status: RunStatus
    definition_id: str  # of the definition it was started with; it never changes under the run
    workflow_id: str
    request_digest: str  # of the request's content, to tell a repeated request from a conflicting one
    reply: ReplyAddress | None
    parent: Parent | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    due_at: datetime | None = None  # when it counts as overdue
    retry_of: UUID | None = None  # the run from which it has taken over what that had completed
    traceparent: str | None = None  # W3C Trace Context: the span that the run's own has above it
    output: Any = None
    error: ErrorInfo | None = None

    def advanced(self, trigger: Trigger, **changes: Any) -> "Run":
        """Return the run after *trigger*; asking for a change that the table lacks is a bug."""
        status = next_run_status(self.status, trigger)
        if status is None:
            raise AssertionError(f"run {self.id} is {self.status}: it cannot {trigger}")
        return replace(self, status=status, **changes)

    @property
    def lineage(self) -> tuple[str, ...]:
        """The workflows of the runs above and of this one, the outermost first."""
        return (*(self.parent.ancestors if self.parent is not None else ()), self.workflow_id)


class Branches(NamedTuple):
    """A block's counters. They make a join O(1): no decision ever looks at the other branches."""

    total: int
    open: int  # not final yet
    failed: int
    dispatched: int  # slots of a gated block that are taken (see `orchestrator.engine.block.holds_slot`)
    passed: int  # branches before this position have been through the gate, or never will
    max_parallelism: int | None
    ready: int = 0  # branches whose next attempt waits for a slot; they go before the line

    @property
    def is_gated(self) -> bool:
        """Whether the limit can ever hold a branch back."""
        return self.max_parallelism is not None and self.max_parallelism < self.total

    @property
    def is_taken_over(self) -> bool:
        """Whether a block that waits to be entered has rows for its branches already."""
        return self.passed > 0

    @property
    def free_slots(self) -> int:
        """How many more branches the gate may let through, if so many are left."""
        if self.max_parallelism is None or not self.is_gated:
            return 0
        return min(self.max_parallelism - self.dispatched, self.ready + max(self.total - self.passed, 0))


class StepExecution(NamedTuple):
    """One step within a run. A block has `branches`; its branches name it as `parent_step_id`."""

    run_id: UUID
    step_id: str
    status: StepStatus
    position: int = 0  # of its branch within the block
    ordinal: int = 0  # within its branch
    parent_step_id: str | None = None
    branch_name: str | None = None
    join_policy: JoinPolicy | None = None
    agent_name: str | None = None
    sub_workflow_id: str | None = None  # whose runs carry it out
    sub_workflow_version: str | None = None  # None: the newest
    timeout_seconds: float | None = None  # of each attempt
    queue_timeout_seconds: float | None = None
    heartbeat_timeout_seconds: float | None = None
    branch_timeout_seconds: float | None = None
    attempt: int = 0
    task_id: UUID | None = None
    worker_id: str | None = None
    branches: Branches | None = None
    created_at: datetime | None = None
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    heartbeat_at: datetime | None = None
    due_at: datetime | None = None  # when the attempt or its branch counts as overdue, or the next attempt starts
    branch_due_at: datetime | None = None  # when its branch does; known once that has started
    ready_at: datetime | None = None  # since when the next attempt waits for a slot of its block
    postponed: int = 0  # attempts that ended because the agent asked to be called later; they do not count
    input: Any = None  # known on new rows, and where asked for
    output: Any = None  # known on rows that end now
    error: ErrorInfo | None = None

    def advanced(self, trigger: Trigger, **changes: Any) -> "StepExecution":
        """Return the row after *trigger*; asking for a change that the table lacks is a bug."""
        status = next_step_status(self.status, trigger)
        if status is None:
            raise AssertionError(f"step {self.step_id} of run {self.run_id} is {self.status}: it cannot {trigger}")
        return self._replace(status=status, **changes)

    @property
    def has_attempts(self) -> bool:
        """Whether somebody carries it out: an agent, or a run of another workflow."""
        return self.agent_name is not None or self.sub_workflow_id is not None

    @property
    def child_run_id(self) -> UUID | None:
        """The run that carries out its current attempt: the attempt lends it its id."""
        return self.task_id if self.sub_workflow_id is not None else None

    @property
    def is_dispatched(self) -> bool:
        """Whether its task is with RabbitMQ or with a worker, or it runs by itself."""
        return self.status in {StepStatus.QUEUED, StepStatus.RUNNING}
