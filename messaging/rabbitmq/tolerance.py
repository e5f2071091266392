"""Reading properties that nobody should have sent.

RabbitMQ passes on properties, headers and routing keys as the bytes they are. Where a text is not UTF-8, a time is out
of range or a table is broken, pamqp raises, and aiormq ends the connection. The next connection gets the same message,
and so on for ever: a single message, from anybody who may publish, would stop every consumer of this process. So what
cannot be read is read as something harmless; the body still arrives, and whoever consumes it decides.
"""

from datetime import datetime
from typing import Final

from pamqp import decode
from pamqp.common import FieldTable

UNREADABLE_HEADER: Final = "x-forkjoin-unreadable-headers"

_Failures = (ValueError, OverflowError, OSError, RecursionError)


def tolerate_unreadable_properties() -> None:
    """Replace three of pamqp's decoders by ones that differ only where those raise; repeating it is harmless."""
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["timestamp"] = _timestamp
    decode.METHODS["table"] = _table


def _short_string(data: bytes) -> tuple[int, str]:
    try:
        return decode.short_str(data)
    except UnicodeDecodeError:
        end = data[0] + 1
        return end, data[1:end].decode(errors="backslashreplace")


def _timestamp(data: bytes) -> tuple[int, datetime | None]:
    try:
        return decode.timestamp(data)
    except _Failures:
        return 8, None


def _table(data: bytes) -> tuple[int, FieldTable]:
    try:
        return decode.field_table(data)
    except _Failures as error:
        size = int.from_bytes(data[:4])
        return 4 + size, {UNREADABLE_HEADER: f"the sender's headers cannot be read: {type(error).__name__}: {error}"}
