import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.exceptions import UnmarshalingException
from pamqp.frame import marshal, unmarshal
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from messaging.port import Delivery
from messaging.rabbitmq.channel_reader import ACK, DELIVER, NACK, RETURN, ChannelReader
from messaging.rabbitmq.decoding import decode_answer, decode_delivery, decode_return
from messaging.rabbitmq.router import FrameOutOfPlaceError, FrameRouter

HEARTBEAT = Heartbeat().marshal()
OPENED = marshal(commands.Channel.OpenOk(), 2)
ACKED = marshal(commands.Basic.Ack(1), 1)


class Stream:
    """Stands for asyncio's reader: what reaches it is aiormq's to read."""

    def __init__(self) -> None:
        self.passed = b""

    def feed_data(self, data: bytes) -> None:
        self.passed += data


class Everything:
    """Takes every frame."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        self.taken.append(data[start:end])
        return True


class Nothing(Everything):
    """Says of every frame that it cannot come here."""

    def take(self, kind: int, data: bytes, start: int, end: int) -> bool:
        raise FrameOutOfPlaceError("not this one")


@dataclass
class Wire:
    """A router with a stopped clock."""

    stream: Stream = field(default_factory=Stream)
    now: float = 100.0

    def __post_init__(self) -> None:
        self.router = FrameRouter(cast("asyncio.StreamReader", self.stream), clock=lambda: self.now)

    def receive(self, *chunks: bytes) -> None:
        for chunk in chunks:
            self.stream.feed_data(chunk)  # the router's, by now


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [piece for start, end in zip([0, *ends], ends, strict=False) if (piece := data[start:end])]


@given(st.lists(st.integers(0, 10_000), max_size=8))
def test_what_nobody_registered_for_passes_unchanged_however_it_is_cut(places: list[int]) -> None:
    sent = OPENED + HEARTBEAT + marshal(ContentBody(b"x" * 300), 3) + ACKED
    wire = Wire()
    wire.receive(*cut(sent, places))
    assert wire.stream.passed == sent


def test_a_frame_passes_when_it_is_whole() -> None:
    wire = Wire()
    wire.receive(HEARTBEAT + OPENED[:5])
    assert wire.stream.passed == HEARTBEAT
    wire.receive(OPENED[5:9], OPENED[9:])
    assert wire.stream.passed == HEARTBEAT + OPENED


def test_a_receiver_gets_its_channels_frames_and_the_others_keep_their_order() -> None:
    wire, receiver = Wire(), Everything()
    wire.router.register(1, receiver)
    wire.receive(OPENED + ACKED + marshal(ContentBody(b"a"), 2) + ACKED + OPENED)
    assert receiver.taken == [ACKED[7:-1]] * 2
    assert wire.stream.passed == OPENED + marshal(ContentBody(b"a"), 2) + OPENED + HEARTBEAT


def test_aiormq_sees_a_heartbeat_at_most_once_a_second_while_frames_are_taken() -> None:
    wire = Wire()
    wire.router.register(1, Everything())
    wire.receive(ACKED, ACKED)
    assert wire.stream.passed == HEARTBEAT
    wire.now += 0.9
    wire.receive(ACKED)
    assert wire.stream.passed == HEARTBEAT
    wire.now += 0.1
    wire.receive(ACKED[:4])
    assert wire.stream.passed == HEARTBEAT, "the connection may be stuck in the middle of a frame"
    wire.receive(ACKED[4:])
    assert wire.stream.passed == HEARTBEAT * 2


def test_an_ended_channel_cannot_take_its_number_from_the_next_one() -> None:
    wire, ended, present = Wire(), Everything(), Everything()
    wire.router.register(1, ended)
    wire.router.register(1, present)
    wire.router.unregister(1, ended)
    wire.receive(ACKED)
    assert (len(ended.taken), len(present.taken)) == (0, 1)
    wire.router.unregister(1, present)
    wire.receive(ACKED)
    assert (len(present.taken), wire.stream.passed) == (1, HEARTBEAT + ACKED)


def test_from_a_frame_without_its_end_mark_on_aiormq_gets_everything() -> None:
    wire, receiver = Wire(), Everything()
    wire.router.register(1, receiver)
    broken = ACKED[:-1] + b"\x00"
    wire.receive(ACKED + OPENED + broken + ACKED, ACKED)
    assert len(receiver.taken) == 1
    assert wire.stream.passed == OPENED + broken + ACKED * 2


@pytest.mark.parametrize("data", [b"AMQP\0\0\x09\1", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"?"])
def test_what_is_not_amqp_passes_at_once(data: bytes) -> None:
    wire = Wire()
    wire.receive(data)
    assert wire.stream.passed == data


def test_a_frame_out_of_place_lets_aiormq_end_the_connection() -> None:
    wire = Wire()
    wire.router.register(1, Nothing())
    wire.receive(ACKED + ACKED)
    assert wire.stream.passed
    with pytest.raises(UnmarshalingException):
        unmarshal(wire.stream.passed)


def test_a_stream_that_never_fed_it_is_told() -> None:
    wire = Wire()
    with pytest.raises(RuntimeError, match="feed_data"):
        wire.router.require_fed()
    wire.receive(HEARTBEAT)
    wire.router.require_fed()


# Reading as pamqp does

names = st.text(st.characters(codec="utf-8"), max_size=30)
exchanges = st.text("abc.-_", max_size=30)  # pamqp writes no others
properties = st.builds(
    commands.Basic.Properties,
    content_type=st.none() | names,
    headers=st.none() | st.dictionaries(names.filter(bool), st.integers(-(2**31), 2**31) | names, max_size=2),
    delivery_mode=st.none() | st.sampled_from([1, 2]),
    correlation_id=st.none() | names,
    reply_to=st.none() | names,
    message_id=st.none() | names,
    message_type=st.none() | names,
)
tags = st.integers(1, 2**63 - 1)
contents = st.tuples(
    st.builds(commands.Basic.Deliver, names, tags, st.booleans(), exchanges, names)
    | st.builds(commands.Basic.Return, st.just(312), st.just("NO_ROUTE"), exchanges, names),
    properties,
    st.binary(max_size=200),
)
others = st.one_of(
    st.builds(commands.Basic.Ack, tags, st.booleans()),
    st.builds(commands.Basic.Nack, tags, st.booleans()),
    st.builds(commands.Basic.CancelOk, names),
    st.just(commands.Queue.BindOk()),
)
PIECE = 64  # bytes of a body in one frame


def frames_of(sent: Any) -> list[Any]:
    if not isinstance(sent, tuple):
        return [sent]
    method, its_properties, body = sent
    pieces = [ContentBody(body[start : start + PIECE]) for start in range(0, len(body), PIECE)]
    return [method, ContentHeader(body_size=len(body), properties=its_properties), *pieces]


class Ours:
    """What a channel of ours reads."""

    def __init__(self) -> None:
        self.read: list[Any] = []
        self.reader = ChannelReader(
            methods={
                ACK: lambda arguments: self.read.append(("ack", *decode_answer(arguments))),
                NACK: lambda arguments: self.read.append(("nack", *decode_answer(arguments))),
            },
            contents={
                DELIVER: lambda *content: self.read.append(
                    tuple(decode_delivery(*content, queue="queue", channel=5)),
                ),
                RETURN: lambda arguments, header, _: self.read.append(decode_return(arguments, header)),
            },
        )


def theirs(frames: Sequence[Any]) -> list[Any]:
    """What pamqp reads of the frames of one channel, in our words."""
    read: list[Any] = []
    left = [unmarshal(marshal(frame, 1))[2] for frame in frames]
    while left:
        match left.pop(0):
            case commands.Basic.Ack() as frame:
                read.append(("ack", frame.delivery_tag, frame.multiple))
            case commands.Basic.Nack() as frame:
                read.append(("nack", frame.delivery_tag, frame.multiple))
            case commands.Basic.Deliver() as frame:
                read.append(tuple(delivery(frame, *content(left))))
            case commands.Basic.Return() as frame:
                read.append((content(left)[0].message_id or "", frame.exchange, frame.routing_key))
    return read


def content(left: list[Any]) -> tuple[Any, bytes]:
    header, body = left.pop(0), b""
    while len(body) < header.body_size:
        body += left.pop(0).value
    return header.properties, body


def delivery(frame: Any, read: Any, body: bytes) -> Delivery:
    return Delivery(
        queue="queue",
        exchange=frame.exchange,
        routing_key=frame.routing_key,
        type=read.message_type,
        message_id=read.message_id,
        body=body,
        correlation_id=read.correlation_id,
        reply_to=read.reply_to,
        headers=read.headers or {},
        redelivered=frame.redelivered,
        tag=(5, frame.delivery_tag),
    )


@given(
    sent=st.lists(st.lists(contents | others, max_size=5), min_size=3, max_size=3),
    turns=st.lists(st.integers(0, 2), max_size=60),
    places=st.lists(st.integers(0, 10_000), max_size=12),
)
def test_messages_are_read_as_pamqp_reads_them_however_they_are_cut_and_interleaved(
    sent: list[list[Any]], turns: list[int], places: list[int]
) -> None:
    """Channels 1 and 2 are ours, 3 is aiormq's; a frame of any comes whenever it is the channel's turn."""
    channels = [[frame for item in items for frame in frames_of(item)] for items in sent]
    queues = [list(frames) for frames in channels]
    order = [index for index in turns if queues[index]] + [0] * 99 + [1] * 99 + [2] * 99
    wire, ours = Wire(), [Ours(), Ours()]
    for number, reading in enumerate(ours, start=1):
        wire.router.register(number, reading.reader)
    stream = b"".join(marshal(queues[index].pop(0), index + 1) for index in order if queues[index])
    wire.receive(*cut(stream, places))
    assert [reading.read for reading in ours] == [theirs(frames) for frames in channels[:2]]
    assert passed_on(wire.stream.passed, 3) == b"".join(marshal(frame, 3) for frame in channels[2])
    for number, frames in enumerate(channels[:2], start=1):
        left = [frame for frame in frames if isinstance(frame, commands.Basic.CancelOk | commands.Queue.BindOk)]
        assert passed_on(wire.stream.passed, number) == b"".join(marshal(frame, number) for frame in left)


def passed_on(data: bytes, channel: int) -> bytes:
    found = b""
    while data:
        size, number, _ = unmarshal(data)
        found += data[:size] if number == channel else b""
        data = data[size:]
    return found
