"""A migrated database for each test, either broker, and the whole system on top."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from orchestrator.storage.database import Database
from orchestrator.storage.schema import migrate
from tests.integration.replicas import Brokers
from tests.integration.system import System
from tests.services.postgres import Postgres


@pytest.fixture(scope="session")
def template_url(postgres: Postgres) -> Iterator[str]:
    """A migrated database that tests get copies of; nobody stays connected to it."""
    url = postgres.new_database()
    asyncio.run(migrated(url))
    yield url
    postgres.drop_database(url)


@pytest.fixture
def migrated_url(postgres: Postgres, template_url: str) -> Iterator[str]:
    """The URL of a fresh, migrated database."""
    url = postgres.new_database(template_url)
    yield url
    postgres.drop_database(url)


@pytest.fixture
async def database(migrated_url: str) -> AsyncIterator[Database]:
    """A connection pool on a fresh, migrated database."""
    database = Database(migrated_url, steady_plans=True)
    yield database
    await database.close()


@pytest.fixture(params=["memory", "rabbitmq"])
async def brokers(request: pytest.FixtureRequest) -> Brokers:
    """Makes clients of a broker that only this test uses, once in memory and once on RabbitMQ."""
    return Brokers(request.getfixturevalue("amqp_url") if request.param == "rabbitmq" else None)


@pytest.fixture
async def system(brokers: Brokers, migrated_url: str) -> AsyncIterator[System]:
    """Replicas, workers and a client; the test starts what it needs."""
    system = await System(brokers, migrated_url).open()
    yield system
    await system.close()


async def migrated(url: str) -> None:
    """Bring the schema of a database up to date."""
    database = Database(url)
    try:
        await migrate(database.engine)
    finally:
        await database.close()
