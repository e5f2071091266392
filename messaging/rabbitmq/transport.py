"""The socket under a connection, with a way to drop it."""

import asyncio
from typing import Any

from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from yarl import URL

from messaging.rabbitmq.router import FrameRouter


class DroppableTransport(TransportFactory):
    """Opens the socket as aiormq does, puts a router behind it, and can drop it with all that was not sent.

    Under an alarm RabbitMQ does not read from a connection that has published. What was written stays in our buffer,
    and closing waits for ever until that is empty; aiormq offers nothing against it.
    """

    def __init__(self) -> None:
        self._writer: asyncio.StreamWriter | None = None
        self._router: FrameRouter | None = None

    @property
    def stream(self) -> asyncio.StreamWriter:
        """The open socket's outgoing side."""
        assert self._writer is not None, "it is asked for after the connection was made"
        return self._writer

    @property
    def router(self) -> FrameRouter:
        """What the open socket receives goes through it."""
        assert self._router is not None, "it is asked for after the connection was made"
        return self._router

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open the socket."""
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, self._writer = await factory.create(url, **kwargs)
        self._router = FrameRouter(reader)
        return reader, self._writer

    def drop(self) -> None:
        """Close the socket now, whatever was not sent."""
        if self._writer is not None:
            self._writer.transport.abort()
