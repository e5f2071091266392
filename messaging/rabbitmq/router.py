"""What the broker sends, cut into frames as it arrives: each goes to the channel's receiver, or on to aiormq.

aiormq reads a frame with three awaits, builds an object from it, and passes it through two tasks and a queue: 30 us of
CPU for a delivery, which is three frames. A receiver takes them out of asyncio's chunk at once, a whole delivery in a
few microseconds. aiormq keeps what happens once per channel or connection: the handshake, heartbeats, requests and
their answers, and everything on channels that have no receiver.

Relied upon: the protocol that `asyncio.open_connection` makes hands over all bytes by calling `feed_data`, a public
method, on the very reader that it returned. asyncio and uvloop do so, with TLS as without. `require_fed` finds out
when a connection is made, and the contract suite sees that no delivery comes by way of aiormq.
"""

import asyncio
import struct
import time
from collections.abc import Callable
from typing import Final, Protocol

import structlog

log = structlog.get_logger(__name__)

METHOD: Final = 1  # kinds of frames: AMQP 0-9-1, 2.3.5
HEADER: Final = 2
BODY: Final = 3

_KINDS: Final = frozenset({METHOD, HEADER, BODY, 8})
_START: Final = struct.Struct(">BHI")  # kind, channel, size of what follows; an end mark comes after that
_START_SIZE: Final = _START.size
_OVERHEAD: Final = _START_SIZE + 1
_END: Final = 0xCE
_HEARTBEAT: Final = b"\x08\0\0\0\0\0\0\xce"
_MALFORMED: Final = bytes(_OVERHEAD)  # no kind, no end mark: aiormq ends the connection
_SIGN_OF_LIFE: Final = 1.0  # seconds; aiormq gives a connection up after at least six without a frame


class FrameOutOfPlaceError(Exception):
    """The broker sent a frame that cannot come here; the connection cannot be understood any more."""


class Receiver(Protocol):
    """Takes frames of one channel."""

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Take the frame whose payload is ``data[start:end]``, or return False to leave it to aiormq.

        Raises:
            FrameOutOfPlaceError: The connection has to end.
        """


class FrameRouter:
    """Stands between the socket and aiormq.

    Args:
        reader: The connection's stream, before anything was read; aiormq reads from it what passes.
        clock: Seconds from any beginning.
    """

    def __init__(self, reader: asyncio.StreamReader, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pass_on = reader.feed_data
        reader.feed_data = self.feed  # type: ignore[assignment, method-assign]
        self._receivers: dict[int, Receiver] = {}
        self._held: list[bytes] = []  # the beginning of a frame
        self._missing = 0  # bytes of which it is known that they belong to it
        self._gave_up = False
        self._fed = False
        self._last_sign = -_SIGN_OF_LIFE

    def register(self, channel: int, receiver: Receiver) -> None:
        """Give the frames of a channel to *receiver*, instead of to one that an ended channel of that number had."""
        self._receivers[channel] = receiver

    def unregister(self, channel: int, receiver: Receiver) -> None:
        """Give *receiver* no more; nothing happens when the number belongs to another one by now."""
        if self._receivers.get(channel) is receiver:
            del self._receivers[channel]

    def require_fed(self) -> None:
        """Raise RuntimeError unless what was received so far came through here."""
        if not self._fed:
            raise RuntimeError(
                "this asyncio does not hand over what it receives by StreamReader.feed_data any more; "
                "messaging/rabbitmq/router.py must learn how it does, or use an older Python or uvloop"
            )

    def feed(self, data: bytes) -> None:
        """Take what the socket received; frames may be cut anywhere."""
        self._fed = True
        if self._gave_up:
            self._pass_on(data)
            return
        if self._held:
            self._held.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._held)
            self._held.clear()
        try:
            self._route(data)
        except FrameOutOfPlaceError as error:
            log.warning(
                "The broker sent a frame that cannot come here; dropping the connection",
                action="frame_out_of_place",
                error=str(error),
            )
            self._give_up(_MALFORMED)

    def _route(self, data: bytes) -> None:
        start = passed = 0  # where the next frame begins, and up to where frames are dealt with
        took = False
        size = len(data)
        while start + _OVERHEAD <= size:
            kind, channel, length = _START.unpack_from(data, start)
            end = start + length + _OVERHEAD
            if end > size:
                break
            if data[end - 1] != _END:
                self._give_up(data[passed:])
                return
            receiver = self._receivers.get(channel)
            if receiver is not None and receiver.take(kind, data, start + _START_SIZE, end - 1):
                took = True
                if passed < start:
                    self._pass_on(data[passed:start])
                passed = end
            start = end
        if passed < start:
            self._pass_on(data[passed:start])
        if took:
            self._show_life()
        if start < size:
            self._hold(data[start:])

    def _hold(self, beginning: bytes) -> None:
        if beginning[0] not in _KINDS:  # not AMQP, or another version of it: aiormq says so
            self._give_up(beginning)
            return
        self._held.append(beginning)
        whole = _OVERHEAD
        if len(beginning) >= _START_SIZE:
            whole += _START.unpack_from(beginning)[2]
        self._missing = whole - len(beginning)

    def _show_life(self) -> None:
        # aiormq ends a connection on which it has not seen a frame for three heartbeats; it does not see ours.
        now = self._clock()
        if now - self._last_sign >= _SIGN_OF_LIFE:
            self._last_sign = now
            self._pass_on(_HEARTBEAT)

    def _give_up(self, data: bytes) -> None:
        self._gave_up = True
        self._pass_on(data)
