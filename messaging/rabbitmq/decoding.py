"""Frames that arrive, as values: arguments of methods as the `ChannelReader` gives them, without class and method."""

import struct
from functools import lru_cache
from typing import Final

from messaging.port import Delivery
from messaging.rabbitmq.properties import read_properties, read_text

_TAG_AND_FLAG: Final = struct.Struct(">QB")
_REPLY_TEXT_AT: Final = 2  # in a return, behind the reply code


def decode_delivery(arguments: bytes, header: bytes, body: bytes, *, queue: str, channel: int) -> Delivery:
    """Return a basic.deliver and its content as a delivery.

    Args:
        arguments: Of the method.
        header: The header frame's payload.
        body: Complete.
        queue: The queue that is consumed.
        channel: Our own number of the channel, never used again; the broker's numbers are.
    """
    at = 1 + arguments[0]  # behind the consumer's tag
    tag, redelivered = _TAG_AND_FLAG.unpack_from(arguments, at)
    exchange, routing_key = _address(arguments[at + _TAG_AND_FLAG.size :])
    headers, correlation_id, reply_to, message_id, message_type, user_id = read_properties(header)
    return Delivery(
        queue,
        exchange,
        routing_key,
        message_type,
        message_id,
        body,
        correlation_id,
        reply_to,
        headers,
        redelivered & 1 == 1,
        (channel, tag),
        user_id,
    )


def decode_answer(arguments: bytes) -> tuple[int, bool]:
    """Return the tag that a basic.ack or basic.nack names, and whether all before it are meant too."""
    tag, flags = _TAG_AND_FLAG.unpack_from(arguments)
    return tag, flags & 1 == 1


def decode_return(arguments: bytes, header: bytes) -> tuple[str, str, str]:
    """Return message id, exchange and routing key of a basic.return."""
    exchange_at = _REPLY_TEXT_AT + 1 + arguments[_REPLY_TEXT_AT]
    exchange, routing_key = _address(arguments[exchange_at:])
    return read_properties(header).message_id or "", exchange, routing_key


@lru_cache(maxsize=1024)  # many deliveries have the same
def _address(data: bytes) -> tuple[str, str]:
    exchange, end = read_text(data, 0)
    return exchange, read_text(data, end)[0]
