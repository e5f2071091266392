"""Messages to frames, and frames to deliveries."""

import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from aiormq.abc import DeliveredMessage
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.encode import encode_table_value
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from messaging.port import Delivery, OutgoingMessage

_FRAME_OVERHEAD = 8  # type, channel, size and end mark of a frame: AMQP 0-9-1, 2.3.5
_NotCarriable = (TypeError, ValueError, OverflowError, RecursionError, struct.error)
_PERSISTENT = 2
_TRANSIENT = 1


def encode_message(message: OutgoingMessage, channel: int, frame_max: int) -> bytes:
    """Return the frames that publish *message* on a channel.

    Args:
        message: What to publish.
        channel: The channel's number.
        frame_max: The largest frame that the broker takes; a longer body is cut into several.

    Raises:
        ValueError: A header holds something that AMQP cannot carry.
    """
    try:
        header = marshal(ContentHeader(body_size=len(message.body), properties=_properties(message)), channel)
    except _NotCarriable as error:
        raise ValueError(f"AMQP cannot carry the headers of a {message.type} message: {error}") from error
    method = _publish_method(channel, message.exchange, message.routing_key, message.mandatory)
    body = message.body
    size = frame_max - _FRAME_OVERHEAD
    if 0 < len(body) <= size:
        return b"".join((method, header, marshal(ContentBody(body), channel)))
    pieces = (marshal(ContentBody(body[start : start + size]), channel) for start in range(0, len(body), size))
    return b"".join((method, header, *pieces))


def carriable_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return *headers* with what pamqp reads but cannot write in a form that it can: other clients may send more types.

    Bytes (a text that is not UTF-8) become a byte array, and anything else becomes text.
    """
    return {name: _carriable(value) for name, value in headers.items()}


def decode_delivery(frame: commands.Basic.Deliver, message: DeliveredMessage, *, queue: str, channel: int) -> Delivery:
    """Return what arrived from *queue* as a delivery.

    Args:
        frame: The method that announced it.
        message: Its content, as aiormq gives it.
        queue: The queue that is consumed.
        channel: Our own number of the channel, never used again; the broker's numbers are.
    """
    properties = message.header.properties
    return Delivery(
        queue=queue,
        exchange=frame.exchange or "",
        routing_key=frame.routing_key or "",
        type=properties.message_type,
        message_id=properties.message_id,
        body=message.body,
        correlation_id=properties.correlation_id,
        reply_to=properties.reply_to,
        headers=properties.headers or {},
        redelivered=bool(frame.redelivered),
        tag=(channel, frame.delivery_tag or 0),
    )


def encode_ack(tag: int, channel: int, *, multiple: bool) -> bytes:
    """Return the frame that acks one delivery, or all up to it."""
    return marshal(commands.Basic.Ack(tag, multiple), channel)


def encode_requeue(tag: int, channel: int, *, multiple: bool) -> bytes:
    """Return the frame that gives one delivery back, or all up to it."""
    return marshal(commands.Basic.Nack(tag, multiple, requeue=True), channel)


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


def _properties(message: OutgoingMessage) -> commands.Basic.Properties:
    return commands.Basic.Properties(
        content_type="application/json",
        headers=dict(message.headers) if message.headers else None,
        delivery_mode=_PERSISTENT if message.persistent else _TRANSIENT,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        message_id=message.message_id,
        message_type=message.type,
    )
