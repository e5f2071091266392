import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import pytest

from messaging.rabbitmq.writer import FrameWriter

MORE_THAN_A_BUFFER = bytes(16 * 1024 * 1024)


@pytest.fixture
def broker() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of one connection; the second is the broker's, who reads only when told to."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
async def stream(broker: tuple[socket.socket, socket.socket]) -> AsyncIterator[asyncio.StreamWriter]:
    _, stream = await asyncio.open_connection(sock=broker[0])
    yield stream
    stream.transport.abort()
    with suppress(ConnectionError):
        await stream.wait_closed()


@pytest.fixture
def pieces(stream: asyncio.StreamWriter, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What was written to the socket, piece by piece."""
    seen: list[bytes] = []
    write = stream.write
    monkeypatch.setattr(stream, "write", lambda data: (seen.append(data), write(data)))
    return seen


async def test_what_is_written_in_one_turn_leaves_together(
    stream: asyncio.StreamWriter, broker: tuple[socket.socket, socket.socket], pieces: list[bytes]
) -> None:
    writer = FrameWriter(stream)
    for frame in (b"a", b"b", b"c"):
        writer.write(frame)
    assert pieces == []
    await asyncio.sleep(0)
    assert pieces == [b"abc"]
    assert broker[1].recv(3) == b"abc"


async def test_flushing_sends_at_once_and_in_order(stream: asyncio.StreamWriter, pieces: list[bytes]) -> None:
    writer = FrameWriter(stream)
    writer.write(b"a")
    await writer.flushed()
    assert pieces == [b"a"]
    writer.write(b"b")
    await writer.flushed()
    assert pieces == [b"a", b"b"]


async def test_flushed_waits_while_the_broker_does_not_read(stream: asyncio.StreamWriter) -> None:
    writer = FrameWriter(stream)
    writer.write(MORE_THAN_A_BUFFER)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(writer.flushed(), 0.05)


async def test_a_lost_connection_wakes_everyone_who_waits(stream: asyncio.StreamWriter) -> None:
    writer = FrameWriter(stream)
    writer.write(MORE_THAN_A_BUFFER)
    flushing = asyncio.create_task(writer.flushed())
    await asyncio.sleep(0)
    writer.stop()
    stream.transport.abort()
    async with asyncio.timeout(30):
        await flushing
        await writer.flushed()


async def test_after_its_end_it_writes_nothing(stream: asyncio.StreamWriter, pieces: list[bytes]) -> None:
    writer = FrameWriter(stream)
    writer.write(b"a")
    writer.stop()
    writer.write(b"b")
    await writer.flushed()
    assert pieces == []


async def test_writing_to_a_stream_that_was_ended_is_like_writing_to_a_lost_connection(
    stream: asyncio.StreamWriter,
) -> None:
    writer = FrameWriter(stream)
    stream.write_eof()  # as aiormq does when the broker closes the connection
    writer.write(b"a")
    await writer.flushed()
