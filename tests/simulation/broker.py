"""A process's way to the in-memory broker, on which everything can happen: see `Scheduler`."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from messaging.memory import MemoryBroker, MemoryServer
from messaging.memory.consumer import MemoryConsumer
from messaging.port import (
    BrokerUnavailable,
    DeadLetterReason,
    Delivery,
    Exchange,
    OutgoingMessage,
    PublishOutcome,
    Queue,
    QueueDepth,
)


class Scheduler(Protocol):
    """What happens to a process while it talks to the broker."""

    def receives(self, available: int) -> int:
        """Return how many of the deliveries that have arrived are handed over together."""

    async def before(self, operation: str) -> None:
        """Delay the operation, or kill the process. Raises CancelledError in a dead process."""

    async def after(self, operation: str) -> None:
        """As `before`, once the operation has had its effect."""

    def loses_confirm(self) -> bool:
        """Return whether the answer to a publish is lost."""

    def repeats(self) -> bool:
        """Return whether what is published arrives twice."""

    def loses_messages(self) -> bool:
        """Return whether what is published is lost on the way, before the broker has it."""


class SimulatedBroker:
    """The broker port of one process."""

    def __init__(self, server: MemoryServer, name: str, scheduler: Scheduler) -> None:
        self.inner = MemoryBroker(server, name=name)
        self._scheduler = scheduler

    @property
    def connected(self) -> bool:
        """Whether publishing and consuming work right now."""
        return self.inner.connected

    async def connect(self) -> None:
        """Connect; waits while the server is stopped."""
        await self._scheduler.before("connect")
        await self.inner.connect()

    async def close(self) -> None:
        """Close every consumer and the connection."""
        await self._scheduler.before("close")
        await self.inner.close()

    async def declare(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> None:
        """Make sure that these exist; as the real adapter does, wait until there is a connection."""
        await self._scheduler.before("declare")
        await self._patiently()
        await self.inner.declare(exchanges, queues)
        await self._scheduler.after("declare")

    async def check_queue(self, name: str) -> QueueDepth:
        """Return what the queue holds."""
        await self._scheduler.before("check queue")
        await self._patiently()
        return await self.inner.check_queue(name)

    async def delete_queue(self, name: str) -> None:
        """Delete the queue, if it is there."""
        await self._scheduler.before("delete queue")
        await self._patiently()
        await self.inner.delete_queue(name)
        await self._scheduler.after("delete queue")

    async def publish(
        self, messages: Sequence[OutgoingMessage], *, timeout: float | None = None
    ) -> Sequence[PublishOutcome]:
        """Send messages, or lose them, or lose the answer."""
        what = f"publish {', '.join(sorted({message.type for message in messages}))}"
        await self._scheduler.before(what)
        if self._scheduler.loses_messages():
            return [PublishOutcome.UNKNOWN] * len(messages)
        outcomes = await self.inner.publish(messages)
        if self._scheduler.repeats():
            await self.inner.publish(messages)
        await self._scheduler.after(what)
        return [PublishOutcome.UNKNOWN] * len(messages) if self._scheduler.loses_confirm() else outcomes

    async def consume(self, queue: Queue, *, prefetch: int) -> "SimulatedConsumer":
        """Consume a queue."""
        await self._scheduler.before(f"consume {queue.name}")
        await self._patiently()
        return SimulatedConsumer(await self.inner.consume(queue, prefetch=prefetch), queue.name, self._scheduler)

    async def _patiently(self) -> None:
        while not self.inner.connected:
            await asyncio.sleep(0.1)
            await self._scheduler.before("wait for the broker")


class SimulatedConsumer:
    """A consumer of one process."""

    def __init__(self, inner: MemoryConsumer, queue: str, scheduler: Scheduler) -> None:
        self._inner = inner
        self._queue = queue
        self._scheduler = scheduler

    @property
    def consumer_timeout(self) -> float | None:
        """None: this broker has none."""
        return self._inner.consumer_timeout

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait until something has arrived, then return some of it."""
        deliveries = await self._inner.receive(self._scheduler.receives(limit))
        await self._scheduler.before(f"take {len(deliveries)} of {self._queue}")
        return deliveries

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Say that these are done with."""
        await self._scheduler.before(f"ack {len(deliveries)} of {self._queue}")
        await self._inner.ack(deliveries)

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Give these back to be delivered again."""
        await self._scheduler.before(f"requeue {len(deliveries)} of {self._queue}")
        await self._inner.requeue(deliveries)

    async def dead_letter(self, delivery: Delivery, reason: DeadLetterReason) -> None:
        """Move the message to the dead letters."""
        await self._scheduler.before(f"dead-letter one of {self._queue}")
        if self._scheduler.loses_confirm():
            raise BrokerUnavailable("the answer was lost")
        await self._inner.dead_letter(delivery, reason)

    async def cancel(self) -> None:
        """Take nothing more; what was not received goes back at once."""
        await self._scheduler.before(f"cancel consumer of {self._queue}")
        await self._inner.cancel()

    async def close(self) -> None:
        """Stop; everything unsettled goes back to the queue at once."""
        await self._scheduler.before(f"close consumer of {self._queue}")
        await self._inner.close()
