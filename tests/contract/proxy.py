"""A TCP proxy that cuts connections as a broken network does: at once, and without a word of AMQP."""

import asyncio
from contextlib import suppress


class Proxy:
    """Forwards connections to one address until it is told to cut them."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0  # chosen at the first `start`, then kept
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def start(self) -> None:
        """Accept connections; after `stop` at the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections and cut those that there are."""
        if self._server is not None:
            self._server.close()
        self.cut()
        self.thaw()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cut(self) -> int:
        """Cut every connection and return how many there were."""
        writers, self._writers = self._writers, set()
        for writer in writers:
            writer.transport.abort()
        return len(writers) // 2

    def freeze(self) -> None:
        """Let nothing through any more, in either direction, and keep the connections open."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Let everything through again, beginning with what was held back."""
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        self._writers -= {writer, far_writer}

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65_536):
                await self._flowing.wait()
                target.write(data)
                await target.drain()
        target.close()
        with suppress(OSError):
            await target.wait_closed()
