"""The storage under test, once for each adapter."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from uuid import UUID, uuid4

import pytest

from orchestrator.storage.database import Database
from orchestrator.storage.port import Storage
from orchestrator.storage.schema import migrate
from tests.contract.storage.backends import Backend, MemoryBackend, PostgresBackend
from tests.contract.storage.rows import add_run, step
from tests.services.postgres import Postgres


@pytest.fixture(scope="session")
def template_url(postgres: Postgres) -> Iterator[str]:
    """A migrated database that tests get copies of; nobody stays connected to it."""
    url = postgres.new_database()
    asyncio.run(_migrated(url))
    yield url
    postgres.drop_database(url)


@pytest.fixture
def migrated_url(postgres: Postgres, template_url: str) -> Iterator[str]:
    """The URL of a fresh, migrated database."""
    url = postgres.new_database(template_url)
    yield url
    postgres.drop_database(url)


@pytest.fixture(params=["memory", "postgres"])
def database_address(request: pytest.FixtureRequest) -> str | None:
    """The URL of a fresh, migrated database, or None for the storage in memory."""
    return request.getfixturevalue("migrated_url") if request.param == "postgres" else None


@pytest.fixture
async def backend(database_address: str | None) -> AsyncIterator[Backend]:
    backend: Backend = MemoryBackend() if database_address is None else PostgresBackend(database_address)
    yield backend
    await backend.close()


@pytest.fixture
def storage(backend: Backend) -> Storage:
    """The storage as one process sees it."""
    return backend.client("one")


@pytest.fixture
def other(backend: Backend) -> Storage:
    """The storage as another process sees it."""
    return backend.client("other")


@pytest.fixture
async def runs(storage: Storage) -> Sequence[UUID]:
    """Two runs with a step each, in the order of their ids."""
    ids = sorted(uuid4() for _ in range(2))
    for run_id in ids:
        await add_run(storage, step(run_id, "one"), run_id=run_id)
    return ids


async def _migrated(url: str) -> None:
    database = Database(url)
    try:
        await migrate(database.engine)
    finally:
        await database.close()
