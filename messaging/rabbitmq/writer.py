"""Frames on their way out: many small ones leave as one large write.

A write of many frames costs us, and the broker even more, a fraction of as many single writes. What is written within
one turn of the event loop leaves together at its end: no timer, and no delay when idle. It goes to the socket's buffer
directly; by way of aiormq's queue it would be three turns later.

Writing itself never waits. So whoever writes can number a message, or forget a delivery, in the same step in which
its frame takes its place in the order, and a cancelled caller leaves nothing half done.
"""

import asyncio
from contextlib import suppress


class FrameWriter:
    """Writes frames to one connection, for all its channels.

    Args:
        stream: The connection's, after its handshake. aiormq writes to it too, always whole frames.
    """

    def __init__(self, stream: asyncio.StreamWriter) -> None:
        self._stream = stream
        self._payloads: list[bytes] = []
        self._stopped = False

    def write(self, payload: bytes) -> None:
        """Append encoded frames; after `stop` they go nowhere, as on any lost connection."""
        if self._stopped:
            return
        if not self._payloads:
            asyncio.get_running_loop().call_soon(self._flush)
        self._payloads.append(payload)

    async def flushed(self) -> None:
        """Wait until the socket takes more, or the connection is lost."""
        self._flush()
        with suppress(ConnectionError):
            await self._stream.drain()

    def stop(self) -> None:
        """The connection is lost: nothing leaves any more."""
        self._stopped = True
        self._payloads.clear()

    def _flush(self) -> None:
        payloads, self._payloads = self._payloads, []
        if payloads and not self._stopped:
            # When the broker closes the connection, aiormq ends the stream a moment before anybody is told of it, and
            # asyncio then raises. Whoever waits for an answer learns of the loss from the connection.
            with suppress(RuntimeError):
                self._stream.write(b"".join(payloads))
