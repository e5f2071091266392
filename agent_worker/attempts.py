"""The attempts that a worker holds, and the answers to those that it has finished."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple
from uuid import UUID

import structlog
from opentelemetry.trace import Span

from agent_worker.pulse import AttemptPulse
from messaging.port import BrokerError, Consumer, Delivery
from schemas.messages import AgentTask

MAX_ANSWERS: Final = 1_000
MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024

log = structlog.get_logger(__name__)


class Held(NamedTuple):
    """A delivery, and where to settle it."""

    consumer: Consumer
    delivery: Delivery


@dataclass(slots=True, eq=False)
class Attempt:
    """A task from its first delivery here until its result is confirmed.

    The same task may be delivered again meanwhile, because a connection was lost or because it was published twice.
    All its deliveries are settled together in the end; for those of a lost connection that is a no-op.
    """

    task: AgentTask
    held: list[Held]
    on_settled: Callable[["Attempt"], None]  # called once, when its deliveries are acked
    started_at: datetime | None = None  # None: it waits for its turn
    answer: bytes | None = None  # its final report, once there is one
    given_up: bool = False  # its deliveries went back to the broker, so whatever comes of it does not count
    cancelled: bool = False  # its run was, while its agent ran: whatever comes of it is not reported
    dropped: bool = False  # it is settled without a result, or about to be
    pulse: AttemptPulse | None = None  # since its agent runs
    span: Span | None = None  # while its agent runs, where spans are recorded
    traceparent: str | None = None  # the context that goes with its reports

    @property
    def untouched(self) -> bool:
        """Whether nothing was done about it yet, so that another worker may as well have it."""
        return self.started_at is None and self.answer is None and not self.dropped

    @property
    def can_be_cancelled(self) -> bool:
        """Whether its agent runs, and somebody waits for what it does."""
        is_over = self.answer is not None or self.given_up or self.cancelled or self.dropped
        return self.started_at is not None and not is_over

    @property
    def earlier_deliveries(self) -> int:
        """How often the broker had handed the task out before it came here."""
        return self.held[0].delivery.earlier_deliveries

    @property
    def came_again(self) -> bool:
        """Whether somebody may have begun it before: the broker had handed it out, and has no answer."""
        return self.held[0].delivery.redelivered or self.earlier_deliveries > 0

    @property
    def outlived_timeout(self) -> float | None:
        """The broker's consumer_timeout in seconds, where that is known and the attempt has run for longer."""
        for held in self.held:
            if (known := held.consumer.consumer_timeout) is not None and self.started_at is not None:
                ran = datetime.now(UTC) - self.started_at
                return known if ran.total_seconds() > known else None
        return None

    def start(self) -> datetime:
        """Note that it starts now."""
        self.started_at = datetime.now(UTC)
        return self.started_at

    def give_up(self) -> None:
        """Note that it is somebody else's from now on."""
        self.given_up = True
        if self.pulse is not None:
            self.pulse.stop()

    def cancel(self) -> None:
        """Note that nobody waits for it any more, and let its agent see that."""
        self.cancelled = True
        if self.pulse is not None:
            self.pulse.cancel()

    async def settle(self) -> None:
        """Ack its deliveries, and tell."""
        await ack(self.held)
        self.on_settled(self)


async def ack(held: Iterable[Held]) -> None:
    """Ack deliveries; those that cannot be acked come again, and are known then."""
    for consumer, deliveries in by_consumer(held).items():
        try:
            await consumer.ack(deliveries)
        except BrokerError as error:
            log.warning("Tasks could not be acked", action="ack_failed", count=len(deliveries), error=str(error))


def by_consumer(held: Iterable[Held]) -> dict[Consumer, list[Delivery]]:
    """Return the deliveries of each consumer, to be settled together."""
    groups: dict[Consumer, list[Delivery]] = {}
    for consumer, delivery in held:
        groups.setdefault(consumer, []).append(delivery)
    return groups


class AnswerMemory:
    """The last results, so that a task delivered again is answered without running again. Bounded twice."""

    def __init__(self, max_answers: int = MAX_ANSWERS, max_bytes: int = MAX_ANSWER_BYTES) -> None:
        self._max_answers = max_answers
        self._max_bytes = max_bytes
        self._bytes = 0
        self._bodies: OrderedDict[int, bytes] = OrderedDict()  # by the ids' numbers: UUIDs hash slowly

    def remember(self, task_id: UUID, body: bytes) -> None:
        """Keep the result of a task; the oldest go when there are too many."""
        self._bytes += len(body) - len(self._bodies.pop(task_id.int, b""))
        self._bodies[task_id.int] = body
        while len(self._bodies) > self._max_answers or self._bytes > self._max_bytes:
            self._bytes -= len(self._bodies.popitem(last=False)[1])

    def recall(self, task_id: UUID) -> bytes | None:
        """Return the result of a task, if it is still known."""
        if (body := self._bodies.get(task_id.int)) is not None:
            self._bodies.move_to_end(task_id.int)
        return body
