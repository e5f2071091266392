"""Consuming one queue, across reconnects: whenever a channel ends, the next one is opened as the first one was."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from messaging.dead_letters import dead_letter, require_confirmed
from messaging.inbox import Inbox
from messaging.port import BrokerUnavailable, DeadLetterReason, Delivery, OutgoingMessage, PublishOutcome, Queue
from messaging.rabbitmq.backoff import Pauses, backoff, failure_text, is_worth_a_line
from messaging.rabbitmq.connection import Connection
from messaging.rabbitmq.consume_channel import ConsumeChannel
from messaging.rabbitmq.declaration import ensure_queue
from messaging.rabbitmq.encoding import carriable_headers, encode_ack, encode_requeue
from messaging.rabbitmq.ending import REMEDY, Ending
from messaging.rabbitmq.failures import ChannelLost

log = structlog.get_logger(__name__)

PublishDeadLetter = Callable[[OutgoingMessage], Awaitable[PublishOutcome]]


class RabbitmqConsumer:
    """Deliveries from one queue; made by `RabbitmqBroker.consume`."""

    def __init__(
        self,
        connection: Connection,
        queue: Queue,
        prefetch: int,
        publish_dead_letter: PublishDeadLetter,
        *,
        on_close: Callable[["RabbitmqConsumer"], None],
    ) -> None:
        self._connection = connection
        self._queue = queue
        self._prefetch = prefetch
        self._publish_dead_letter = publish_dead_letter
        self._on_close = on_close
        self._inbox = Inbox(queue.name)
        self._channel: ConsumeChannel | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._cancelled = asyncio.Event()
        self.consumer_timeout: float | None = None  # see the port

    async def start(self) -> None:
        """Declare the queue and consume it. Raises TopologyMismatch, QueueMissing or BrokerUnavailable."""
        channel = await self._open()
        self._keeper = asyncio.create_task(self._keep(channel), name=f"keep consumer of {self._queue.name}")

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait until something has arrived, then return it all. Raises ConsumerClosed as the port says."""
        return await self._inbox.take(limit)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Say that these are done with; nothing is waited for."""
        self._settle(deliveries, encode_ack)

    async def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Give these back to be delivered again; nothing is waited for."""
        self._settle(deliveries, encode_requeue)

    async def dead_letter(self, delivery: Delivery, reason: DeadLetterReason) -> None:
        """Move the message to the dead letters. Raises BrokerUnavailable as the port says."""
        message = dead_letter(delivery, reason, serial=uuid.uuid4().hex, at=datetime.now(UTC))
        message = message._replace(headers=carriable_headers(message.headers))
        require_confirmed(await self._publish_dead_letter(message), delivery)
        await self.ack([delivery])

    async def cancel(self) -> None:
        """Take nothing more; what was not received goes back at once.

        The channel stays, for what was received. When it is lost no other is opened.
        """
        if self._cancelled.is_set():
            return
        self._cancelled.set()
        if self._channel is not None:
            await self._channel.cancel()
        await self.requeue(self._inbox.drain())

    async def close(self) -> None:
        """Stop; everything unsettled goes back to the queue at once."""
        self._on_close(self)
        self._inbox.close()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._channel is not None:
            await self._channel.close()

    async def _open(self) -> "ConsumeChannel":
        session = await self._connection.session()
        await ensure_queue(session, self._queue)
        channel = ConsumeChannel(await session.open_channel(), session, self._queue, self._inbox)
        # Before the first delivery can arrive: whoever receives it must be able to settle it.
        self._channel = channel
        self._inbox.clear()
        try:
            if not self._cancelled.is_set():  # nor for a moment: it would take messages, and count as a delivery
                await channel.consume(self._prefetch)
        except BaseException:
            await channel.close()
            raise
        return channel

    async def _keep(self, channel: "ConsumeChannel") -> None:
        pauses = Pauses()
        while True:
            opened_at = time.monotonic()
            ending = await channel.ended()
            self._inbox.clear()
            await channel.close()
            if self._cancelled.is_set():
                return
            if not ending.connection_lost:  # that is logged, and paused for, where it is restored
                self._tell(ending)
                await asyncio.sleep(pauses.after(time.monotonic() - opened_at))
            try:
                channel = await self._open_again()
            except BrokerUnavailable:  # the broker was closed
                self._inbox.close()
                return
            if self._cancelled.is_set():  # meanwhile
                await channel.close()
                return
            if not ending.connection_lost:
                log.info("A consumer is restored", action="consumer_restored", queue=self._queue.name)

    async def _open_again(self) -> "ConsumeChannel":
        def helps(error: BaseException) -> bool:  # whatever it is: nobody is there to be told, or would try again
            return isinstance(error, Exception) and not self._connection.closed

        retrying = AsyncRetrying(
            wait=backoff(), retry=retry_if_exception(helps), before_sleep=self._log_failure, reraise=True
        )
        return await retrying(self._open)

    def _tell(self, ending: Ending) -> None:
        if ending.consumer_timeout is None:
            log.warning(
                "RabbitMQ ended a consumer; consuming again",
                action="consumer_lost",
                queue=self._queue.name,
                reason=ending.reason,
            )
            return
        self.consumer_timeout = ending.consumer_timeout
        log.warning(
            "RabbitMQ took deliveries back: one was unsettled for longer than its consumer_timeout; they come again",
            action="consumer_timed_out",
            queue=self._queue.name,
            setting="consumer_timeout",
            seconds=ending.consumer_timeout,
            remedy=REMEDY,
        )

    def _log_failure(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if is_worth_a_line(state) and not isinstance(error, ChannelLost):  # that is told where it is restored
            log.warning(
                "A consumer cannot be restored; trying again",
                action="consumer_not_restored",
                queue=self._queue.name,
                attempt=state.attempt_number,
                error=failure_text(state),
            )

    def _settle(self, deliveries: Sequence[Delivery], encode: Callable[..., bytes]) -> None:
        settled = self._channel.settle(deliveries, encode) if self._channel is not None else 0
        if settled < len(deliveries):
            log.debug(
                "Late settlements were ignored",
                action="late_settlement_ignored",
                queue=self._queue.name,
                count=len(deliveries) - settled,
            )
