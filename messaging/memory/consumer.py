"""A consumer of the in-memory server, across reconnects."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from messaging.dead_letters import dead_letter, require_confirmed
from messaging.inbox import Inbox
from messaging.memory.queue import Subscription
from messaging.port import DeadLetterReason, Delivery, Queue, TopologyMismatch

if TYPE_CHECKING:
    from messaging.memory.broker import MemoryBroker

log = structlog.get_logger(__name__)


class MemoryConsumer:
    """Deliveries from one queue of a `MemoryServer`; made by `MemoryBroker.consume`."""

    def __init__(self, broker: "MemoryBroker", queue: Queue, prefetch: int) -> None:
        self._broker = broker
        self._server = broker.server
        self._queue = queue
        self._prefetch = prefetch
        self._inbox = Inbox(queue.name)
        self._channel = 0
        self._subscription: Subscription | None = None
        self._cancelled = False
        self.consumer_timeout: float | None = None  # this broker has none

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait until something has arrived, then return it all. Raises ConsumerClosed as the port says."""
        await asyncio.sleep(0)
        return await self._inbox.take(limit)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Say that these are done with."""
        self._settle(deliveries, requeue=False)

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Give these back to be delivered again."""
        self._settle(deliveries, requeue=True)

    async def dead_letter(self, delivery: Delivery, reason: DeadLetterReason) -> None:
        """Move the message to the dead letters. Raises BrokerUnavailable as the port says."""
        serial = str(self._server.next_serial())
        message = dead_letter(delivery, reason, serial=serial, at=self._server.wall_clock())
        require_confirmed(await self._broker.publish_dead_letter(message), delivery)
        await self.ack([delivery])

    async def cancel(self) -> None:
        """Take nothing more; what was not received goes back at once."""
        self._cancelled = True
        left = self._inbox.drain()
        if self._subscription is not None:
            self._server.cancel(self._queue.name, self._subscription)
        self._settle(left, requeue=True)

    async def close(self) -> None:
        """Stop; everything unsettled goes back to the queue at once."""
        self._broker.forget(self)
        self._inbox.close()
        self._unsubscribe()

    def start(self) -> None:
        """Declare the queue and subscribe to it on a new channel."""
        self._server.declare_queue(self._queue, self._broker)
        self._channel = self._server.next_serial()
        subscription = Subscription(
            self._prefetch, self._inbox, channel=self._channel, on_cancel=self._cancelled_by_server
        )
        self._server.subscribe(self._queue.name, subscription, self._broker)
        self._subscription = subscription

    def quiesce(self) -> None:
        """Take no more deliveries."""
        if self._subscription is not None:
            self._subscription.end()

    def interrupt(self) -> None:
        """Lose the channel; what waits in the inbox comes again."""
        self._inbox.clear()
        self._unsubscribe()

    def restore(self) -> None:
        """Start again, unless it runs; where the queue has other properties by now, wait for the next occasion."""
        if self._subscription is not None or self._cancelled:
            return
        try:
            self.start()
        except TopologyMismatch as error:
            log.warning(
                "A consumer cannot be restored",
                action="consumer_not_restored",
                queue=self._queue.name,
                error=str(error),
            )

    def _cancelled_by_server(self) -> None:
        self._subscription = None
        self._inbox.clear()
        self._broker.restore_soon()

    def _unsubscribe(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._server.unsubscribe(self._queue.name, subscription)

    def _settle(self, deliveries: Sequence[Delivery], *, requeue: bool) -> None:
        tags = [delivery.tag[1] for delivery in deliveries if delivery.tag[0] == self._channel]
        settled = 0
        if self._subscription is not None:
            settled = self._server.settle(self._queue.name, self._subscription, tags, requeue=requeue)
        if settled < len(deliveries):
            log.debug(
                "Late settlements were ignored",
                action="late_settlement_ignored",
                queue=self._queue.name,
                count=len(deliveries) - settled,
            )
