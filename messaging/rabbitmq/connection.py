"""One connection to RabbitMQ that comes back by itself.

Whoever uses it asks for the present `Session` and waits where there is none. So nobody has to be told of a reconnect:
publisher and consumers notice that their channel ended, and open the next one as they opened the first.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, cast

import aio_pika
import aiormq
import structlog
from aiormq import Channel
from aiormq.abc import AbstractConnection
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception
from yarl import URL

from messaging.port import BrokerUnavailable
from messaging.rabbitmq.backoff import Pauses, backoff
from messaging.rabbitmq.failures import ChannelLost, ConnectionRefused, connecting, reason, using_channel
from messaging.rabbitmq.outage import Outage
from messaging.rabbitmq.router import FrameRouter
from messaging.rabbitmq.transport import DroppableTransport
from messaging.rabbitmq.writer import FrameWriter
from messaging.tls import TlsFileInvalid, TlsFiles

log = structlog.get_logger(__name__)

_CONNECT_TIMEOUT: Final = 15.0  # seconds for one attempt
# Seconds. A reply that does not come would be waited for for ever; on a busy machine that was seen once.
_OPEN_TIMEOUT: Final = 20.0
_CLOSE_TIMEOUT: Final = 2.0

# When the broker closes a channel, aiormq drops its answer where ten frames already wait to be written. The broker then
# ignores all that comes on a channel of that number, which aiormq soon uses again. So the frames may be any number.
aiormq.Connection.FRAME_BUFFER_SIZE = 0

OnConnected = Callable[["Session"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Session:
    """A live connection."""

    connection: AbstractConnection
    writer: FrameWriter
    router: FrameRouter

    @property
    def server_version(self) -> str:
        """What the server says it is, such as `4.0.5`; empty where it says nothing."""
        version = self.connection.server_properties.get("version", "")
        return version.decode() if isinstance(version, bytes) else str(version)

    async def open_channel(self, *, confirms: bool = False) -> Channel:
        """Open a channel. Raises ChannelLost when the connection ends meanwhile, or the broker does not answer."""
        with using_channel("opening a channel"):
            channel = await self.connection.channel(publisher_confirms=confirms, timeout=_OPEN_TIMEOUT)
        return cast("Channel", channel)  # annotated with its abstract class

    @asynccontextmanager
    async def throw_away_channel(self) -> AsyncIterator[Channel]:
        """Open a channel for what may fail: a 404, 405 or 406 closes the channel on which it happens."""
        channel = await self.open_channel()
        try:
            yield channel
        finally:
            await close_channel(channel)


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect, and how."""

    url: URL  # password included; it is never shown
    tls: TlsFiles | None  # None: without TLS


