"""Messages to frames.

pamqp encodes a message in 6 us, this in less than 2: the properties that every message has are laid out by hand, and
what many messages share is encoded once. Methods and tables of headers are still pamqp's.
"""

import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from pamqp import commands
from pamqp.encode import encode_table_value, field_table
from pamqp.frame import marshal

from messaging.port import OutgoingMessage

_FRAME_OVERHEAD: Final = 8  # type, channel, size and end mark of a frame: AMQP 0-9-1, 2.3.5
_NotCarriable = (AttributeError, TypeError, ValueError, OverflowError, RecursionError, struct.error)

# A content header: kind, channel, size | class, weight, size of the body, flags | properties, in the flags' order.
_HEADER: Final = struct.Struct(">BHIHHQH")
_HEADER_PAYLOAD: Final = 14  # of which this many bytes stand before the properties
_BODY: Final = struct.Struct(">BHI")
_END: Final = b"\xce"
_BASIC: Final = 60
_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE = 0x8000, 0x2000, 0x1000
_CORRELATION_ID, _REPLY_TO, _MESSAGE_ID, _TYPE, _USER_ID = 0x0400, 0x0200, 0x0080, 0x0020, 0x0010
_JSON: Final = b"\x10application/json"
_MODES: Final = {False: b"\x01", True: b"\x02"}  # by whether the message is persistent
_LENGTHS: Final = tuple(bytes((length,)) for length in range(256))

_SETTLEMENT: Final = struct.Struct(">BHIHHQBB")  # kind, channel, size | class, method, tag, flags | end mark
_ACK, _NACK = 80, 120
_MULTIPLE, _REQUEUE = 1, 2


def encode_message(message: OutgoingMessage, channel: int, frame_max: int, user_id: str | None = None) -> bytes:
    """Return the frames that publish *message* on a channel.

    Args:
        message: What to publish.
        channel: The channel's number.
        frame_max: The largest frame that the broker takes; a longer body is cut into several.
        user_id: Our user, to sign the message with. RabbitMQ closes the channel where it is another's.

    Raises:
        ValueError: A header holds something that AMQP cannot carry, or a property is longer than it allows.
    """
    try:
        flags, properties = _properties(message)
    except _NotCarriable as error:
        raise ValueError(f"AMQP cannot carry the headers of a {message.type} message: {error}") from error
    if user_id:
        flags |= _USER_ID
        properties += _short_string(user_id)
    method = _publish_method(channel, message.exchange, message.routing_key, message.mandatory)
    body = message.body
    size = len(body)
    header = _HEADER.pack(2, channel, _HEADER_PAYLOAD + len(properties), _BASIC, 0, size, flags)
    if 0 < size <= frame_max - _FRAME_OVERHEAD:
        return b"".join((method, header, properties, _END, _BODY.pack(3, channel, size), body, _END))
    return b"".join((method, header, properties, _END, *_body_frames(body, channel, frame_max - _FRAME_OVERHEAD)))


def carriable_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return *headers* with what pamqp reads but cannot write in a form that it can: other clients may send more types.

    Bytes (a text that is not UTF-8) become a byte array, and anything else becomes text.
    """
    return {name: _carriable(value) for name, value in headers.items()}


def encode_ack(tag: int, channel: int, *, multiple: bool) -> bytes:
    """Return the frame that acks one delivery, or all up to it."""
    return _SETTLEMENT.pack(1, channel, 13, _BASIC, _ACK, tag, _MULTIPLE if multiple else 0, 0xCE)


def encode_requeue(tag: int, channel: int, *, multiple: bool) -> bytes:
    """Return the frame that gives one delivery back, or all up to it."""
    return _SETTLEMENT.pack(1, channel, 13, _BASIC, _NACK, tag, _REQUEUE | (_MULTIPLE if multiple else 0), 0xCE)


def _carriable(value: Any) -> Any:
    try:
        written = _with_byte_arrays(value)
    except RecursionError:
        return _as_text(value)
    return written if _is_carriable(written) else _as_text(value)


def _with_byte_arrays(value: Any) -> Any:
    match value:
        case bytes():
            return bytearray(value)
        case list():
            return [_with_byte_arrays(item) for item in value]
        case dict():
            return {name: _with_byte_arrays(item) for name, item in value.items()}
        case _:
            return value


def _is_carriable(value: Any) -> bool:
    try:
        encode_table_value(value)
    except _NotCarriable:
        return False
    return True


def _as_text(value: Any) -> str:
    try:
        return repr(value)
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deeply"


@lru_cache(maxsize=1024)  # a batch has few destinations, and a third of the work of encoding a message is here
def _publish_method(channel: int, exchange: str, routing_key: str, mandatory: bool) -> bytes:
    return marshal(commands.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=mandatory), channel)


def _properties(message: OutgoingMessage) -> tuple[int, bytes]:
    flags = _CONTENT_TYPE | _DELIVERY_MODE
    start = _JSON
    if message.headers:
        flags |= _HEADERS
        start += field_table(dict(message.headers))
    start += _MODES[message.persistent]
    if message.correlation_id:
        flags |= _CORRELATION_ID
        start += _short_string(message.correlation_id)
    if message.reply_to:
        flags |= _REPLY_TO
        start += _short_string(message.reply_to)
    if message.message_id:
        flags |= _MESSAGE_ID
        start += _short_string(message.message_id)
    if message.type:
        flags |= _TYPE
        start += _short_string(message.type)
    return flags, start


def _short_string(text: str) -> bytes:
    data = text.encode()
    if len(data) > 255:
        raise ValueError(f"a property of {len(data)} bytes; AMQP allows 255")
    return _LENGTHS[len(data)] + data


def _body_frames(body: bytes, channel: int, largest: int) -> Iterator[bytes]:
    for start in range(0, len(body), largest):
        piece = body[start : start + largest]
        yield _BODY.pack(3, channel, len(piece))
        yield piece
        yield _END
