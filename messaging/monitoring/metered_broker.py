"""A broker that counts what passes through it, put around another one where somebody asks for the numbers.

It counts by the batch: one batch taken is one entry, whatever the number of its messages.
"""

import time
from collections import Counter
from collections.abc import Sequence

from messaging.monitoring.instruments import SIZES, Count, Instrument, Spread
from messaging.port import (
    Broker,
    Consumer,
    DeadLetterReason,
    Delivery,
    Exchange,
    OutgoingMessage,
    PublishOutcome,
    Queue,
    QueueDepth,
)
from messaging.topology import queue_family


class BrokerMeter:
    """What is counted of a broker's messages; queues of one purpose are counted together."""

    def __init__(self) -> None:
        self.deliveries = Spread(
            "forkjoin_delivery_batch_size", "Messages that were taken from a queue at once.", "queue", bounds=SIZES
        )
        self.redeliveries = Count(
            "forkjoin_redeliveries", "Messages that had been delivered before and came again.", "queue"
        )
        self.dead_lettered = Count(
            "forkjoin_dead_lettered", "Messages that this process moved to the dead letters.", "queue", "code"
        )
        self.published = Count("forkjoin_published_messages", "Messages sent, by what became of them.", "outcome")
        self.publish_batches = Spread("forkjoin_publish_batch_size", "Messages that were sent at once.", bounds=SIZES)
        self.publish_seconds = Spread(
            "forkjoin_publish_seconds", "From the sending of a batch to the broker's last answer."
        )

    def instruments(self) -> list[Instrument]:
        """Return all of it."""
        return [
            self.deliveries,
            self.redeliveries,
            self.dead_lettered,
            self.published,
            self.publish_batches,
            self.publish_seconds,
        ]


class MeteredBroker:
    """The broker port on top of another broker; see `messaging.port.Broker`.

    Args:
        broker: Does the work.
        meter: Counts it.
    """

    def __init__(self, broker: Broker, meter: BrokerMeter) -> None:
        self._broker = broker
        self._meter = meter

    @property
    def connected(self) -> bool:
        """Whether publishing and consuming work right now, as far as is known."""
        return self._broker.connected

    async def connect(self) -> None:
        """Connect, and keep trying with back-off until it works."""
        await self._broker.connect()

    async def declare(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> None:
        """Make sure that these exist."""
        await self._broker.declare(exchanges, queues)

    async def check_queue(self, name: str) -> QueueDepth:
        """Return what the queue holds."""
        return await self._broker.check_queue(name)

    async def delete_queue(self, name: str) -> None:
        """Delete the queue."""
        await self._broker.delete_queue(name)

    async def publish(
        self, messages: Sequence[OutgoingMessage], *, timeout: float | None = None
    ) -> Sequence[PublishOutcome]:
        """Send all *messages*, and count what became of them."""
        begun = time.monotonic()
        outcomes = await self._broker.publish(messages, timeout=timeout)
        self._meter.publish_seconds.observe(time.monotonic() - begun)
        self._meter.publish_batches.observe(len(messages))
        for outcome, number in Counter(outcomes).items():
            self._meter.published.add(number, outcome.value)
        return outcomes

    async def consume(self, queue: Queue, *, prefetch: int) -> Consumer:
        """Start to consume *queue*, and count what comes."""
        consumer = await self._broker.consume(queue, prefetch=prefetch)
        return MeteredConsumer(consumer, self._meter, queue_family(queue.name))

    async def close(self) -> None:
        """Close every consumer and the connection."""
        await self._broker.close()


class MeteredConsumer:
    """A consumer on top of another one; see `messaging.port.Consumer`."""

    def __init__(self, consumer: Consumer, meter: BrokerMeter, family: str) -> None:
        self._consumer = consumer
        self._meter = meter
        self._family = family

    @property
    def consumer_timeout(self) -> float | None:
        """Seconds for which the broker lets a delivery be unsettled, where that is known."""
        return self._consumer.consumer_timeout

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait until something has arrived, then return and count it all."""
        deliveries = await self._consumer.receive(limit)
        self._meter.deliveries.observe(len(deliveries), self._family)
        again = [delivery.redelivered for delivery in deliveries].count(True)
        if again:
            self._meter.redeliveries.add(again, self._family)
        return deliveries

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Say that these are done with."""
        await self._consumer.ack(deliveries)

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Give these back to be delivered again."""
        await self._consumer.requeue(deliveries)

    async def dead_letter(self, delivery: Delivery, reason: DeadLetterReason) -> None:
        """Move the message to the dead letters, and count it."""
        await self._consumer.dead_letter(delivery, reason)
        self._meter.dead_lettered.add(1, self._family, reason.code)

    async def cancel(self) -> None:
        """Take nothing more."""
        await self._consumer.cancel()

    async def close(self) -> None:
        """Stop; everything unsettled goes back to the queue at once."""
        await self._consumer.close()
