"""The servers that all systems share: RabbitMQ, Postgres, and a Redis where there is one."""

import contextlib
import os
import shutil
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass

from tests.benchmarks.measurement import Role
from tests.benchmarks.meter import listener
from tests.services import postgres, rabbitmq
from tests.services.postgres import Postgres
from tests.services.private_postgres import PrivatePostgres
from tests.services.processes import Server, accepts_connections, free_ports, temporary_directory
from tests.services.rabbitmq import RabbitMQ
from tests.services.sources import Announce

_NO_REDIS = "no FORKJOIN_TEST_REDIS_URL and no redis-server on the PATH"


@dataclass(frozen=True)
class Servers:
    """Where the servers are.

    Attributes:
        redis_url: None where there is no Redis.
        origins: Where each came from, for people.
    """

    rabbitmq: RabbitMQ
    postgres: Postgres
    redis_url: str | None
    origins: tuple[str, ...]

    def processes(self) -> dict[Role, list[int]]:
        """Return the servers' processes, as far as they run on this machine and can be seen."""
        return {
            Role.RABBITMQ: listener(self.rabbitmq.url, "beam"),
            Role.POSTGRES: listener(self.postgres.url, "postgres"),
            Role.REDIS: [] if self.redis_url is None else listener(self.redis_url, "redis"),
        }


@contextlib.contextmanager
def take(announce: Announce, *, redis: bool) -> Iterator[Servers]:
    """Start or find the servers, and give them back at the end.

    Args:
        announce: Shows a line to whoever runs the benchmarks.
        redis: Whether one is wanted at all.
    """
    with contextlib.ExitStack() as taken:
        broker = rabbitmq.take(announce)
        taken.callback(broker.remove)
        database = _take_postgres(announce)
        taken.callback(database.remove)
        redis_url, redis_origin = taken.enter_context(_redis()) if redis else (None, "not wanted")
        origins = (
            f"RabbitMQ: {broker.origin}",
            f"Postgres: {database.origin}; fsync {_fsync(database)}",
            f"Redis: {redis_origin}",
        )
        for origin in origins:
            announce(origin)
        yield Servers(broker, database, redis_url, origins)


def _take_postgres(announce: Announce) -> Postgres:
    service = postgres.take(announce)
    if not isinstance(service.server, PrivatePostgres):
        return service
    # The tests' own is fast because it never syncs. A benchmark of durable work must not be.
    service.server.remove()
    durable = PrivatePostgres({"fsync": "on", "full_page_writes": "on"})
    durable.start()
    return Postgres(durable.url, service.origin.replace(str(service.server.port), str(durable.port)), durable)


def _fsync(service: Postgres) -> str:
    return str(service.execute("SHOW fsync")[0][0])


@contextlib.contextmanager
def _redis() -> Iterator[tuple[str | None, str]]:
    given, command = os.environ.get("FORKJOIN_TEST_REDIS_URL"), shutil.which("redis-server")
    if given:
        address = urllib.parse.urlsplit(given).netloc.rpartition("@")[2]
        yield given, f"FORKJOIN_TEST_REDIS_URL, {address}"
    elif command is None:
        yield None, f"{_NO_REDIS}, so what needs one is left out"
    else:
        with _private_redis(command) as port:
            yield (
                f"redis://127.0.0.1:{port}/0",
                f"started privately on port {port} (redis-server from this machine)",
            )


@contextlib.contextmanager
def _private_redis(command: str) -> Iterator[int]:
    directory, port = temporary_directory("redis"), free_ports(1)[0]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = Server("redis", [command, *options], directory)
    try:
        server.start(lambda: accepts_connections(port))
        yield port
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)
