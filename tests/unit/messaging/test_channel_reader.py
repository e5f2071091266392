from typing import Any

import pytest
from pamqp import commands
from pamqp.body import ContentBody
from pamqp.frame import marshal
from pamqp.header import ContentHeader

from messaging.rabbitmq.channel_reader import ACK, DELIVER, ChannelReader
from messaging.rabbitmq.router import FrameOutOfPlaceError

DELIVERED = commands.Basic.Deliver("consumer", 1, False, "exchange", "key")


class Reading:
    """A reader, what it gave out, and which frames it left."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.acks: list[bytes] = []
        self.reader = ChannelReader(methods={ACK: self.acks.append}, contents={DELIVER: self._note})

    def takes(self, frame: Any) -> bool:
        data = b"before" + marshal(frame, 1)
        return self.reader.take(data[6], data, 13, len(data) - 1)

    def _note(self, arguments: bytes, header: bytes, body: bytes) -> None:
        assert arguments == DELIVERED.marshal()
        assert header[4:12] == len(body).to_bytes(8)
        self.bodies.append(body)


@pytest.fixture
def reading() -> Reading:
    return Reading()


@pytest.mark.parametrize("pieces", [[], [b"one"], [b"a", b"bc", b"d"]])
def test_a_content_is_given_out_when_it_is_complete(reading: Reading, pieces: list[bytes]) -> None:
    for body in (b"".join(pieces), b"".join(pieces)):
        frames = [DELIVERED, ContentHeader(body_size=len(body)), *map(ContentBody, pieces)]
        for frame in frames[:-1]:
            before = list(reading.bodies)
            assert reading.takes(frame)
            assert reading.bodies == before
        assert reading.takes(frames[-1])
    assert reading.bodies == [b"".join(pieces)] * 2


def test_a_method_without_content_is_given_out_at_once(reading: Reading) -> None:
    assert reading.takes(commands.Basic.Ack(7, True))
    assert reading.acks == [commands.Basic.Ack(7, True).marshal()]


def test_other_methods_and_their_contents_are_left(reading: Reading) -> None:
    got = [commands.Basic.GetOk(1, False, "", "key", 0), ContentHeader(body_size=4), ContentBody(DELIVER)]
    others = [*got, commands.Basic.CancelOk("tag")]
    assert not any(reading.takes(frame) for frame in others)
    assert not reading.reader.is_closed
    assert reading.bodies == []


def test_the_end_of_the_channel_is_noticed_and_left(reading: Reading) -> None:
    assert not reading.takes(commands.Channel.Close(406, "PRECONDITION_FAILED", 0, 0))
    assert reading.reader.is_closed


@pytest.mark.parametrize(
    ("begun", "next_frame"),
    [
        ([DELIVERED], commands.Basic.Ack(1)),
        ([DELIVERED], ContentBody(b"body")),
        ([DELIVERED, ContentHeader(body_size=99)], ContentHeader(body_size=99)),
        ([DELIVERED, ContentHeader(body_size=99)], DELIVERED),
        ([DELIVERED, ContentHeader(body_size=3)], ContentBody(b"four")),
    ],
)
def test_a_frame_that_cannot_come_next_is_refused(reading: Reading, begun: list[Any], next_frame: Any) -> None:
    assert all(reading.takes(frame) for frame in begun)
    with pytest.raises(FrameOutOfPlaceError, match="kind"):
        reading.takes(next_frame)
