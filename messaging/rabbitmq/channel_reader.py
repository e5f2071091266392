"""The methods of one channel that are ours to read, each with the content that follows it.

AMQP sends a message as a method, a header with the body's size, and as many body frames as that takes. On one channel
nothing comes between these; between two channels' frames anything may.
"""

from collections.abc import Callable, Mapping
from typing import Final

from messaging.rabbitmq.router import BODY, HEADER, METHOD, FrameOutOfPlaceError

DELIVER: Final = b"\0\x3c\0\x3c"  # class and method: AMQP 0-9-1, 1.8
RETURN: Final = b"\0\x3c\0\x32"
ACK: Final = b"\0\x3c\0\x50"
NACK: Final = b"\0\x3c\0\x78"  # RabbitMQ's extension
_CLOSE: Final = b"\0\x14\0\x28"

OnMethod = Callable[[bytes], None]  # its arguments
OnContent = Callable[[bytes, bytes, bytes], None]  # the method's arguments, the header, the body


class ChannelReader:
    """Takes a channel's frames from the router; see `Receiver` there.

    Args:
        methods: What to do with methods that have no content.
        contents: What to do with those that have, once it is complete.
    """

    def __init__(
        self, *, methods: Mapping[bytes, OnMethod] | None = None, contents: Mapping[bytes, OnContent] | None = None
    ) -> None:
        self._methods = methods or {}
        self._contents = contents or {}
        self._on_content: OnContent | None = None  # of the content that is arriving
        self._arguments = b""
        self._header = b""
        self._pieces: list[bytes] = []
        self._missing = 0  # bytes of the body
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether the broker closed the channel; aiormq is about to find out.

        What is written after aiormq's answer would be an error of the whole connection.
        """
        return self._is_closed

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        """Take the frame if it is one of ours. Raises FrameOutOfPlaceError."""
        if self._on_content is None:
            return kind == METHOD and self._take_method(data[start : start + 4], data[start + 4 : end])
        if self._header:
            if kind != BODY or end - start > self._missing:
                raise FrameOutOfPlaceError(f"frame of kind {kind} where {self._missing} bytes of a body were missing")
            self._take_body(data[start:end])
            return True
        if kind != HEADER:
            raise FrameOutOfPlaceError(f"frame of kind {kind} between a method and the header of its content")
        self._header = data[start:end]
        self._missing = int.from_bytes(self._header[4:12])
        if not self._missing:
            self._finish(b"")
        return True

    def _take_method(self, method: bytes, arguments: bytes) -> bool:
        on_content = self._contents.get(method)
        if on_content is not None:
            self._arguments = arguments
            self._on_content = on_content
            return True
        on_method = self._methods.get(method)
        if on_method is not None:
            on_method(arguments)
            return True
        if method == _CLOSE:
            self._is_closed = True
        return False

    def _take_body(self, piece: bytes) -> None:
        self._missing -= len(piece)
        if self._missing:
            self._pieces.append(piece)
            return
        if self._pieces:
            self._pieces.append(piece)
            piece = b"".join(self._pieces)
            self._pieces.clear()
        self._finish(piece)

    def _finish(self, body: bytes) -> None:
        on_content, header = self._on_content, self._header
        self._on_content, self._header = None, b""
        assert on_content is not None, "a content is complete only after its method"
        on_content(self._arguments, header, body)
