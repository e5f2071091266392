import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.header import ContentHeader

from messaging.rabbitmq.properties import UNREADABLE_HEADER, Properties, read_properties

MESSAGE_ID, TYPE, TIMESTAMP, HEADERS, CLUSTER_ID = 0x0080, 0x0020, 0x0040, 0x2000, 0x0004

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
values = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts
properties = st.fixed_dictionaries(
    {},
    optional={
        "content_type": texts,
        "content_encoding": texts,
        "headers": st.dictionaries(
            texts.map(lambda text: text[:20]), values | st.lists(values, max_size=3), max_size=3
        ),
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 255),
        "correlation_id": texts,
        "reply_to": texts,
        "expiration": texts,
        "message_id": texts,
        "timestamp": st.integers(0, 2**31).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
        "message_type": texts,
        "user_id": texts,
        "app_id": texts,
    },
)


def header(flags: int, *content: bytes) -> bytes:
    return struct.pack(">HHQH", 60, 0, 0, flags) + b"".join(content)


def shortstr(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


@given(properties)
def test_they_are_read_as_pamqp_reads_them(sent: dict[str, Any]) -> None:
    data = ContentHeader(body_size=7, properties=commands.Basic.Properties(**sent)).marshal()
    reference = ContentHeader()
    reference.unmarshal(data)
    theirs = reference.properties
    assert read_properties(data) == (
        theirs.headers or {},
        theirs.correlation_id,
        theirs.reply_to,
        theirs.message_id,
        theirs.message_type,
        theirs.user_id,
    )


def test_a_message_without_properties_has_none() -> None:
    assert read_properties(header(0)) == Properties({}, None, None, None, None, None)


def test_a_text_that_is_not_utf8_shows_its_bytes_and_what_follows_is_read() -> None:
    found = read_properties(header(MESSAGE_ID | TYPE, shortstr(b"a\xff\xfe"), shortstr(b"Type")))
    assert (found.message_id, found.type) == (r"a\xff\xfe", "Type")


def test_a_time_out_of_range_is_skipped() -> None:
    assert read_properties(header(TIMESTAMP | TYPE, b"\x7f" + b"\xff" * 7, shortstr(b"Type"))).type == "Type"


def nested(depth: int) -> bytes:
    inner = table(b"")
    for _ in range(depth):
        inner = table(b"\x01aF" + inner)
    return inner[4:]


@pytest.mark.parametrize(
    "broken",
    [b"\x02\xff\xfeV", b"\x01a?", b"\x09a", b"\x01aT\x7f" + b"\xff" * 7, nested(5_000)],
    ids=["not UTF-8", "unknown type", "cut off", "far future", "too deep"],
)
def test_broken_headers_are_skipped_and_say_so(broken: bytes) -> None:
    found = read_properties(header(HEADERS | TYPE, table(broken), shortstr(b"Type")))
    assert list(found.headers) == [UNREADABLE_HEADER]
    assert found.type == "Type"


def test_flags_of_properties_that_amqp_does_not_have_are_passed_over() -> None:
    assert read_properties(header(TYPE | 1, b"\0\3\0\0", shortstr(b"Type"))).type == "Type"


@given(properties, st.data())
def test_properties_that_are_cut_off_are_none_at_all_and_say_so(sent: dict[str, Any], data: st.DataObject) -> None:
    whole = ContentHeader(body_size=7, properties=commands.Basic.Properties(**sent)).marshal()
    if len(whole) > 14:
        found = read_properties(whole[: data.draw(st.integers(12, len(whole) - 1))])
        assert list(found.headers) == [UNREADABLE_HEADER]
        assert set(found[1:]) == {None}


@given(st.binary(max_size=40))
def test_no_bytes_whatever_raise(rubbish: bytes) -> None:
    assert isinstance(read_properties(struct.pack(">HHQ", 60, 0, 0) + rubbish), Properties)
