"""One channel with one consumer, from its opening to its end.

aiormq starts a task for each delivery. Here the router gives deliveries to us as they arrive, and they go straight into
the inbox; aiormq's channel does what else there is: starting and cancelling the consumer, and noticing the end.
"""

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from aiormq import Channel
from aiormq.abc import DeliveredMessage
from pamqp import commands
from pamqp.common import FieldTable

from messaging.inbox import Inbox
from messaging.port import Delivery, Queue, QueueKind
from messaging.rabbitmq.channel_reader import DELIVER, ChannelReader
from messaging.rabbitmq.connection import Session, close_channel
from messaging.rabbitmq.decoding import decode_delivery
from messaging.rabbitmq.ending import CANCELLED, Ending, channel_ending
from messaging.rabbitmq.failures import ChannelLost, using_channel
from messaging.rabbitmq.settlement import Unsettled

_CLOSE_TIMEOUT: Final = 5.0  # seconds; a broker that does not answer learns of it when the connection ends

_channel_ids = itertools.count(1)


class ConsumeChannel:
    """One channel with one consumer, until either ends."""

    def __init__(self, channel: Channel, session: Session, queue: Queue, inbox: Inbox) -> None:
        self._channel = channel
        self._writer = session.writer
        self._queue = queue
        self._inbox = inbox
        self._id = next(_channel_ids)
        self._unsettled = Unsettled()
        self._cancelled = asyncio.get_running_loop().create_future()
        self._ended = False
        self._consumer_tag: str | None = None
        self._reader = ChannelReader(contents={DELIVER: self._on_deliver})
        session.router.register(channel.number, self._reader)
        channel.closing.add_done_callback(lambda _: session.router.unregister(channel.number, self._reader))
        channel.on_consumer_cancel_callbacks.add(self._on_cancel)

    async def consume(self, prefetch: int) -> None:
        """Set the window, then consume: AMQP applies it to consumers that start afterwards."""
        with using_channel(f'consuming queue "{self._queue.name}"'):
            await self._channel.basic_qos(prefetch_count=prefetch)
            started = await self._channel.basic_consume(
                self._queue.name, _refuse, arguments=_consumer_arguments(self._queue)
            )
        self._consumer_tag = started.consumer_tag

    async def cancel(self) -> None:
        """End the consumer and keep the channel: what was delivered can still be settled here.

        RabbitMQ answers behind everything that it had sent, so nothing arrives once this has returned. Where it does
        not answer in time, or the channel ends meanwhile, whatever was delivered comes again.
        """
        if self._consumer_tag is None or self._ended:
            return
        with suppress(TimeoutError, ChannelLost):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                with using_channel(f'cancelling the consumer of queue "{self._queue.name}"'):
                    await self._channel.basic_cancel(self._consumer_tag)

    def settle(self, deliveries: Sequence[Delivery], encode: Callable[..., bytes]) -> int:
        """Write what settles *deliveries*; return how many of them this channel still had."""
        if self._ended or self._reader.is_closed or self._channel.is_closed:
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
            return CANCELLED
        return channel_ending(None if closing.cancelled() else closing.exception())

    async def close(self) -> None:
        """Send what is still to be sent, then close the channel, which returns everything unsettled.

        A mere basic.cancel would let a quorum queue's next consumer start while we still hold deliveries. Of more than
        32 single acks sent just before, a quorum queue may lose the later ones (seen on 3.10): those come again.
        """
        self._ended = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._writer.flushed()
                await close_channel(self._channel)

    def _on_deliver(self, arguments: bytes, header: bytes, body: bytes) -> None:
        if self._ended:
            return
        delivery = decode_delivery(arguments, header, body, queue=self._queue.name, channel=self._id)
        self._unsettled.add(delivery.tag[1])
        self._inbox.put(delivery)

    def _on_cancel(self, _: commands.Basic.Cancel) -> None:
        if not self._cancelled.done():
            self._cancelled.set_result(None)


def _consumer_arguments(queue: Queue) -> FieldTable:
    """Have RabbitMQ cancel the consumer whenever the queue goes away.

    Else, when somebody declares a classic queue of that name in the same moment, RabbitMQ starts the consumer again by
    itself; and when that queue goes away too, it never says so (3.10: the consumer then waits for ever). Quorum queues
    refuse the argument, and were never seen to do so.
    """
    return {} if queue.kind is QueueKind.QUORUM else {"x-cancel-on-ha-failover": True}


async def _refuse(_: DeliveredMessage) -> None:
    raise RuntimeError("a delivery came by way of aiormq, past messaging/rabbitmq/router.py; it stays unsettled")
