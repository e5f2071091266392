"""Frames on their way out: many small ones leave as one large write.

A write of many frames costs us, and the broker even more, a fraction of as many single writes. While one piece is on
its way to the socket, what comes next collects and leaves as the next piece: no timer, and no delay when idle.

Writing itself never waits. So whoever writes can number a message, or forget a delivery, in the same step in which
its frame takes its place in the order, and a cancelled caller leaves nothing half done.
"""

import asyncio
from contextlib import suppress

from aiormq.abc import AbstractConnection, ChannelFrame


class _Piece:
    """Frames that leave together."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.left = asyncio.Event()


class FrameWriter:
    """Writes frames to one connection, for all its channels."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._piece = _Piece()
        self._leaving = _Piece()
        self._leaving.left.set()
        self._written = asyncio.Event()
        self._stopped = False
        self._task = asyncio.create_task(self._run(), name="frame-writer")

    def write(self, payload: bytes) -> None:
        """Append encoded frames; after `stop` they go nowhere, as on any lost connection."""
        if self._stopped:
            return
        self._piece.payloads.append(payload)
        self._written.set()

    async def flushed(self) -> None:
        """Wait until what was written so far is with the operating system, or the connection is lost."""
        piece = self._piece if self._piece.payloads else self._leaving
        await piece.left.wait()

    def stop(self) -> None:
        """The connection is lost: wake everyone who waits."""
        self._stopped = True
        self._task.cancel()
        self._leaving.left.set()
        self._piece.left.set()

    async def _run(self) -> None:
        with suppress(Exception):  # the connection was lost; whoever made this writer knows, and stops it
            while True:
                await self._written.wait()
                self._written.clear()
                self._leaving, self._piece = self._piece, _Piece()
                drained = self._connection.create_future()  # rejected when the connection is lost
                payload = b"".join(self._leaving.payloads)
                await self._connection.write_queue.put(ChannelFrame(payload, False, drained))
                await drained
                self._leaving.left.set()
