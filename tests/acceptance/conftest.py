"""A cluster for each test, on a fresh vhost and a fresh database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.cluster import Cluster
from tests.services.postgres import Postgres
from tests.services.rabbitmq import RabbitMQ


@pytest.fixture
def cluster(amqp_url: str, database_url: str, tmp_path: Path) -> Iterator[Cluster]:
    """An empty cluster on a migrated database; whatever a test starts in it is killed at its end."""
    cluster = Cluster(amqp_url, database_url, tmp_path)
    cluster.migrate()
    yield cluster
    cluster.stop()


@pytest.fixture
def bare(amqp_url: str, database_url: str, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster on a database that nobody has migrated."""
    cluster = Cluster(amqp_url, database_url, tmp_path)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def standing(rabbitmq: RabbitMQ, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with an orchestrator and a worker, for tests that only submit runs to it."""
    amqp_url, database_url = rabbitmq.new_vhost(), postgres.new_database()
    cluster = Cluster(amqp_url, database_url, tmp_path_factory.mktemp("standing"))
    cluster.migrate()
    cluster.start_orchestrator()
    cluster.start_worker()
    yield cluster
    cluster.stop()
    rabbitmq.drop_vhost(amqp_url)
    postgres.drop_database(database_url)
