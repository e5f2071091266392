"""What a message and a consumer may be at most, on every broker version that we support."""

from typing import Final

from messaging.port import OutgoingMessage

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024  # RabbitMQ 4.x; above it the broker closes the channel (3.x: 128 MiB)
MAX_PREFETCH: Final = 65_535  # basic.qos carries it in 16 bits
MAX_NAME_BYTES: Final = 255  # an AMQP short string: names, routing keys, message ids


def check_prefetch(prefetch: int) -> None:
    """Raise ValueError unless AMQP can express *prefetch*."""
    if not 0 <= prefetch <= MAX_PREFETCH:
        raise ValueError(f"prefetch is {prefetch}; it must be 1 to {MAX_PREFETCH}, or 0 for no limit")


def check_addressable(message: OutgoingMessage) -> None:
    """Raise ValueError when a property of *message* is longer than AMQP can carry."""
    for place in ("exchange", "routing_key", "type", "message_id", "correlation_id", "reply_to"):
        text = getattr(message, place)
        if text is not None and len(text) * 4 > MAX_NAME_BYTES and len(text.encode()) > MAX_NAME_BYTES:
            raise ValueError(
                f"{place} of a {message.type} message has {len(text.encode())} bytes; AMQP allows {MAX_NAME_BYTES}"
            )
