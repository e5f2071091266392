"""Reading a message's properties, also those that nobody should have sent.

RabbitMQ passes on properties, headers and routing keys as the bytes they are. Were an unreadable one an error, the
connection would end, the next one would get the same message, and so on for ever: a single message, from anybody who
may publish, would stop every consumer of this process. So what cannot be read is read as something harmless; the body
still arrives, and whoever consumes it decides.
"""

from functools import lru_cache
from typing import Any, Final, NamedTuple

from pamqp import decode
from pamqp.common import FieldTable

UNREADABLE_HEADER: Final = "x-forkjoin-unreadable-headers"

_Failures = (ValueError, OverflowError, OSError, RecursionError)

_TEXT: Final = 0  # a short string; other numbers are the sizes of what is skipped
_TABLE: Final = -1
# AMQP 0-9-1, 1.8.2: in this order, a bit for each from the highest down; and the place in `Properties`.
_ORDER: Final = (
    (_TEXT, None),  # content type
    (_TEXT, None),  # content encoding
    (_TABLE, 0),
    (1, None),  # delivery mode
    (1, None),  # priority
    (_TEXT, 1),
    (_TEXT, 2),
    (_TEXT, None),  # expiration
    (_TEXT, 3),
    (8, None),  # timestamp
    (_TEXT, 4),
    (_TEXT, 5),
    (_TEXT, None),  # application id
    (_TEXT, None),  # cluster id
)
_FLAGS_AT: Final = 12  # in a header, behind class, weight and the body's size


class Properties(NamedTuple):
    """The properties of a message that we look at."""

    headers: FieldTable
    correlation_id: str | None
    reply_to: str | None
    message_id: str | None
    type: str | None
    user_id: str | None


def read_properties(header: bytes) -> Properties:
    """Return the properties in a header frame's payload, whatever it holds."""
    found: list[Any] = [{}, None, None, None, None, None]
    try:
        end = _read(header, found)
    except IndexError:
        end = len(header) + 1
    if end > len(header):
        return Properties({UNREADABLE_HEADER: "the sender's properties are cut off"}, *[None] * 5)
    return Properties._make(found)


def read_text(data: bytes, at: int) -> tuple[str, int]:
    """Return the short string at *at*, and where it ends; bytes that are not UTF-8 are shown as ``\\xff``."""
    end = at + 1 + data[at]
    return data[at + 1 : end].decode("utf-8", "backslashreplace"), end


def _read(header: bytes, found: list[Any]) -> int:
    flags = header[_FLAGS_AT] << 8 | header[_FLAGS_AT + 1]
    at = _FLAGS_AT + 2
    more = flags
    while more & 1:  # further flags follow, for properties that AMQP does not have
        more = header[at + 1]
        at += 2
    for what, place in _layout(flags):
        if what is _TEXT:
            end = at + 1 + header[at]
            if place is not None:
                found[place] = header[at + 1 : end].decode("utf-8", "backslashreplace")
            at = end
        elif what is _TABLE:
            found[0], at = _read_table(header, at)
        else:
            at += what
    return at


@lru_cache(maxsize=256)  # a handful of senders, each with its own choice
def _layout(flags: int) -> tuple[tuple[int, int | None], ...]:
    return tuple(item for index, item in enumerate(_ORDER) if flags & 0x8000 >> index)


def _read_table(header: bytes, at: int) -> tuple[FieldTable, int]:
    end = at + 4 + int.from_bytes(header[at : at + 4])
    try:
        return decode.field_table(header[at:end])[1], end
    except _Failures as error:
        return {UNREADABLE_HEADER: f"the sender's headers cannot be read: {type(error).__name__}: {error}"}, end