class Connection:
    """Keeps one connection alive between `start` and `close`.

    Args:
        address: Where to connect.
        name: Shown in RabbitMQ's management and in our logs.
        heartbeat: Seconds; about three times as long until a dead peer is noticed.
        outage: Tells of lost connections, together with the client's other one.
        on_connected: Called with each new session before anybody else gets it.
    """

    def __init__(
        self, address: Address, *, name: str, heartbeat: int, outage: Outage, on_connected: OnConnected | None = None
    ) -> None:
        self._url = address.url.update_query(heartbeat=heartbeat)
        self._tls = address.tls
        self._name = name
        self._outage = outage
        self._on_connected = on_connected
        self._session: Session | None = None
        self._transport = DroppableTransport()
        self._changed = asyncio.Event()  # there is a session, or there will never be one
        self._keeper: asyncio.Task[None] | None = None
        self._started = False
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether there is a session right now."""
        return self._session is not None

    @property
    def closed(self) -> bool:
        """Whether `close` was called: there will be no session any more."""
        return self._closed

    @property
    def address(self) -> str:
        """Host, port and vhost, for messages."""
        return address_of(self._url)

    async def start(self) -> None:
        """Connect, and keep trying until it works. Raises ConnectionRefused where waiting does not help."""
        self._raise_if_closed()
        if self._started:
            return
        self._started = True
        try:
            opened = await self._connect(endless=False)
        except BaseException:
            self._started = False
            raise
        self._outage.connected(self._name)
        log.info("Connected to the broker", action="broker_connected", connection=self._name, broker=self.address)
        self._keeper = asyncio.create_task(self._keep(opened), name=f"keep {self._name}")

    async def session(self) -> Session:
        """Return the present session; wait for the next one where there is none.

        Raises:
            BrokerUnavailable: `start` was not called, or `close` was.
        """
        while self._session is None:
            self._raise_if_closed()
            if not self._started:
                raise BrokerUnavailable(f'connection "{self._name}" is not open: call connect() first')
            await self._changed.wait()
        return self._session

    async def close(self) -> None:
        """Close for good; whoever waits for a session gets BrokerUnavailable."""
        self._closed = True
        self._changed.set()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    async def _keep(self, opened: aio_pika.Connection) -> None:
        pauses = Pauses()
        while True:
            opened_at = time.monotonic()
            try:
                why = await self._lost(opened)
            finally:
                await self._dispose(opened)
            lost_at = time.monotonic()
            self._outage.lost(self._name, why)
            # Never at once: a broker that restarts gets all its clients back at the same time.
            await asyncio.sleep(pauses.after(lost_at - opened_at))
            opened = await self._connect(endless=True)
            self._outage.connected(self._name)

    async def _connect(self, *, endless: bool) -> aio_pika.Connection:
        def helps(error: BaseException) -> bool:
            if self._closed:
                return False
            if endless:  # nobody is there to be told of an error, and nobody else would connect again
                return isinstance(error, Exception)
            return isinstance(error, BrokerUnavailable) and not isinstance(error, ConnectionRefused)

        retrying = AsyncRetrying(
            wait=backoff(),
            retry=retry_if_exception(helps),
            before_sleep=self._log_failure,
            reraise=True,
        )
        return await retrying(self._connect_once)

    async def _connect_once(self) -> aio_pika.Connection:
        self._raise_if_closed()
        opened = aio_pika.Connection(
            self._url, ssl_context=self._context(), client_properties={"connection_name": self._name}
        )
        self._transport = opened.kwargs["transport_factory"] = DroppableTransport()
        handshake = asyncio.create_task(opened.connect(timeout=_CONNECT_TIMEOUT))
        try:
            with connecting(f"RabbitMQ at {self.address}"):
                await asyncio.shield(handshake)
            await self._welcome(opened)
        except BaseException:
            await _ended(handshake)
            await self._dispose(opened)
            raise
        return opened

    def _context(self) -> ssl.SSLContext | None:
        """Read the files anew: certificates are renewed while we run."""
        try:
            return None if self._tls is None else self._tls.context()
        except TlsFileInvalid as error:
            raise ConnectionRefused(f"RabbitMQ at {self.address} cannot be reached over TLS: {error}") from error

    def _raise_if_closed(self) -> None:
        if self._closed:
            raise BrokerUnavailable(f'connection "{self._name}" was closed; make a new broker to connect again')

    async def _welcome(self, opened: aio_pika.Connection) -> None:
        connection = _underlying(opened)
        self._transport.router.require_fed()
        session = Session(connection, FrameWriter(self._transport.stream), self._transport.router)
        try:
            if self._on_connected is not None:
                await self._on_connected(session)
        except BaseException:
            session.writer.stop()
            raise
        self._session = session
        self._changed.set()

    async def _lost(self, opened: aio_pika.Connection) -> str:
        closing = _underlying(opened).closing
        await asyncio.wait([closing])
        return "cancelled" if closing.cancelled() else reason(closing.exception())

    async def _dispose(self, opened: aio_pika.Connection) -> None:
        session, self._session = self._session, None
        if not self._closed:
            self._changed.clear()
        if session is not None:
            session.writer.stop()
        too_long = asyncio.get_running_loop().call_later(_CLOSE_TIMEOUT, self._transport.drop)
        with suppress(Exception):
            await opened.close()
        too_long.cancel()

    def _log_failure(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        assert error is not None, "only failures are tried again"
        self._outage.unreachable(self._name, error)


async def _ended(handshake: asyncio.Task[None]) -> None:
    """Wait for the end of a handshake: where it is cancelled in the middle, aiormq leaves tasks of its own behind."""
    too_long = asyncio.get_running_loop().call_later(_CLOSE_TIMEOUT, handshake.cancel)
    await asyncio.wait([handshake])
    too_long.cancel()
    if not handshake.cancelled():
        handshake.exception()  # nobody else asks for it where we were cancelled


def address_of(url: URL) -> str:
    """Return host, port and vhost, for messages: without the password."""
    port = url.port or (5671 if url.scheme == "amqps" else 5672)
    return f"{url.host}:{port} (vhost {url.path.lstrip('/') or '/'})"


async def close_channel(channel: Channel) -> None:
    """Close a channel, whatever state it is in."""
    with suppress(ChannelLost), using_channel("closing a channel"):
        await channel.close()


def _underlying(opened: aio_pika.Connection) -> AbstractConnection:
    transport = opened.transport
    if transport is None:
        raise ChannelLost("the connection ended while it was made")
    return transport.connection
