"""A cluster for each test, on a fresh vhost and a fresh database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.cluster import Cluster


@pytest.fixture
def cluster(amqp_url: str, database_url: str, tmp_path: Path) -> Iterator[Cluster]:
    """An empty cluster on a migrated database; whatever a test starts in it is killed at its end."""
    cluster = Cluster(amqp_url, database_url, tmp_path)
    cluster.migrate()
    yield cluster
    cluster.stop()
