"""The broker port: what the services need of a message broker, and nothing else.

It speaks in batches, because speed lives there: `Broker.publish` sends many messages and returns an outcome for
each; a `Consumer` hands over all deliveries that have arrived and settles many together. A single message is a
batch of one.

Both adapters (`messaging.rabbitmq`, `messaging.memory`) pass the same suite, `tests/contract/test_broker.py`.
Names such as exchange, queue, prefetch and confirm mean what AMQP 0-9-1 means by them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

_NO_HEADERS: Final[Mapping[str, Any]] = MappingProxyType({})


class ExchangeKind(StrEnum):
    """How an exchange routes."""

    DIRECT = "direct"
    TOPIC = "topic"
    FANOUT = "fanout"


class QueueKind(StrEnum):
    """What a queue survives."""

    QUORUM = "quorum"  # durable and replicated; for work that must not be lost
    CLASSIC = "classic"  # durable, on one node; for what can be made again from Postgres
    EXCLUSIVE = "exclusive"  # dies with the connection that declared it; for replies and notices


@dataclass(frozen=True, slots=True)
class Exchange:
    """An exchange to declare; always durable."""

    name: str
    kind: ExchangeKind


@dataclass(frozen=True, slots=True)
class Binding:
    """Which messages of an exchange a queue takes."""

    exchange: str
    routing_key: str


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue to declare, with its bindings."""

    name: str
    kind: QueueKind
    bindings: tuple[Binding, ...] = ()
    expires: timedelta | None = None  # deleted when unused (no consumer, no declare) for this long


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """What a queue held when it was asked."""

    ready: int  # messages that wait for a consumer; unacked ones are not counted
    consumers: int


class OutgoingMessage(NamedTuple):  # made in a quarter of a frozen dataclass's time, and there is one per message
    """A message to publish. `message_id` must be unique for each publish: returns are matched by it."""

    exchange: str  # "" is the default exchange: the routing key is then a queue's name
    routing_key: str
    type: str
    message_id: str
    body: bytes
    correlation_id: str | None = None
    reply_to: str | None = None
    headers: Mapping[str, Any] = _NO_HEADERS
    persistent: bool = True
    mandatory: bool = True  # False: a message that no queue takes is dropped and counts as confirmed


class PublishOutcome(StrEnum):
    """What became of one published message."""

    CONFIRMED = "CONFIRMED"  # on disk (or, when not mandatory, perhaps taken by no queue)
    RETURNED = "RETURNED"  # mandatory, and no queue takes it
    TOO_LARGE = "TOO_LARGE"  # above the broker's limit; it was not sent
    UNKNOWN = "UNKNOWN"  # nacked, timed out or cut off: it may have arrived, so send it again


class Delivery(NamedTuple):
    """One handing-over of a message. Settle it at the consumer that gave it.

    It equals only itself: the same message may be delivered again, and that is another handing-over.
    """

    queue: str
    exchange: str
    routing_key: str
    type: str | None
    message_id: str | None
    body: bytes
    correlation_id: str | None
    reply_to: str | None
    headers: Mapping[str, Any]
    redelivered: bool
    tag: tuple[int, int]  # the adapter's own: (which channel, which delivery on it)
    user_id: str | None = None  # who has published it, where that was said: the broker lets nobody name another user

    @property
    def earlier_deliveries(self) -> int:
        """How often it was delivered before and came back, as far as the broker counts (quorum queues do)."""
        count = self.headers.get("x-delivery-count", 0)
        return count if isinstance(count, int) else 0

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True, slots=True)
class DeadLetterReason:
    """Why a message could not be processed."""

    code: str  # stable
    message: str  # what is wrong, where, and what would be right


class BrokerError(Exception):
    """Something went wrong between us and the broker."""


class BrokerUnavailable(BrokerError):
    """The broker cannot be reached, or refused us. Adapters keep trying where waiting can help."""


class TopologyMismatch(BrokerError):
    """An exchange or a queue exists with other properties; says which, what was expected and what was found."""


class QueueMissing(BrokerError):
    """A queue that should exist does not."""


class ConsumerClosed(BrokerError):
    """The consumer was closed by its owner; it gives no more deliveries."""


class Consumer(Protocol):
    """Deliveries from one queue, at most `prefetch` unsettled at a time.

    When the connection is lost the adapter restores it, the queue and the consumer by itself. What was unsettled then
    comes again as a new delivery; settling the old one is a no-op.
    """

    @property
    def consumer_timeout(self) -> float | None:
        """Seconds for which the broker lets a delivery be unsettled, known once it has taken some back for that."""

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait until something has arrived, then return it all, at most *limit*, in order.

        Raises:
            ConsumerClosed: `cancel` or `close` was called.
        """

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Say that these are done with."""

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Give these back to be delivered again."""

    async def dead_letter(self, delivery: Delivery, reason: DeadLetterReason) -> None:
        """Move the message to the dead letters with its body, headers, origin and reason, then ack it.

        Raises:
            BrokerUnavailable: The dead letter was not confirmed; the delivery stays unsettled.
        """

    async def cancel(self) -> None:
        """Take nothing more; repeating it is harmless.

        What has arrived and was not received goes back at once, for others. What was received stays unsettled, and can
        be settled until `close`. From now on `receive` raises ConsumerClosed.
        """

    async def close(self) -> None:
        """Stop; everything unsettled goes back to the queue at once."""


class Broker(Protocol):
    """A connection to a message broker. Safe to use from many tasks of one event loop."""

    @property
    def connected(self) -> bool:
        """Whether publishing and consuming work right now, as far as is known."""

    async def connect(self) -> None:
        """Connect, and keep trying with back-off until it works."""

    async def declare(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> None:
        """Make sure that these exist; repeating it is harmless.

        Raises:
            TopologyMismatch: One exists with other properties.
        """

    async def check_queue(self, name: str) -> QueueDepth:
        """Return what the queue holds, without declaring it.

        Raises:
            QueueMissing: There is none.
        """

    async def delete_queue(self, name: str) -> None:
        """Delete the queue with what it holds; nothing happens where there is none."""

    async def publish(
        self, messages: Sequence[OutgoingMessage], *, timeout: float | None = None
    ) -> Sequence[PublishOutcome]:
        """Send all *messages*, pipelined, and return the outcome of each, in the same order.

        It never raises for the broker's sake: what is not known to have arrived is UNKNOWN. Once it has returned, or
        was cancelled, nothing is written any more: a message that waited for a connection never leaves.

        Args:
            messages: In the order in which they are to arrive.
            timeout: Seconds after which it returns; the adapter's own, if left out.
        """

    async def consume(self, queue: Queue, *, prefetch: int) -> Consumer:
        """Declare *queue* and start to consume it.

        Args:
            queue: With its bindings; declared again after every reconnect.
            prefetch: 1 to 65,535 unsettled deliveries at most; 0 is without limit.

        Raises:
            TopologyMismatch: It exists with other properties.
        """

    async def close(self) -> None:
        """Close every consumer and the connection."""
