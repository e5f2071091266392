"""The RabbitMQ that tests run against."""

import os
import urllib.parse
import uuid
from dataclasses import dataclass, field
from typing import Protocol

import pika
import pika.exceptions
import pytest

from messaging.topology import EXCHANGES, QUEUES
from tests.services.containers import Container, require_docker
from tests.services.debian import install_rabbitmq
from tests.services.management import Management
from tests.services.private_rabbitmq import PrivateRabbitMQ, server_command
from tests.services.sources import Announce, Unavailable, first_available
from tests.services.waiting import wait_until

IMAGE = "rabbitmq:4-management"


class OwnedServer(Protocol):
    """A broker that the tests started, and so may end."""

    def start(self) -> None:
        """Start it with what it held, and wait until it works."""

    def stop(self) -> None:
        """Shut it down in an orderly way."""

    def kill(self) -> None:
        """SIGKILL it."""

    def remove(self) -> None:
        """End it and delete its data."""


@dataclass
class RabbitMQ:
    """A broker for tests.

    Attributes:
        url: Of its vhost /, or of the vhost that was given.
        origin: Where it came from, for people.
        management: None where its management API cannot be reached; all tests then share the vhost of `url`.
        server: None where it is somebody else's. `stop`, `start` and `kill` then skip the test that calls them.
    """

    url: str
    origin: str
    management: Management | None
    server: OwnedServer | None = None
    _vhosts: set[str] = field(default_factory=set)

    def new_vhost(self) -> str:
        """Make an empty vhost and return its URL; give it to `drop_vhost` afterwards."""
        if self.management is None:
            _delete_topology(self.url)
            return self.url
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.management.create_vhost(name)
        self._vhosts.add(name)
        return _with_vhost(self.url, name)

    def drop_vhost(self, url: str) -> None:
        """Delete a vhost that `new_vhost` made, with all that is in it and all connections to it."""
        name = _vhost(url)
        if self.management is not None and name in self._vhosts:
            self.management.delete_vhost(name)
            self._vhosts.discard(name)

    def close_connections(self, *, at_least: int = 1, seconds: float = 10) -> int:
        """Close all clients' connections from the broker's side, as an operator can.

        Args:
            at_least: Wait until there are so many to close.
            seconds: How long to wait for them.

        Returns:
            How many there were.
        """
        management = self.management
        if management is None:
            pytest.skip(f"needs RabbitMQ's management API; {self.origin} has none: set FORKJOIN_TEST_MANAGEMENT_URL")

        def enough() -> list[str]:
            names = management.connections()
            return names if len(names) >= at_least else []

        found = wait_until(enough, f"{at_least} connections to close", seconds=seconds)
        management.close_connections("closed by a test")
        return len(found)

    def stop(self) -> None:
        """Shut the broker down in an orderly way; what is durable stays."""
        self._own().stop()

    def kill(self) -> None:
        """SIGKILL the broker."""
        self._own().kill()

    def start(self) -> None:
        """Start it after `stop` or `kill`, at the same address, and wait until it works."""
        self._own().start()

    def remove(self) -> None:
        """Give back what was taken: delete left-over vhosts, or the whole broker when it is ours."""
        if self.server is not None:
            self.server.remove()
            return
        for name in sorted(self._vhosts):
            self.drop_vhost(_with_vhost(self.url, name))

    def _own(self) -> OwnedServer:
        if self.server is None:
            pytest.skip(f"needs a RabbitMQ that tests may stop; {self.origin} is not theirs")
        return self.server


def take(announce: Announce) -> RabbitMQ:
    """Return the first RabbitMQ there is: given by environment, from Docker, from this machine, from apt-get.

    Raises:
        Unavailable: There is none; says what would be right.
    """
    given = os.environ.get("FORKJOIN_TEST_AMQP_URL")
    if given:
        return _given(given)
    return first_available("RabbitMQ", [_from_docker, _from_this_machine, _from_apt], announce)


def _given(url: str) -> RabbitMQ:
    parts = urllib.parse.urlsplit(url)
    base = os.environ.get("FORKJOIN_TEST_MANAGEMENT_URL") or f"http://{parts.hostname}:15672"
    user, password = (urllib.parse.unquote(part or "guest") for part in (parts.username, parts.password))
    management = Management(base, user, password)
    if management.reachable():
        return RabbitMQ(
            url, f"FORKJOIN_TEST_AMQP_URL, a fresh vhost per test, RabbitMQ {management.version()}", management
        )
    _require_amqp(url)
    return RabbitMQ(url, f"FORKJOIN_TEST_AMQP_URL, one vhost for all tests: no management API at {base}", None)


def _require_amqp(url: str) -> None:
    try:
        pika.BlockingConnection(pika.URLParameters(url)).close()
    except (OSError, pika.exceptions.AMQPError) as failure:
        address = urllib.parse.urlsplit(url).netloc.rpartition("@")[2]
        raise Unavailable(
            f"FORKJOIN_TEST_AMQP_URL names {address}, which does not take connections ({failure!r}); "
            "correct it, or unset it to let the tests start a RabbitMQ"
        ) from failure


def _from_docker(announce: Announce) -> RabbitMQ:
    require_docker()
    announce(f"RabbitMQ: starting {IMAGE} in Docker")
    server = RabbitMQContainer()
    return RabbitMQ(
        server.url, f"{IMAGE} in Docker (RabbitMQ {server.management.version()})", server.management, server
    )


def _from_this_machine(announce: Announce) -> RabbitMQ:
    if server_command() is None:
        raise Unavailable("this machine has no rabbitmq-server")
    server = PrivateRabbitMQ()
    try:
        server.start()
    except BaseException:
        server.remove()
        raise
    origin = (
        f"started privately on port {server.ports[0]} (rabbitmq-server {server.management.version()} from this machine)"
    )
    return RabbitMQ(server.url, origin, server.management, server)


def _from_apt(announce: Announce) -> RabbitMQ:
    install_rabbitmq(announce)
    return _from_this_machine(announce)


class RabbitMQContainer:
    """A broker in Docker."""

    def __init__(self) -> None:
        self._container = Container(IMAGE, (5672, 15672))
        self._container.create()
        self._container.wait_until(self._ready)

    @property
    def url(self) -> str:
        """Where clients connect; the vhost is /."""
        return f"amqp://guest:guest@{self._container.address(5672)}/"

    @property
    def management(self) -> Management:
        """Its management API."""
        return Management(f"http://{self._container.address(15672)}", "guest", "guest")

    def start(self) -> None:
        """Start it with what it held, and wait until it works."""
        self._container.start()
        self._container.wait_until(self._ready)

    def stop(self) -> None:
        """Shut it down in an orderly way."""
        self._container.stop()

    def kill(self) -> None:
        """SIGKILL it."""
        self._container.kill()

    def remove(self) -> None:
        """End it and delete its data."""
        self._container.remove()

    def _ready(self) -> bool:
        return self.management.reachable() and self._container.accepts_connections(5672)


def _vhost(url: str) -> str:
    return urllib.parse.unquote(urllib.parse.urlsplit(url).path.removeprefix("/"))


def _with_vhost(url: str, name: str) -> str:
    return urllib.parse.urlsplit(url)._replace(path="/" + urllib.parse.quote(name, safe="")).geturl()


def _delete_topology(url: str) -> None:
    # AMQP cannot list queues: those with fixed names are all that can be cleared without the management API.
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for queue in QUEUES:
            channel.queue_delete(queue.name)
        for exchange in EXCHANGES:
            channel.exchange_delete(exchange.name)
