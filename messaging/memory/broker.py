"""One client of the in-memory server: what `messaging.rabbitmq` is to RabbitMQ."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from messaging.limits import MAX_MESSAGE_BYTES, check_addressable, check_prefetch
from messaging.memory.consumer import MemoryConsumer
from messaging.memory.server import MemoryServer
from messaging.port import (
    BrokerUnavailable,
    Exchange,
    OutgoingMessage,
    PublishOutcome,
    Queue,
    QueueDepth,
)


class MemoryBroker:
    """A connection to a `MemoryServer`; clients that share a server see each other's messages.

    Every call gives the event loop one turn, as no broker answers at once.

    Args:
        server: Shared with other clients; its own if left out.
        name: For people who read logs.
        max_message_bytes: Bodies above it are TOO_LARGE.
    """

    def __init__(
        self,
        server: MemoryServer | None = None,
        *,
        name: str = "memory",
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self.server = server if server is not None else MemoryServer()
        self._name = name
        self._max_message_bytes = max_message_bytes
        self._connected = asyncio.Event()
        self._wanted = False  # between connect() and close()
        self._consumers: dict[MemoryConsumer, None] = {}

    @property
    def connected(self) -> bool:
        """Whether publishing and consuming work right now."""
        return self._connected.is_set()

    async def connect(self) -> None:
        """Connect; waits while the server is stopped."""
        self._wanted = True
        self.server.attach(self)
        self._restore()
        await self._connected.wait()

    async def close(self) -> None:
        """Close every consumer and the connection; exclusive queues are gone then."""
        for consumer in list(self._consumers):
            await consumer.close()
        self._wanted = False
        self._connected.clear()
        self.server.detach(self)

    async def declare(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> None:
        """Make sure that these exist. Raises TopologyMismatch as the port says."""
        await self._turn()
        for exchange in exchanges:
            self.server.declare_exchange(exchange)
        for queue in queues:
            self.server.declare_queue(queue, self)

    async def check_queue(self, name: str) -> QueueDepth:
        """Return what the queue holds. Raises QueueMissing as the port says."""
        await self._turn()
        return self.server.depth(name, self)

    async def delete_queue(self, name: str) -> None:
        """Delete the queue, if it is there."""
        await self._turn()
        self.server.delete_queue(name, self)

    async def publish(
        self, messages: Sequence[OutgoingMessage], *, timeout: float | None = None
    ) -> Sequence[PublishOutcome]:
        """Put each message where it belongs; all are UNKNOWN while the server is stopped."""
        for message in messages:
            check_addressable(message)
        with suppress(BrokerUnavailable):
            await self._turn()
        outcomes = [self._publish_one(message) for message in messages]
        await asyncio.sleep(0)
        return outcomes

    async def consume(self, queue: Queue, *, prefetch: int) -> MemoryConsumer:
        """Declare *queue* and consume it. Raises TopologyMismatch as the port says."""
        check_prefetch(prefetch)
        await self._turn()
        consumer = MemoryConsumer(self, queue, prefetch)
        consumer.start()
        self._consumers[consumer] = None
        return consumer

    async def publish_dead_letter(self, message: OutgoingMessage) -> PublishOutcome:
        """Publish without the size limit: what arrived must be able to leave."""
        await self._turn()
        return self.server.publish(message)

    def quiesce(self) -> None:
        """Take no more deliveries: the connection is about to go."""
        for consumer in self._consumers:
            consumer.quiesce()

    def forget(self, consumer: MemoryConsumer) -> None:
        """Stop to restore *consumer*."""
        self._consumers.pop(consumer, None)

    def drop_connection(self) -> None:
        """Lose the connection: what is unsettled returns to its queue, exclusive queues die.

        The client reconnects and restores its consumers in the next turn of the event loop, or once the server runs.
        """
        if not self.connected:
            return
        self._connected.clear()
        self.quiesce()
        for consumer in self._consumers:
            consumer.interrupt()
        self.server.close_connection(self)
        self.restore_soon()

    def die(self) -> None:
        """Vanish as a killed process does: what is unsettled returns to its queue, and nothing is restored."""
        self._wanted = False
        self.drop_connection()
        self.server.detach(self)

    def restore_soon(self) -> None:
        """Reconnect and restore consumers in the next turn of the event loop, where there is anything to restore."""
        asyncio.get_running_loop().call_soon(self._restore)

    def _restore(self) -> None:
        if not self._wanted or not self.server.running:
            return
        self._connected.set()
        for consumer in list(self._consumers):
            consumer.restore()

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if not self.connected:
            await asyncio.sleep(0)  # a dropped connection comes back in the turn after the drop
        if not self.connected:
            raise BrokerUnavailable(
                f'client "{self._name}" is not connected: '
                + ("the server is stopped" if self._wanted else "call connect() first, and nothing after close()")
            )

    def _publish_one(self, message: OutgoingMessage) -> PublishOutcome:
        if len(message.body) > self._max_message_bytes:
            return PublishOutcome.TOO_LARGE
        return self.server.publish(message) if self.connected else PublishOutcome.UNKNOWN
