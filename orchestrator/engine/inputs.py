"""What can happen to a run: the inputs of `orchestrator.engine.decide.decide`.

The first group comes from outside. The second follows from a decision and is decided in the same transaction, so
that each decision stays small and a crash can never separate cause from effect.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from orchestrator.engine.records import ReplyAddress
from schemas.messages import AgentResult, RunResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequested:
    """Someone asks for a run of a valid, stored definition."""

    run_id: UUID
    definition_id: str
    workflow_id: str
    workflow_version: str
    request_digest: str
    input: Any
    labels: dict[str, str]
    reply: ReplyAddress | None
    parent_run_id: UUID | None = None  # a step of that run asks for this one
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class ChildEnded:
    """The run that carries out an attempt of a sub-workflow step has ended, or was refused."""

    run_id: UUID  # of the step
    task_id: UUID  # the child's own id
    result: RunResult


@dataclass(frozen=True, slots=True)
class TaskReported:
    """A worker reports on an attempt."""

    report: AgentResult
    speaks_for: frozenset[str] | None = None  # the agents whose attempts its sender may report on; None: not checked

    @property
    def run_id(self) -> UUID:
        """The run that the report names."""
        return self.report.run_id


@dataclass(frozen=True, slots=True)
class BranchArrived:
    """The gate queue delivered a branch's ticket: is it to be held?"""

    run_id: UUID
    block_id: str
    step_id: str


@dataclass(frozen=True, slots=True)
class SlotsFree:
    """Slots of a gated block may be free: those next in line may go on."""

    run_id: UUID
    block_id: str


@dataclass(frozen=True, slots=True)
class AttemptOverdue:
    """The attempt passed its due time without a report of its end."""

    run_id: UUID
    step_id: str
    task_id: UUID


@dataclass(frozen=True, slots=True)
class RunOverdue:
    """The run passed its due time without an end."""

    run_id: UUID


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The time of a step's next attempt has come."""

    run_id: UUID
    step_id: str


@dataclass(frozen=True, slots=True)
class TaskUndeliverable:
    """The attempt's task cannot be worked on; *code* says why.

    No queue ever took it, or it is too large, or the broker itself gave it up after too many deliveries.
    """

    run_id: UUID
    step_id: str
    task_id: UUID
    code: Literal["unknown_agent", "payload_too_large", "worker_lost"]
    silent_after: timedelta = timedelta(0)  # a "worker_lost" that was heard of more lately may well be under way


@dataclass(frozen=True, slots=True)
class TaskMissing:
    """The attempt is open and silent, and its task is not in its agent's queue.

    Never decided together with a report of the same attempt: what a report loads has no input to send again.
    """

    run_id: UUID
    step_id: str
    task_id: UUID
    last_sign: datetime  # of the attempt, when that was seen: one that was heard of since is not missing


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Someone asks that the run stop."""

    run_id: UUID
    reason: str | None


@dataclass(frozen=True, slots=True)
class RetryRequested:
    """Someone asks for a run that does again what an earlier one has not completed, and takes over the rest."""

    run_id: UUID  # of the new run
    retry_of: UUID
    request_digest: str
    reply: ReplyAddress | None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class ChildStarted:
    """The run that carries out an attempt of a sub-workflow step has started, in this very transaction."""

    run_id: UUID  # of the step
    task_id: UUID


@dataclass(frozen=True, slots=True)
class StepReached:
    """The run goes on at this step, or a branch does, after a step of it."""

    run_id: UUID
    step_id: str
    after: str | None = None


@dataclass(frozen=True, slots=True)
class BlockForked:
    """All rows of a block's branches exist; so many of them failed at once, for want of a valid input."""

    run_id: UUID
    block_id: str
    failed: int


@dataclass(frozen=True, slots=True)
class LineClosed:
    """So many branches that waited at a block's gate were cancelled: no further one starts."""

    run_id: UUID
    block_id: str
    cancelled: int


@dataclass(frozen=True, slots=True)
class BlockDrained:
    """The last open branch of a block has ended."""

    run_id: UUID
    block_id: str


@dataclass(frozen=True, slots=True)
class StepEnded:
    """A step has ended that something may follow."""

    run_id: UUID
    step_id: str


DueInput = AttemptOverdue | RetryDue | RunOverdue
ExternalInput = (
    RunRequested
    | ChildEnded
    | TaskReported
    | BranchArrived
    | SlotsFree
    | AttemptOverdue
    | RetryDue
    | RunOverdue
    | TaskUndeliverable
    | TaskMissing
    | CancelRequested
    | RetryRequested
)
FollowUp = ChildStarted | StepReached | BlockForked | LineClosed | BlockDrained | StepEnded | SlotsFree
Input = ExternalInput | FollowUp
