"""Consuming one queue, across reconnects.

aiormq starts a task for each delivery. Here deliveries go straight into the inbox: the method of aiormq's channel that
takes them in is replaced on the instance. Should a later aiormq no longer call it, the ordinary callback still brings
every delivery, only slower.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import structlog
from aiormq import Channel
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPChannelError
from pamqp import commands
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from messaging.dead_letters import dead_letter, require_confirmed
from messaging.inbox import Inbox
from messaging.port import DeadLetterReason, Delivery, OutgoingMessage, PublishOutcome, Queue
from messaging.rabbitmq.backoff import Pauses, backoff, failure_text, is_worth_a_line
from messaging.rabbitmq.connection import Connection, Session, close_channel
from messaging.rabbitmq.declaration import ensure_queue
from messaging.rabbitmq.encoding import carriable_headers, decode_delivery, encode_ack, encode_requeue
from messaging.rabbitmq.failures import reason, using_channel
from messaging.rabbitmq.settlement import Unsettled

log = structlog.get_logger(__name__)

PublishDeadLetter = Callable[[OutgoingMessage], Awaitable[PublishOutcome]]

_channel_ids = itertools.count(1)


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
        message = replace(message, headers=carriable_headers(message.headers))
        require_confirmed(await self._publish_dead_letter(message), delivery)
        await self.ack([delivery])

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
        channel = ConsumeChannel(await session.open_channel(), session, self._queue.name, self._inbox)
        # Before the first delivery can arrive: whoever receives it must be able to settle it.
        self._channel = channel
        self._inbox.clear()
        try:
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
            if not ending.connection_lost:  # that is logged, and paused for, where it is restored
                log.warning(
                    "RabbitMQ ended a consumer; consuming again",
                    action="consumer_lost",
                    queue=self._queue.name,
                    reason=ending.reason,
                    **_setting_to_blame(ending.reason),
                )
                await asyncio.sleep(pauses.after(time.monotonic() - opened_at))
            channel = await self._open_again()
            log.info("A consumer is restored", action="consumer_restored", queue=self._queue.name)

    async def _open_again(self) -> "ConsumeChannel":
        retrying = AsyncRetrying(
            wait=backoff(),
            retry=retry_if_exception_type(Exception),  # nobody is there to be told, and nobody else would try again
            before_sleep=self._log_failure,
        )
        return await retrying(self._open)

    def _log_failure(self, state: RetryCallState) -> None:
        if is_worth_a_line(state):
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


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a channel gives no more deliveries."""

    reason: str
    connection_lost: bool


class ConsumeChannel:
    """One channel with one consumer, until either ends."""

    def __init__(self, channel: Channel, session: Session, queue: str, inbox: Inbox) -> None:
        self._channel = channel
        self._writer = session.writer
        self._queue = queue
        self._inbox = inbox
        self._id = next(_channel_ids)
        self._unsettled = Unsettled()
        self._cancelled = asyncio.get_running_loop().create_future()
        self._ended = False
        channel._on_deliver_frame = self._on_deliver  # type: ignore[method-assign]
        channel.on_consumer_cancel_callbacks.add(self._on_cancel)

    async def consume(self, prefetch: int) -> None:
        """Set the window, then consume: AMQP applies it to consumers that start afterwards."""
        with using_channel(f'consuming queue "{self._queue}"'):
            await self._channel.basic_qos(prefetch_count=prefetch)
            await self._channel.basic_consume(self._queue, self._on_message)

    def settle(self, deliveries: Sequence[Delivery], encode: Callable[..., bytes]) -> int:
        """Write what settles *deliveries*; return how many of them this channel still had."""
        if self._ended or self._channel.is_closed:
            return 0
        number = self._channel.number
        tags = {tag for channel, tag in (delivery.tag for delivery in deliveries) if channel == self._id}
        count, frames = self._unsettled.settle(tags, lambda tag, multiple: encode(tag, number, multiple=multiple))
        if frames:
            self._writer.write(frames)
        return count

    async def ended(self) -> Ending:
        """Wait until the broker ended the channel or the consumer, or the connection is lost."""
        closing = self._channel.closing
        await asyncio.wait([closing, self._cancelled], return_when=asyncio.FIRST_COMPLETED)
        self._ended = True
        if not closing.done():
            return Ending("the consumer was cancelled: its queue was deleted or has moved to another node", False)
        error = None if closing.cancelled() else closing.exception()
        return Ending(reason(error), connection_lost=not isinstance(error, AMQPChannelError))

    async def close(self) -> None:
        """Send what is still to be sent, then close the channel, which returns everything unsettled.

        A mere basic.cancel would let a quorum queue's next consumer start while we still hold deliveries. Of more than
        32 single acks sent just before, a quorum queue may lose the later ones (seen on 3.10): those come again.
        """
        self._ended = True
        await self._writer.flushed()
        await close_channel(self._channel)

    async def _on_deliver(self, frame: commands.Basic.Deliver) -> None:
        header = await self._channel._get_frame()
        self._take(frame, await self._channel._read_content(frame, header))  # type: ignore[arg-type]  # a header follows

    async def _on_message(self, message: DeliveredMessage) -> None:
        if isinstance(message.delivery, commands.Basic.Deliver):
            self._take(message.delivery, message)

    def _take(self, frame: commands.Basic.Deliver, message: DeliveredMessage) -> None:
        if self._ended:
            return
        delivery = decode_delivery(frame, message, queue=self._queue, channel=self._id)
        self._unsettled.add(delivery.tag[1])
        self._inbox.put(delivery)

    def _on_cancel(self, _: commands.Basic.Cancel) -> None:
        if not self._cancelled.done():
            self._cancelled.set_result(None)


def _setting_to_blame(why: str) -> dict[str, str]:
    return {"setting": "consumer_timeout of the broker"} if "timed out" in why else {}
