import datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from messaging.port import OutgoingMessage
from messaging.rabbitmq.encoding import carriable_headers, encode_ack, encode_message, encode_requeue

FRAME_MAX = 4_096


def message(body: bytes = b"{}", **fields: Any) -> OutgoingMessage:
    return OutgoingMessage("exchange", "key", "AgentTask", "the-id", body, **fields)


def frames(data: bytes) -> list[tuple[int, Any]]:
    """Return the (channel, frame) pairs that *data* holds."""
    found = []
    while data:
        size, channel, unmarshalled = frame.unmarshal(data)
        found.append((channel, unmarshalled))
        data = data[size:]
    return found


def test_a_message_is_a_method_a_header_and_a_body_on_its_channel() -> None:
    encoded = frames(encode_message(message(b"hello", mandatory=False), 7, FRAME_MAX))
    assert [channel for channel, _ in encoded] == [7, 7, 7]
    method, header, body = (found for _, found in encoded)
    assert isinstance(method, commands.Basic.Publish)
    assert (method.exchange, method.routing_key, method.mandatory) == ("exchange", "key", False)
    assert isinstance(header, ContentHeader)
    assert (header.body_size, header.properties.message_id) == (5, "the-id")
    assert (header.properties.content_type, header.properties.delivery_mode) == ("application/json", 2)
    assert body.value == b"hello"


texts = st.text(st.characters(codec="utf-8"), max_size=80)
values = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | texts | st.decimals(0, 100, places=2)
messages = st.builds(
    OutgoingMessage,
    exchange=st.text("abc.-_", max_size=20),
    routing_key=texts.map(lambda text: text[:60]),
    type=texts.map(lambda text: text[:60]),
    message_id=texts.map(lambda text: text[:60]),
    body=st.binary(max_size=10_000),
    correlation_id=st.none() | texts.map(lambda text: text[:60]),
    reply_to=st.none() | texts.map(lambda text: text[:60]),
    headers=st.dictionaries(texts.map(lambda text: text[:30]), values | st.lists(values, max_size=3), max_size=3),
    persistent=st.booleans(),
    mandatory=st.booleans(),
)


@given(messages, st.integers(1, 65_535), st.none() | texts.map(lambda text: text[:60]))
def test_a_message_is_the_bytes_that_pamqp_makes_of_it(sent: OutgoingMessage, channel: int, user: str | None) -> None:
    properties = commands.Basic.Properties(
        content_type="application/json",
        headers=dict(sent.headers) or None,
        delivery_mode=2 if sent.persistent else 1,
        correlation_id=sent.correlation_id,
        reply_to=sent.reply_to,
        message_id=sent.message_id,
        message_type=sent.type,
        user_id=user,
    )
    expected = [
        commands.Basic.Publish(exchange=sent.exchange, routing_key=sent.routing_key, mandatory=sent.mandatory),
        ContentHeader(body_size=len(sent.body), properties=properties),
        *(ContentBody(sent.body[start : start + 4_088]) for start in range(0, len(sent.body), 4_088)),
    ]
    assert encode_message(sent, channel, FRAME_MAX, user) == b"".join(frame.marshal(one, channel) for one in expected)


@pytest.mark.parametrize("place", ["message_id", "correlation_id", "reply_to"])
@pytest.mark.parametrize("text", ["x" * 256, "ä" * 128, "\ud800"])
def test_texts_that_cannot_be_carried_are_refused_with_the_messages_type(place: str, text: str) -> None:
    encode_message(message()._replace(**{place: text[:-1]}), 1, FRAME_MAX)
    with pytest.raises(ValueError, match="AgentTask"):
        encode_message(message()._replace(**{place: text}), 1, FRAME_MAX)


def test_a_transient_message_says_so() -> None:
    _, (_, header), _ = frames(encode_message(message(persistent=False), 1, FRAME_MAX))
    assert header.properties.delivery_mode == 1


@pytest.mark.parametrize(("size", "pieces"), [(0, 0), (1, 1), (4_088, 1), (4_089, 2), (8_176, 2), (8_177, 3)])
def test_no_frame_is_larger_than_the_broker_takes(size: int, pieces: int) -> None:
    body = bytes(index % 251 for index in range(size))
    bodies = [found for _, found in frames(encode_message(message(body), 1, FRAME_MAX))[2:]]
    assert len(bodies) == pieces
    assert all(isinstance(piece, ContentBody) and len(piece.value) + 8 <= FRAME_MAX for piece in bodies)
    assert b"".join(piece.value for piece in bodies) == body


def test_acks_and_requeues_name_their_tags() -> None:
    [(channel, ack)] = frames(encode_ack(5, 3, multiple=True))
    assert (channel, ack.name, ack.delivery_tag, ack.multiple) == (3, "Basic.Ack", 5, True)
    [(channel, nack)] = frames(encode_requeue(6, 3, multiple=False))
    assert (channel, nack.name, nack.delivery_tag, nack.multiple, nack.requeue) == (3, "Basic.Nack", 6, False, True)


@given(st.integers(0, 2**63 - 1), st.integers(1, 65_535), st.booleans())
def test_settlements_are_the_bytes_that_pamqp_makes_of_them(tag: int, channel: int, multiple: bool) -> None:
    ack, nack = commands.Basic.Ack(tag, multiple), commands.Basic.Nack(tag, multiple, True)
    assert encode_ack(tag, channel, multiple=multiple) == frame.marshal(ack, channel)
    assert encode_requeue(tag, channel, multiple=multiple) == frame.marshal(nack, channel)


@pytest.mark.parametrize("value", [object(), b"bytes", 1e300, 2**70])
def test_headers_that_cannot_be_carried_are_refused_with_the_messages_type(value: object) -> None:
    with pytest.raises(ValueError, match="AgentTask"):
        encode_message(message(headers={"name": value}), 1, FRAME_MAX)


def test_carriable_headers_stay_and_others_become_text() -> None:
    kept = {"text": "ä", "number": 3, "nothing": None, "list": [1, {"deep": True}]}
    when = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    odd = {"bytes": b"\xff", "huge": 1e300, "time": when, "decimal": Decimal("1.5")}
    carriable = carriable_headers(kept | odd)
    assert carriable == kept | {"bytes": b"\xff", "huge": "1e+300", "time": when, "decimal": Decimal("1.5")}
    encode_message(message(headers=carriable), 1, FRAME_MAX)
