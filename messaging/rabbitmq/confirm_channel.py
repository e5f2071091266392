"""One channel in confirm mode, from its opening to its end.

aiormq's own `basic_publish` costs several times as much per message: it makes a future and a write of its own for each,
and holds the channel's lock until the write is drained. Here a batch is encoded into a few large writes and waits for
one event. For that the two methods of aiormq's channel that take in confirms and returns are replaced on the instance;
the contract suite's publishing tests fail should a later aiormq no longer call them.
"""

import asyncio
from typing import Final

import structlog
from aiormq import Channel
from aiormq.exceptions import AMQPChannelError
from pamqp import commands

from messaging.port import PublishOutcome
from messaging.rabbitmq.confirms import Batch, Confirms
from messaging.rabbitmq.connection import Session
from messaging.rabbitmq.encoding import encode_message
from messaging.rabbitmq.failures import reason

log = structlog.get_logger(__name__)

_CHUNK_BYTES: Final = 256 * 1024  # encoded in one go; the event loop turns between two chunks


class ConfirmChannel:
    """An aiormq channel in confirm mode; nothing else may publish on it."""

    def __init__(self, channel: Channel, session: Session) -> None:
        self._channel = channel
        self._writer = session.writer
        self._frame_max = session.connection.connection_tune.frame_max
        self._confirms = Confirms()
        self._lost = False
        channel._on_confirm_frame = self._on_confirm  # type: ignore[method-assign]
        channel._on_return_frame = self._on_return  # type: ignore[method-assign]
        channel.closing.add_done_callback(self._on_closed)

    @property
    def is_lost(self) -> bool:
        """Whether the channel has ended."""
        return self._lost or self._channel.is_closed

    async def send(self, batch: Batch) -> None:
        """Write the messages of *batch*; the answers arrive there."""
        sent = 0
        while sent < len(batch.messages):
            if self.is_lost:
                batch.give_up()
                return
            sent = self._write_chunk(batch, sent)
            await self._writer.flushed()

    def _write_chunk(self, batch: Batch, start: int) -> int:
        # Numbers are given in the same step as the frames take their place: nothing can come between.
        frames: list[bytes] = []
        size = 0
        for message in batch.messages[start:]:
            encoded = encode_message(message, self._channel.number, self._frame_max)
            frames.append(encoded)
            size += len(encoded)
            if size >= _CHUNK_BYTES:
                break
        end = start + len(frames)
        for index in range(start, end):
            self._confirms.add(batch, index)
        self._writer.write(b"".join(frames))
        return end

    async def _on_confirm(self, frame: commands.Basic.Ack | commands.Basic.Nack | commands.Basic.Reject) -> None:
        acked = isinstance(frame, commands.Basic.Ack)
        outcome = PublishOutcome.CONFIRMED if acked else PublishOutcome.UNKNOWN
        multiple = not isinstance(frame, commands.Basic.Reject) and bool(frame.multiple)
        self._confirms.confirm(frame.delivery_tag or 0, multiple=multiple, outcome=outcome)

    async def _on_return(self, frame: commands.Basic.Return) -> None:
        header = await self._channel._get_frame()
        message = await self._channel._read_content(frame, header)  # type: ignore[arg-type]  # a header follows a return
        message_id = message.header.properties.message_id
        self._confirms.returned(message_id or "", frame.exchange or "", frame.routing_key or "")

    def _on_closed(self, closing: "asyncio.Future[None]") -> None:
        self._lost = True
        unanswered = self._confirms.unanswered
        self._confirms.lost()
        error = None if closing.cancelled() else closing.exception()
        if isinstance(error, AMQPChannelError):  # only the channel: a lost connection is logged where it is restored
            log.warning(
                "RabbitMQ closed the publishing channel",
                action="publish_channel_closed",
                reason=reason(error),
                unconfirmed=unanswered,
            )
