"""What a decision says: a verdict, row changes, messages to send, and inputs that follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, StrEnum, auto
from typing import Any, NamedTuple
from uuid import UUID

from orchestrator.engine.inputs import ChildStarted, FollowUp, RunRequested, SlotsFree
from orchestrator.engine.records import ReplyAddress, Run, StepExecution
from schemas.messages import ErrorInfo, RunResult


class Verdict(StrEnum):
    """What became of an input. None of these is an error: late and repeated messages are normal."""

    APPLIED = "APPLIED"
    DUPLICATE = "DUPLICATE"  # it was applied before
    STALE = "STALE"  # it is about something that is over
    NOT_YET = "NOT_YET"  # its turn comes when slots are free
    REJECTED = "REJECTED"  # it cannot be applied, now or later


@dataclass(frozen=True, slots=True)
class SendTask:
    """Send the task of this QUEUED row: to its agent's queue, or as a request for a run of its sub-workflow."""

    step: StepExecution


@dataclass(frozen=True, slots=True)
class SendTicket:
    """Send this PENDING branch to its block's gate."""

    step: StepExecution


@dataclass(frozen=True, slots=True)
class SendResult:
    """Tell the client how its run ended."""

    to: ReplyAddress
    result: RunResult


@dataclass(frozen=True, slots=True)
class SendCancellation:
    """Tell the workers that nobody waits for this run any more, or for the branches of this block."""

    run_id: UUID
    block_id: str | None = None


@dataclass(frozen=True, slots=True)
class SendCancelRun:
    """Ask that a run stop whose parent's step does not wait for it any more."""

    run_id: UUID
    reason: str


Send = SendTask | SendTicket | SendResult | SendCancellation | SendCancelRun


class EndedAttempt(NamedTuple):
    """An attempt that failed and is followed by another: the step's row at its end, and why."""

    step: StepExecution
    error: ErrorInfo
    retry_at: datetime  # when the next one was to start


class Ticket(NamedTuple):
    """What stands for a branch at the gate of its block: it bears the id of the branch's first step."""

    block_id: str
    step_id: str


class Fork(NamedTuple):
    """A block or loop whose branches are to be created (see `orchestrator.engine.block.fork`)."""

    block_id: str
    items: Sequence[Any] | None = None  # of a loop's collection
    keeps_items: bool = False  # steps that are entered later want to see them


class JoinForm(Enum):
    """What the output of a block consists of."""

    COMPLETED = auto()  # the outputs of the branches that completed, by name
    ALL = auto()  # those of all branches, by name; null where one did not complete
    ITERATIONS = auto()  # what became of each iteration, and how many of each kind there are


class Join(NamedTuple):
    """A block whose output is to be put together from those of its branches."""

    block_id: str
    form: JoinForm
    around: str | None  # the block in one of whose branches it is


class TakeOver(NamedTuple):
    """What a new run begins with: the steps of an earlier one, as they ended, but for where that one stopped.

    Where that is a block, the block waits to be entered once more, with the branches that it has completed; the others
    wait for that, and so do the blocks in them, each with what it has completed.
    """

    run_id: UUID  # of the earlier run
    stopped_at: str


class Decision(NamedTuple):
    """The answer to one input; everything in it is stored in one transaction, or nothing is."""

    verdict: Verdict
    code: str = ""  # why it was not applied; stable
    created_run: RunRequested | None = None  # insert `run` with this request's content
    takes_over: TakeOver | None = None  # insert `run`, with what an earlier one has done
    run: Run | None = None  # its new version
    steps: tuple[StepExecution, ...] = ()  # new versions, or new rows
    ended: EndedAttempt | None = None  # goes into the history; its step waits for the next attempt
    sends: tuple[Send, ...] = ()
    fork: Fork | None = None
    join: Join | None = None
    wakes: str | None = None  # the branches of this block that were taken over and wait are due now
    opens_gate: str | None = None  # of this block, which is not forked
    cancels_open_steps: bool = False
    cancels_branches_of: str | None = None  # before anything else of this is written
    closes_line_of: str | None = None  # cancel those who wait at the gate of this block; LineClosed follows
    released: Ticket | None = None  # of a branch that is over
    then: tuple[FollowUp, ...] = ()  # decided next
    tells_parent: ChildStarted | None = None  # decided in this transaction, for another run
    afterwards: SlotsFree | None = None  # decided once all other inputs of the batch for this run are
