"""One channel in confirm mode, from its opening to its end.

aiormq's own `basic_publish` costs several times as much per message: it makes a future and a write of its own for each,
and holds the channel's lock until the write is drained. Here a batch is encoded into a few large writes and waits for
one event. Confirms and returns come from the router; aiormq's channel is opened in confirm mode, and notices its end.
"""

import asyncio
from itertools import islice
from typing import Final

import structlog
from aiormq import Channel
from aiormq.exceptions import AMQPChannelError

from messaging.port import PublishOutcome
from messaging.rabbitmq.channel_reader import ACK, NACK, RETURN, ChannelReader
from messaging.rabbitmq.confirms import Batch, Confirms
from messaging.rabbitmq.connection import Session
from messaging.rabbitmq.decoding import decode_answer, decode_return
from messaging.rabbitmq.encoding import encode_message
from messaging.rabbitmq.failures import reason

log = structlog.get_logger(__name__)

_CHUNK_BYTES: Final = 256 * 1024  # encoded in one go; the event loop turns between two chunks
_OUR_FRAME_MAX: Final = 128 * 1024  # where the broker has no limit


class ConfirmChannel:
    """An aiormq channel in confirm mode; nothing else may publish on it. It signs with *user_id*, if that is given."""

    def __init__(self, channel: Channel, session: Session, user_id: str | None = None) -> None:
        self._channel = channel
        self._user_id = user_id
        self._writer = session.writer
        self._router = session.router
        self._frame_max = session.connection.connection_tune.frame_max or _OUR_FRAME_MAX
        self._confirms = Confirms()
        self._lost = False
        self._reader = ChannelReader(
            methods={ACK: self._on_ack, NACK: self._on_nack}, contents={RETURN: self._on_return}
        )
        self._router.register(channel.number, self._reader)
        channel.closing.add_done_callback(self._on_closed)

    @property
    def is_lost(self) -> bool:
        """Whether the channel has ended."""
        return self._lost or self._reader.is_closed or self._channel.is_closed

    async def send(self, batch: Batch) -> None:
        """Write the messages of *batch*; the answers arrive there."""
        sent = 0
        while sent < len(batch.messages):
            if self.is_lost:
                batch.give_up()
                return
            sent = self._write_chunk(batch, sent)
            if sent < len(batch.messages):
                await self._writer.flushed()

    def _write_chunk(self, batch: Batch, start: int) -> int:
        # Numbers are given in the same step as the frames take their place: nothing can come between.
        frames: list[bytes] = []
        size = 0
        for message in islice(batch.messages, start, None):
            encoded = encode_message(message, self._channel.number, self._frame_max, self._user_id)
            frames.append(encoded)
            size += len(encoded)
            if size >= _CHUNK_BYTES:
                break
        end = start + len(frames)
        self._confirms.add(batch, start, end)
        self._writer.write(b"".join(frames))
        return end

    def _on_ack(self, arguments: bytes) -> None:
        tag, multiple = decode_answer(arguments)
        self._confirms.confirm(tag, multiple=multiple, outcome=PublishOutcome.CONFIRMED)

    def _on_nack(self, arguments: bytes) -> None:
        tag, multiple = decode_answer(arguments)
        self._confirms.confirm(tag, multiple=multiple, outcome=PublishOutcome.UNKNOWN)

    def _on_return(self, arguments: bytes, header: bytes, _: bytes) -> None:
        self._confirms.returned(*decode_return(arguments, header))

    def _on_closed(self, closing: "asyncio.Future[None]") -> None:
        self._lost = True
        self._router.unregister(self._channel.number, self._reader)
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
