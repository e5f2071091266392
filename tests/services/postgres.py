"""The Postgres that tests run against."""

import asyncio
import os
import threading
import urllib.parse
import uuid
from dataclasses import dataclass, field
from typing import Protocol

import asyncpg
import pytest

from tests.services.containers import Container, require_docker
from tests.services.private_postgres import PrivatePostgres
from tests.services.sources import Announce, Unavailable, first_available

IMAGE = "postgres:17"


class OwnedServer(Protocol):
    """A Postgres that the tests started, and so may end."""

    def start(self) -> None:
        """Start it with what it held, and wait until it takes connections."""

    def stop(self, *, immediate: bool = False) -> None:
        """Shut it down."""

    def kill(self) -> None:
        """SIGKILL it."""

    def remove(self) -> None:
        """End it and delete its data."""


@dataclass
class Postgres:
    """A Postgres for tests.

    Attributes:
        url: ``postgresql://…`` of a database in which other databases can be made.
        origin: Where it came from, for people.
        server: None where it is somebody else's. `stop`, `start`, `restart` and `kill` then skip the test.
    """

    url: str
    origin: str
    server: OwnedServer | None = None
    _databases: set[str] = field(default_factory=set)

    def new_database(self, template: str | None = None) -> str:
        """Make a database and return its URL; give it to `drop_database` afterwards.

        Args:
            template: URL or name of a database to copy, to which nobody may be connected; by default an empty one.
        """
        name = f"test_{uuid.uuid4().hex[:12]}"
        source = "template0" if template is None else _database(template)
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{source}"')
        self._databases.add(name)
        return urllib.parse.urlsplit(self.url)._replace(path=f"/{name}").geturl()

    def drop_database(self, url: str) -> None:
        """Delete a database that `new_database` made, and cut whoever is connected to it."""
        name = _database(url)
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        self._databases.discard(name)

    def terminate_backends(self, url: str | None = None) -> int:
        """Cut the connections to one database, or to all that `new_database` made, and return how many they were."""
        names = sorted(self._databases) if url is None else [_database(url)]
        cut = self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = ANY($1::text[]) AND pid <> pg_backend_pid()",
            names,
        )
        return len(cut)

    def execute(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        """Run one statement in the database of `url`; may be called from async tests, which it blocks."""
        return _in_thread(self.url, statement, arguments)

    def stop(self, *, immediate: bool = False) -> None:
        """Shut it down: fast, or *immediate* and so with recovery at the next start."""
        self._own().stop(immediate=immediate)

    def kill(self) -> None:
        """SIGKILL it with all its backends."""
        self._own().kill()

    def start(self) -> None:
        """Start it after `stop` or `kill`, at the same address, and wait until it takes connections."""
        self._own().start()

    def restart(self, *, immediate: bool = False) -> None:
        """Shut it down and start it again."""
        self.stop(immediate=immediate)
        self.start()

    def remove(self) -> None:
        """Give back what was taken: drop left-over databases, or delete the whole server when it is ours."""
        if self.server is not None:
            self.server.remove()
            return
        for name in sorted(self._databases):
            self.drop_database(name)

    def _own(self) -> OwnedServer:
        if self.server is None:
            pytest.skip(f"needs a Postgres that tests may stop; {self.origin} is not theirs")
        return self.server


def take(announce: Announce) -> Postgres:
    """Return the first Postgres there is: given by environment, from Docker, from the pip wheel.

    Raises:
        Unavailable: There is none; says what would be right.
    """
    given = os.environ.get("FORKJOIN_TEST_DATABASE_URL")
    if given:
        return _given(given)
    return first_available("Postgres", [_from_docker, _from_wheel], announce)


def _given(url: str) -> Postgres:
    scheme, _, rest = url.partition("://")
    service = Postgres(f"{scheme.partition('+')[0]}://{rest}", "")  # a driver in the scheme is for SQLAlchemy only
    service.origin = f"FORKJOIN_TEST_DATABASE_URL, a fresh database per test, {_version(service)}"
    return service


def _from_docker(announce: Announce) -> Postgres:
    require_docker()
    announce(f"Postgres: starting {IMAGE} in Docker")
    server = PostgresContainer()
    return Postgres(server.url, f"{IMAGE} in Docker", server)


def _from_wheel(announce: Announce) -> Postgres:
    server = PrivatePostgres()
    try:
        server.start()
    except BaseException:
        server.remove()
        raise
    service = Postgres(server.url, "", server)
    service.origin = f"started privately on port {server.port} ({_version(service)} from a pip wheel)"
    return service


class PostgresContainer:
    """A Postgres in Docker."""

    def __init__(self) -> None:
        options = "-c fsync=off -c full_page_writes=off -c max_connections=200"
        self._container = Container(IMAGE, (5432,), {"POSTGRES_PASSWORD": "postgres"}, f"postgres {options}")
        self._container.create()
        self._container.wait_until(self._ready)

    @property
    def url(self) -> str:
        """Where clients connect, to the database postgres."""
        return f"postgresql://postgres:postgres@{self._container.address(5432)}/postgres"

    def start(self) -> None:
        """Start it with what it held, and wait until it takes connections."""
        self._container.start()
        self._container.wait_until(self._ready)

    def stop(self, *, immediate: bool = False) -> None:
        """Shut it down; *immediate* is a SIGKILL here, which needs the same recovery."""
        if immediate:
            self._container.kill()
        else:
            self._container.stop()

    def kill(self) -> None:
        """SIGKILL it."""
        self._container.kill()

    def remove(self) -> None:
        """End it and delete its data."""
        self._container.remove()

    def _ready(self) -> bool:
        # The image's first start ends with a restart; until then it listens on a socket only, not on the port.
        try:
            return bool(_in_thread(self.url, "SELECT 1", ()))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False


def _version(service: Postgres) -> str:
    try:
        return f"PostgreSQL {service.execute('SHOW server_version')[0][0]}"
    except (OSError, asyncpg.PostgresError) as failure:
        address = urllib.parse.urlsplit(service.url).netloc.rpartition("@")[2]
        raise Unavailable(
            f"Postgres at {address} does not answer ({failure}); is FORKJOIN_TEST_DATABASE_URL right?"
        ) from failure


def _database(url_or_name: str) -> str:
    return urllib.parse.urlsplit(url_or_name).path.rpartition("/")[2]


def _in_thread(url: str, statement: str, arguments: tuple[object, ...]) -> list[asyncpg.Record]:
    # asyncpg needs an event loop, and the caller's thread may already run one.
    outcome: list[list[asyncpg.Record]] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(_fetch(url, statement, arguments)))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="postgres-admin")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


async def _fetch(url: str, statement: str, arguments: tuple[object, ...]) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url, timeout=10, command_timeout=60)
    try:
        return list(await connection.fetch(statement, *arguments))
    finally:
        await connection.close()
