"""What an unfinished step waits for, as far as its row and its agent's queue tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, assert_never
from uuid import UUID

from messaging.port import QueueDepth
from orchestrator.cli.limits import limit_words
from orchestrator.engine.agent_limit import AgentLimit
from orchestrator.storage.queries import StepView
from schemas.statuses import StepStatus


@dataclass(frozen=True, slots=True)
class Slot:
    """A branch waits at its gate."""

    taken: int
    limit: int
    kind: Literal["slot"] = "slot"


@dataclass(frozen=True, slots=True)
class Block:
    """A branch that was taken over from an earlier run waits for its block, which waits for a slot itself."""

    block_id: str
    kind: Literal["block"] = "block"


@dataclass(frozen=True, slots=True)
class Pause:
    """Its attempt failed, and the next one starts later."""

    attempt: int  # the next one
    at: datetime
    kind: Literal["pause"] = "pause"


@dataclass(frozen=True, slots=True)
class AgentSlot:
    """The task is committed, and the limit of its agent holds it back."""

    agent_name: str
    since: datetime
    max_concurrency: int | None
    rate_per_second: float | None
    kind: Literal["agent_slot"] = "agent_slot"


@dataclass(frozen=True, slots=True)
class Sending:
    """The task is committed, and the broker has not confirmed it yet."""

    since: datetime
    kind: Literal["sending"] = "sending"


@dataclass(frozen=True, slots=True)
class Queue:
    """The agent's queue does not exist, so no worker has ever declared it, or somebody deleted it."""

    agent_name: str
    since: datetime | None  # when the broker first returned the task
    gives_up_at: datetime | None  # the step fails then
    kind: Literal["queue"] = "queue"


@dataclass(frozen=True, slots=True)
class Worker:
    """The task is in its agent's queue, or just with a worker. The numbers are None where the broker was not asked."""

    agent_name: str
    since: datetime | None
    consumers: int | None
    tasks_ready: int | None  # of all runs
    kind: Literal["worker"] = "worker"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A worker has the task."""

    attempt: int
    worker_id: str | None
    since: datetime | None
    last_sign_of_life: datetime | None
    due_at: datetime | None  # when the attempt counts as overdue
    sent_again_at: datetime | None  # since the last sign of life, in case that the worker is lost
    kind: Literal["attempt"] = "attempt"


@dataclass(frozen=True, slots=True)
class Branches:
    """A block waits for its branches to end."""

    open: int
    total: int
    kind: Literal["branches"] = "branches"


@dataclass(frozen=True, slots=True)
class Run:
    """A run of another workflow carries the step out, or was asked for."""

    workflow_id: str
    run_id: UUID | None  # None: no orchestrator has taken the request yet
    since: datetime | None
    due_at: datetime | None  # when the attempt counts as overdue
    kind: Literal["run"] = "run"


WaitingFor = Run | Slot | Block | Pause | AgentSlot | Sending | Queue | Worker | Attempt | Branches


@dataclass(frozen=True, slots=True)
class Queues:
    """What the broker said of the agents' queues: None for one that does not exist; the others were not asked for."""

    depths: Mapping[str, QueueDepth | None]
    unknown_agent_after: float  # seconds

    def gives_up(self, returned: datetime | None) -> datetime | None:
        """Return when the step of a task fails that no queue has taken since *returned*."""
        return returned + timedelta(seconds=self.unknown_agent_after) if returned is not None else None


def waiting_for(step: StepView, block: StepView | None, queues: Queues) -> WaitingFor | None:
    """Return what *step* waits for; None when it has ended.

    Args:
        step: Any step of a run.
        block: The block whose branch it is, if it is one.
        queues: The queues of the agents.
    """
    if step.status.is_final:
        return None
    if step.branches_total is not None:
        return Branches(step.branches_open or 0, step.branches_total)
    if step.status is StepStatus.PENDING and step.due_at is not None:
        return Pause(step.attempt + 1, step.due_at)
    if step.status is StepStatus.PENDING and block is not None:
        if block.status is StepStatus.PENDING:
            return Block(block.step_id)
        return Slot(block.branches_dispatched or 0, block.max_parallelism or 0)
    if step.sub_workflow_id is not None and step.unsent_since is None:
        child_id = step.child.run_id if step.child is not None else None
        return Run(step.sub_workflow_id, child_id, step.started_at or step.queued_at, step.due_at)
    if step.status is StepStatus.RUNNING:
        return _attempt(step)
    return _task(step, queues)


