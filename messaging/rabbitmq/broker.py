"""The broker port on RabbitMQ.

Two connections: under a memory or disk alarm RabbitMQ stops reading from those that publish, and acks on the same one
would stall too. Declarations share the connection that consumes, because an exclusive queue belongs to the connection
that declared it; each has a channel of its own.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt
from yarl import URL

from messaging.limits import MAX_MESSAGE_BYTES, check_addressable, check_prefetch
from messaging.port import (
    BrokerError,
    Exchange,
    OutgoingMessage,
    PublishOutcome,
    Queue,
    QueueDepth,
)
from messaging.rabbitmq.backoff import backoff
from messaging.rabbitmq.connection import Address, Connection, Session, address_of
from messaging.rabbitmq.consumer import RabbitmqConsumer
from messaging.rabbitmq.declaration import delete_queue, ensure_exchange, ensure_queue, read_depth
from messaging.rabbitmq.failures import ChannelLost
from messaging.rabbitmq.outage import Outage
from messaging.rabbitmq.publisher import Publisher
from messaging.settings import ServiceSettings
from messaging.tls import TlsFiles

log = structlog.get_logger(__name__)

T = TypeVar("T")

_HEARTBEAT: Final = 10  # seconds; a half-open connection is noticed after about 35
_ATTEMPTS: Final = 5  # of a declaration in the middle of which the connection is lost


class RabbitmqBroker:
    """A client of RabbitMQ that reconnects by itself.

    Args:
        url: ``amqp://user:password@host:port/vhost``, or ``amqps://``.
        tls: The files for ``amqps://``.
        signs: Whether messages bear our user's name, which RabbitMQ verifies.
        name: Shown in RabbitMQ's management.
        publish_timeout: Seconds after which a message without an answer is UNKNOWN.
        max_message_bytes: Bodies above it are TOO_LARGE; RabbitMQ would close the channel.
        heartbeat: Seconds.

    Raises:
        ValueError: *url* is not such a URL.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        tls: TlsFiles | None = None,
        signs: bool = False,
        publish_timeout: float = 30.0,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        heartbeat: int = _HEARTBEAT,
    ) -> None:
        parsed = _parse_url(url)
        self._max_message_bytes = max_message_bytes
        self._outage = Outage(address_of(parsed))
        address = Address(parsed, (tls or TlsFiles()) if parsed.scheme == "amqps" else None)
        self._publishing = Connection(address, name=f"{name} publish", heartbeat=heartbeat, outage=self._outage)
        self._consuming = Connection(
            address,
            name=f"{name} consume",
            heartbeat=heartbeat,
            outage=self._outage,
            on_connected=self._declare_exchanges_again,
        )
        self._publisher = Publisher(self._publishing, timeout=publish_timeout, user_id=user_of(url) if signs else None)
        self._consumers: dict[RabbitmqConsumer, None] = {}
        self._exchanges: dict[str, Exchange] = {}

    @property
    def connected(self) -> bool:
        """Whether both connections are there, as far as is known."""
        return self._publishing.connected and self._consuming.connected

    @property
    def reconnects(self) -> int:
        """How often one of the connections was lost and restored."""
        return self._outage.reconnects

    async def server_version(self) -> str:
        """Return the version that the server told when we connected."""
        session = await self._consuming.session()
        return session.server_version

    async def connect(self) -> None:
        """Connect, and keep trying with back-off until it works.

        Raises:
            BrokerUnavailable: The credentials or the vhost were refused; trying again does not help.
        """
        try:
            await self._publishing.start()
            await self._consuming.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close every consumer and the connections; publishes without an answer end as UNKNOWN."""
        await asyncio.gather(*(consumer.close() for consumer in self._consumers))
        await asyncio.gather(self._publishing.close(), self._consuming.close())

    async def declare(self, exchanges: Sequence[Exchange], queues: Sequence[Queue]) -> None:
        """Make sure that these exist. Raises TopologyMismatch as the port says."""
        for exchange in exchanges:
            await self._with_session(partial(ensure_exchange, exchange=exchange))
            self._exchanges[exchange.name] = exchange
        for queue in queues:
            await self._with_session(partial(ensure_queue, queue=queue))

    async def check_queue(self, name: str) -> QueueDepth:
        """Return what the queue holds. Raises QueueMissing as the port says."""
        return await self._with_session(partial(read_depth, name=name))

    async def delete_queue(self, name: str) -> None:
        """Delete the queue, if it is there."""
        await self._with_session(partial(delete_queue, name=name))

    async def publish(
        self, messages: Sequence[OutgoingMessage], *, timeout: float | None = None
    ) -> Sequence[PublishOutcome]:
        """Send all *messages* and return the outcome of each. Raises only for what no broker could send.

        Raises:
            ValueError: A name is longer than AMQP allows, or a header holds something that AMQP cannot carry.
        """
        for message in messages:
            check_addressable(message)
        sendable = [message for message in messages if len(message.body) <= self._max_message_bytes]
        outcomes = await self._publisher.publish(sendable, timeout=timeout)
        if len(sendable) == len(messages):
            return outcomes
        answers = iter(outcomes)
        return [
            next(answers) if len(message.body) <= self._max_message_bytes else PublishOutcome.TOO_LARGE
            for message in messages
        ]

    async def consume(self, queue: Queue, *, prefetch: int) -> RabbitmqConsumer:
        """Declare *queue* and consume it. Raises TopologyMismatch as the port says.

        Where our user may not configure the queue, it must exist: QueueMissing is raised otherwise.
        """
        check_prefetch(prefetch)
        consumer = RabbitmqConsumer(self._consuming, queue, prefetch, self._publish_dead_letter, on_close=self._forget)
        await _patiently(consumer.start)
        self._consumers[consumer] = None
        return consumer

    def _forget(self, consumer: RabbitmqConsumer) -> None:
        self._consumers.pop(consumer, None)

    async def _publish_dead_letter(self, message: OutgoingMessage) -> PublishOutcome:
        # No size limit here: what arrived must be able to leave.
        return (await self._publisher.publish([message]))[0]

    async def _with_session(self, operation: Callable[[Session], Awaitable[T]]) -> T:
        async def attempt() -> T:
            return await operation(await self._consuming.session())

        return await _patiently(attempt)

    async def _declare_exchanges_again(self, session: Session) -> None:
        # A broker that came back empty takes no binding before its exchanges are there.
        for exchange in self._exchanges.values():
            try:
                await ensure_exchange(session, exchange)
            except ChannelLost:
                raise
            except BrokerError as error:
                log.warning(
                    "An exchange cannot be declared again",
                    action="exchange_not_restored",
                    exchange=exchange.name,
                    error=str(error),
                )


def broker_of(settings: ServiceSettings, name: str, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> RabbitmqBroker:
    """Return a client of the RabbitMQ that the settings name; *name* shows in its management pages."""
    url = settings.amqp_url.get_secret_value()
    return RabbitmqBroker(
        url, name=name, tls=settings.amqp_tls, signs=settings.amqp_sign, max_message_bytes=max_message_bytes
    )


def user_of(url: str) -> str:
    """Return the user that a URL of RabbitMQ names."""
    return URL(url).user or "guest"  # as aiormq has it


async def _patiently(operation: Callable[[], Awaitable[T]]) -> T:
    retrying = AsyncRetrying(
        wait=backoff(longest=2),
        retry=retry_if_exception_type(ChannelLost),
        stop=stop_after_attempt(_ATTEMPTS),
        reraise=True,
    )
    return await retrying(operation)


def _parse_url(url: str) -> URL:
    try:
        parsed = URL(url)
        usable = parsed.scheme in ("amqp", "amqps") and bool(parsed.host)
    except ValueError:
        usable = False
    if not usable:  # not shown: it may hold a password
        raise ValueError("the broker URL must look like amqp://user:password@host:5672/vhost, or amqps://")
    return parsed
