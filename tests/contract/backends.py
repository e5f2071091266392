"""What the contract suite needs of each adapter, beside the port: clients, and faults."""

from typing import Any, Protocol

from yarl import URL

from messaging.memory import MemoryBroker, MemoryServer
from messaging.monitoring.metered_broker import BrokerMeter, MeteredBroker
from messaging.port import Broker
from messaging.rabbitmq import RabbitmqBroker
from tests.contract.proxy import Proxy


class Backend(Protocol):
    """A broker under test and its clients."""

    async def client(self, **options: Any) -> Broker:
        """Return a new, connected client."""

    def unconnected_client(self, **options: Any) -> Broker:
        """Return a new client that is not connected yet."""

    async def cut(self) -> None:
        """Lose every client's connection; the clients reconnect by themselves."""

    async def stop(self) -> None:
        """Lose every connection and refuse new ones."""

    async def start(self) -> None:
        """Undo `stop`."""

    def pass_time(self, seconds: float) -> None:
        """Let the broker's clock advance, where that can be done."""

    async def close(self) -> None:
        """Close every client."""


class MemoryBackend:
    """The in-memory server, with a clock that stands still."""

    def __init__(self) -> None:
        self._now = 0.0
        self._server = MemoryServer(clock=lambda: self._now)
        self._clients: list[MemoryBroker] = []

    def unconnected_client(self, **options: Any) -> MemoryBroker:
        options.pop("publish_timeout", None)
        client = MemoryBroker(self._server, **options)
        self._clients.append(client)
        return client

    async def client(self, **options: Any) -> MemoryBroker:
        client = self.unconnected_client(**options)
        await client.connect()
        return client

    async def cut(self) -> None:
        self._server.drop_connections()

    async def stop(self) -> None:
        self._server.stop()

    async def start(self) -> None:
        self._server.start()

    def pass_time(self, seconds: float) -> None:
        self._now += seconds

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


class MeteredBackend(MemoryBackend):
    """The same, with clients that count what passes."""

    def unconnected_client(self, **options: Any) -> MeteredBroker:
        return MeteredBroker(super().unconnected_client(**options), BrokerMeter())

    async def client(self, **options: Any) -> MeteredBroker:
        client = self.unconnected_client(**options)
        await client.connect()
        return client


class RabbitmqBackend:
    """A vhost of a real RabbitMQ behind a proxy that can be cut."""

    def __init__(self, url: str) -> None:
        self._url = URL(url)
        self.proxy = Proxy(self._url.host or "127.0.0.1", self._url.port or 5672)
        self._clients: list[RabbitmqBroker] = []

    def unconnected_client(self, **options: Any) -> RabbitmqBroker:
        url = self._url.with_host("127.0.0.1").with_port(self.proxy.port)
        client = RabbitmqBroker(str(url), **{"name": "contract", **options})
        self._clients.append(client)
        return client

    async def client(self, **options: Any) -> RabbitmqBroker:
        client = self.unconnected_client(**options)
        await client.connect()
        return client

    async def cut(self) -> None:
        assert self.proxy.cut() > 0

    async def stop(self) -> None:
        await self.proxy.stop()

    async def start(self) -> None:
        await self.proxy.start()

    def pass_time(self, seconds: float) -> None:
        """RabbitMQ's clock runs by itself."""

    async def close(self) -> None:
        for client in self._clients:
            await client.close()
        await self.proxy.stop()
