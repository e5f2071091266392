import struct
from collections.abc import Iterator

import pytest
from pamqp import decode

from messaging.rabbitmq.tolerance import UNREADABLE_HEADER, tolerate_unreadable_properties


@pytest.fixture(autouse=True)
def _tolerant() -> Iterator[None]:
    original = dict(decode.METHODS)
    tolerate_unreadable_properties()
    yield
    decode.METHODS.update(original)


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def test_what_can_be_read_is_read_as_before() -> None:
    assert decode.by_type(b"\x02\xc3\xa4rest", "shortstr") == (3, "ä")
    assert decode.by_type(struct.pack(">Q", 0), "timestamp") == decode.timestamp(struct.pack(">Q", 0))
    headers = table(b"\x01at\x01")
    assert decode.by_type(headers + b"rest", "table") == (len(headers), {"a": True})


def test_a_text_that_is_not_utf8_keeps_its_length_and_shows_its_bytes() -> None:
    assert decode.by_type(b"\x03a\xff\xferest", "shortstr") == (4, r"a\xff\xfe")


def test_a_time_out_of_range_is_no_time() -> None:
    assert decode.by_type(b"\x7f" + b"\xff" * 7 + b"rest", "timestamp") == (8, None)


def test_broken_headers_are_skipped_and_say_so() -> None:
    broken = table(b"\x02\xff\xfeV")
    size, headers = decode.by_type(broken + b"rest", "table")
    assert size == len(broken)
    assert list(headers) == [UNREADABLE_HEADER]
    assert "UnicodeDecodeError" in headers[UNREADABLE_HEADER]


def test_a_text_that_is_cut_off_is_still_an_error() -> None:
    with pytest.raises(ValueError, match="short string"):
        decode.by_type(b"", "shortstr")
