import asyncio

import pytest
from aiormq.abc import ChannelFrame

from messaging.rabbitmq.writer import FrameWriter


class StubConnection:
    """What a writer uses of aiormq's connection."""

    def __init__(self) -> None:
        self.write_queue: asyncio.Queue[ChannelFrame] = asyncio.Queue(1)

    def create_future(self) -> "asyncio.Future[None]":
        return asyncio.get_running_loop().create_future()

    async def send(self) -> bytes:
        """Take the next piece as aiormq does, and say that it has left."""
        piece = await self.write_queue.get()
        piece.drain()
        return piece.payload


@pytest.fixture
def connection() -> StubConnection:
    return StubConnection()


@pytest.fixture
async def writer(connection: StubConnection):  # type: ignore[no-untyped-def]
    writer = FrameWriter(connection)  # type: ignore[arg-type]
    yield writer
    writer.stop()


async def test_what_is_written_together_leaves_together(connection: StubConnection, writer: FrameWriter) -> None:
    for frame in (b"a", b"b", b"c"):
        writer.write(frame)
    assert await connection.send() == b"abc"


async def test_what_is_written_meanwhile_is_the_next_piece(connection: StubConnection, writer: FrameWriter) -> None:
    writer.write(b"a")
    first = await connection.write_queue.get()
    writer.write(b"b")
    writer.write(b"c")
    assert connection.write_queue.empty()
    first.drain()
    assert await connection.send() == b"bc"


async def test_flushed_waits_for_what_was_written_before(connection: StubConnection, writer: FrameWriter) -> None:
    await writer.flushed()
    writer.write(b"a")
    flushing = asyncio.create_task(writer.flushed())
    piece = await connection.write_queue.get()
    assert not flushing.done()
    piece.drain()
    async with asyncio.timeout(5):
        await flushing


async def test_flushed_waits_for_a_piece_that_is_under_way(connection: StubConnection, writer: FrameWriter) -> None:
    writer.write(b"a")
    piece = await connection.write_queue.get()
    flushing = asyncio.create_task(writer.flushed())
    await asyncio.sleep(0)
    assert not flushing.done()
    piece.drain()
    async with asyncio.timeout(5):
        await flushing


async def test_a_lost_connection_wakes_everyone_who_waits(connection: StubConnection, writer: FrameWriter) -> None:
    writer.write(b"a")
    await connection.write_queue.get()
    writer.write(b"b")
    flushing = asyncio.create_task(writer.flushed())
    await asyncio.sleep(0)
    writer.stop()
    async with asyncio.timeout(5):
        await flushing
        writer.write(b"c")
        await writer.flushed()
    assert connection.write_queue.empty()