def wants_queue(step: StepView) -> bool:
    """Whether only the broker can tell what the step waits for."""
    return step.status is StepStatus.QUEUED and step.agent_name is not None and step.held_since is None


def words(waiting: WaitingFor) -> str:
    """Return what is waited for, as people read it; times are UTC."""
    match waiting:
        case Slot(taken, limit):
            return f"a slot of its gate ({taken} of {limit} taken)"
        case Block(block_id):
            return f"its block {block_id}, which waits itself"
        case Pause(attempt, at):
            return f"attempt {attempt}, at {_clock(at)}"
        case AgentSlot(agent_name, since, concurrency, rate):
            said = limit_words(AgentLimit(concurrency, rate)) or "its limit was just lifted"
            return f'a slot of its agent "{agent_name}" ({said}), since {_clock(since)}'
        case Sending(since):
            return f"its task to be sent, since {_clock(since)} (is the broker out of reach?)"
        case Queue():
            return _queue_words(waiting)
        case Worker():
            return _worker_words(waiting)
        case Attempt():
            return _attempt_words(waiting)
        case Run():
            return _run_words(waiting)
        case Branches(left, total):
            return f"{left} of its {total} branches"
        case _:
            assert_never(waiting)


def _attempt(step: StepView) -> Attempt:
    spoke, sent = step.heartbeat_at, step.queued_at
    again = sent if spoke is not None and sent is not None and sent > spoke else None
    return Attempt(step.attempt, step.worker_id, step.started_at, spoke, step.due_at, again)


def _task(step: StepView, queues: Queues) -> WaitingFor:
    name = step.agent_name or ""
    if step.held_since is not None:
        return AgentSlot(name, step.held_since, step.agent_max_concurrency, step.agent_rate_per_second)
    if step.unroutable_since is not None:
        return Queue(name, step.unroutable_since, queues.gives_up(step.unroutable_since))
    if step.unsent_since is not None:
        return Sending(step.unsent_since)
    if name not in queues.depths:
        return Worker(name, step.queued_at, None, None)
    depth = queues.depths[name]
    if depth is None:
        return Queue(name, None, None)
    return Worker(name, step.queued_at, depth.consumers, depth.ready)


def _queue_words(waiting: Queue) -> str:
    text = f'a worker: none has ever declared agent "{waiting.agent_name}"'
    if waiting.since is None or waiting.gives_up_at is None:
        return f"{text}, or its queue was deleted; then the task is sent again"
    return f"{text} (since {_clock(waiting.since)}; given up at {_clock(waiting.gives_up_at)})"


def _worker_words(waiting: Worker) -> str:
    queue = f"agent.{waiting.agent_name}"
    if waiting.consumers is None or waiting.tasks_ready is None:
        return f"a worker for {queue} (the broker was not asked)"
    tasks = "1 task waits" if waiting.tasks_ready == 1 else f"{waiting.tasks_ready} tasks wait"
    match waiting.consumers:
        case 0:
            return f"a worker: none consumes {queue} now, {tasks}"
        case 1:
            return f"a worker: 1 consumes {queue}, {tasks}"
        case number:
            return f"a worker: {number} consume {queue}, {tasks}"


def _attempt_words(waiting: Attempt) -> str:
    text = f"attempt {waiting.attempt} on worker {waiting.worker_id or 'unknown'}"
    if waiting.since is not None:
        text += f", since {_clock(waiting.since)}"
    if waiting.last_sign_of_life is not None:
        text += f" (last sign of life {_clock(waiting.last_sign_of_life)})"
    if waiting.sent_again_at is not None:
        text += f"; its task was sent again at {_clock(waiting.sent_again_at)}"
    if waiting.due_at is not None:
        text += f"; overdue at {_clock(waiting.due_at)}"
    return text


def _run_words(waiting: Run) -> str:
    if waiting.run_id is None:
        return f'an orchestrator that takes the request for a run of workflow "{waiting.workflow_id}"'
    text = f"run {waiting.run_id}"
    if waiting.since is not None:
        text += f", since {_clock(waiting.since)}"
    if waiting.due_at is not None:
        text += f"; overdue at {_clock(waiting.due_at)}"
    return text


def _clock(time: datetime) -> str:
    return f"{time:%H:%M:%S}"
