"""The whole world at one instant, as one immutable value: Postgres, RabbitMQ, and what each process has in memory.

Steps of the run are numbered: 0, 1, 2 are the branches (called a, b, c in traces), NEXT is the step after the block.
There is one attempt per step, as in the product, so a step's number stands for its task id. Bodies, clocks and errors
are left out; they change no transition of the protocol. Queues are sorted tuples: a broker with several consumers
and redelivery promises no order, so any message may be next.
"""

from enum import StrEnum
from typing import Final, NamedTuple, TypeVar

NEXT: Final = -1  # it is the last element of every tuple that is indexed by step
LAPSED: Final = -1  # a gate exists and nobody's lease on it holds
NO_GATE: Final = -2

Item = TypeVar("Item")


class Status(StrEnum):
    """Of a run, a block or a step execution."""

    ABSENT = "ABSENT"  # no row yet
    PENDING = "PENDING"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"


class Kind(StrEnum):
    """What a message says; the last three are not messages but duties of a replica."""

    REQUEST = "request"
    TICKET = "ticket"
    TASK = "task"
    STARTED = "start report"
    RESULT = "result"
    REPLY = "reply to the client"
    OPEN_GATE = "opening of the gate"  # the first thing after the commit that made the gate
    FILL = "filling of free slots"  # a transaction that no delivery of the intake causes
    FOLLOW_UP = "follow-up"  # only where a variant makes it a transaction of its own


class Message(NamedTuple):
    """A message, or the input of a transaction."""

    kind: Kind
    step: int = 0

    def __str__(self) -> str:
        if self.kind in (Kind.TICKET, Kind.TASK, Kind.STARTED, Kind.RESULT):
            return f"{self.kind} of {step_name(self.step)}"
        return str(self.kind)


class Rows(NamedTuple):
    """`runs` and `step_executions`; the counters are columns of the block's row."""

    run: Status
    block: Status
    steps: tuple[Status, ...]
    open: int  # branches that have not ended
    dispatched: int  # slots taken
    passed: int  # branches before this one have been through the gate


class Database(NamedTuple):
    """What survives every crash."""

    rows: Rows
    outbox: frozenset[Message]
    lease: int  # the replica that holds the gate, LAPSED or NO_GATE


class Broker(NamedTuple):
    """What is ready in the queues; what is delivered and not acked stands with whoever has it."""

    inbox: tuple[Message, ...]  # the queues `orchestrator.runs` and `orchestrator.results`
    tasks: tuple[int, ...]  # the agents' queue
    gate: tuple[int, ...] | None  # the gate queue, in the order of the definition; None: it does not exist


class Phase(StrEnum):
    """How far a replica is with an input."""

    HELD = "held"  # in hand, to be applied once more after an ambiguous COMMIT
    OPEN = "open"  # its transaction has read the rows
    COMMITTED = "committed"  # and is to be acked


class Work(NamedTuple):
    """The one input that a replica works on. A batch of many is many of these in one transaction."""

    input: Message
    phase: Phase
    seen: Rows | None  # what the open transaction has read


class Tickets(NamedTuple):
    """What a consumer of the gate queue has in hand."""

    held: frozenset[int]
    forgotten: tuple[int, ...]  # overwritten by a second delivery of the same ticket: unsettled until the consumer ends


class Replica(NamedTuple):
    """The memory of one orchestrator process; a crash makes it a fresh one."""

    work: Work | None = None
    unsent: tuple[Message, ...] = ()  # handed over by commits, in their order
    sent: frozenset[Message] = frozenset()  # published, but their outbox rows are not deleted yet
    tickets: Tickets | None = None  # None: it does not consume the gate queue


class Progress(StrEnum):
    """How far a worker is with a task."""

    TAKEN = "taken"
    RAN = "ran"  # or its answer was remembered
    CONFIRMED = "confirmed"  # the result is with the broker; the ack comes next


class Attempt(NamedTuple):
    """A task in the hands of a worker; further deliveries of it are settled together with the first."""

    step: int
    progress: Progress
    deliveries: int


class Worker(NamedTuple):
    """The memory of one worker process."""

    attempts: tuple[Attempt, ...] = ()
    answers: frozenset[int] = frozenset()  # results that it gave, to be given again without running


class History(NamedTuple):
    """What has happened, as far as the oracles ask for it."""

    executions: tuple[int, ...]
    accepted: tuple[int, ...]  # results that had an effect
    created: int  # how often the step after the block was created
    told: bool  # the client has its reply


class State(NamedTuple):
    """Everything."""

    faults_left: int
    database: Database
    broker: Broker
    replicas: tuple[Replica, ...]
    workers: tuple[Worker, ...]
    history: History


class Step(NamedTuple):
    """One atomic action, in words, and the state after it."""

    words: str
    state: State


IDLE: Final = Replica()


def initial(branches: int, replicas: int, workers: int, faults: int) -> State:
    """Return the state in which a client's request waits, and nothing else has happened."""
    rows = Rows(Status.ABSENT, Status.ABSENT, (Status.ABSENT,) * (branches + 1), 0, 0, 0)
    never = (0,) * (branches + 1)
    return State(
        faults,
        Database(rows, frozenset(), NO_GATE),
        Broker((Message(Kind.REQUEST),), (), None),
        (IDLE,) * replicas,
        (Worker(),) * workers,
        History(never, never, 0, False),
    )


def step_name(step: int) -> str:
    """Return how traces call a step."""
    return "the next step" if step == NEXT else f"branch {'abcdefgh'[step]}"


def put(items: tuple[Item, ...], index: int, item: Item) -> tuple[Item, ...]:
    """Return *items* with another one at *index*, which may be NEXT."""
    changed = list(items)
    changed[index] = item
    return tuple(changed)
