"""FAULTS rows 23, 41, 43, 46 and 48: a Postgres that restarts, cuts, is full, or absent, while processes work on it."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.acceptance.cluster import PATIENCE, Cluster, wait_until
from tests.faults.recovery import Recovery
from tests.faults.scene import logged, logs
from tests.faults.traffic import Traffic
from tests.services.postgres import Postgres
from tests.services.private_postgres import PrivatePostgres

MAX_CONNECTIONS = 40


@pytest.fixture(scope="module")
def mortal_postgres() -> Iterator[Postgres]:
    """A Postgres that only these tests use, with few connections to give."""
    server = PrivatePostgres({"max_connections": str(MAX_CONNECTIONS)})
    try:
        server.start()
        yield Postgres(server.url, "private, to be stopped", server)
    finally:
        server.remove()


@pytest.fixture
def shaky(mortal_postgres: Postgres, amqp_url: str, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster on a fresh database of that Postgres; nothing runs yet."""
    cluster = Cluster(amqp_url, mortal_postgres.new_database(), tmp_path)
    cluster.migrate()
    yield cluster
    cluster.stop()
    mortal_postgres.drop_database(cluster.database_url)


def start_services(cluster: Cluster) -> None:
    """Start two replicas and a worker."""
    for _ in range(2):
        cluster.launch("orchestrator", "serve")
    cluster.launch("agent_worker", "tests.acceptance.journal_agents:agents", "--concurrency", "40")
    orchestrators, worker = cluster.services[:2], cluster.services[2]
    for service in orchestrators:
        service.wait_for("orchestrator_ready")
    worker.wait_for("worker_ready")


@pytest.mark.parametrize("how", [pytest.param("fast", marks=pytest.mark.slow), "immediate"])
def test_all_runs_complete_though_postgres_is_restarted(
    shaky: Cluster, mortal_postgres: Postgres, recovery: Recovery, how: str
) -> None:
    start_services(shaky)
    traffic = Traffic(shaky, branches=10, limit=3, seconds=0.1)
    traffic.submit(20)
    traffic.is_under_way()

    recovery.injected()
    mortal_postgres.stop(immediate=how == "immediate")
    wait_until(lambda: len(logged(shaky.services, "database_lost")) == 2, PATIENCE, lambda: logs(shaky))
    traffic.submit(2)  # which wait with the broker
    mortal_postgres.start()
    recovery.ended()

    traffic.recovers(recovery)
    assert len(logged(shaky.services, "database_lost")) == 2, "one clear line of each replica"
    traffic.check()


def test_all_runs_complete_though_all_backends_are_terminated_again_and_again(
    shaky: Cluster, mortal_postgres: Postgres, recovery: Recovery
) -> None:
    start_services(shaky)
    traffic = Traffic(shaky, branches=10, limit=3, seconds=0.1)
    traffic.submit(20)
    traffic.is_under_way()

    recovery.injected()
    for _ in range(5):
        wait_until(lambda: mortal_postgres.terminate_backends(shaky.database_url) > 0, PATIENCE, lambda: logs(shaky))
        done = traffic.completed_branches()
        wait_until(lambda done=done: traffic.completed_branches() > done, PATIENCE, lambda: logs(shaky))  # type: ignore[misc]
    recovery.ended()

    traffic.recovers(recovery)
    traffic.check()


def test_replicas_wait_for_connections_while_others_hold_them_all(
    shaky: Cluster, mortal_postgres: Postgres, recovery: Recovery
) -> None:
    start_services(shaky)
    traffic = Traffic(shaky, branches=6, limit=2, seconds=0.1)
    traffic.submit(20)
    traffic.is_under_way()

    recovery.injected()
    asyncio.run(take_all_connections(shaky, mortal_postgres))
    recovery.ended()

    traffic.recovers(recovery)
    traffic.check()


async def take_all_connections(cluster: Cluster, postgres: Postgres) -> None:
    """Leave no connection to the replicas until each has noticed."""
    taken: list[asyncpg.Connection] = []
    elsewhere = urlsplit(cluster.database_url)._replace(path="/postgres").geturl()
    try:
        while len(logged(cluster.services, "database_lost")) < 2:
            try:
                taken.append(await asyncpg.connect(elsewhere))
            except asyncpg.TooManyConnectionsError:
                await taken[0].execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'forkjoin'"
                )
        assert logged(cluster.services, "database_restored") == []
    finally:
        for connection in taken:
            await connection.close()


@pytest.mark.slow
def test_a_locked_run_waits_while_others_complete(shaky: Cluster, recovery: Recovery) -> None:
    start_services(shaky)
    traffic = Traffic(shaky, branches=10, limit=3, seconds=0.05)
    traffic.submit(1)
    traffic.is_under_way()
    asyncio.run(others_complete_beside_a_locked_run(shaky, traffic))
    recovery.injected()
    traffic.recovers(recovery)
    traffic.check()


async def others_complete_beside_a_locked_run(cluster: Cluster, traffic: Traffic) -> None:
    """Lock the run until others, which were submitted later, have completed (O8)."""
    (locked,) = traffic.runs
    connection = await asyncpg.connect(cluster.database_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT * FROM runs WHERE id::text = $1 FOR UPDATE", locked)
            await asyncio.to_thread(others_complete, cluster, traffic, locked)
    finally:
        await connection.close()


def others_complete(cluster: Cluster, traffic: Traffic, locked: str) -> None:
    wait_until(lambda: logged(cluster.services, "run_locked") != [], PATIENCE, lambda: logs(cluster))
    traffic.submit(5)
    wait_until(lambda: traffic.unfinished() == [locked], PATIENCE, lambda: logs(cluster))


def test_an_orchestrator_waits_for_a_postgres_that_is_not_there_yet_and_then_works(
    shaky: Cluster, mortal_postgres: Postgres, recovery: Recovery
) -> None:
    mortal_postgres.stop()
    try:
        replica = shaky.launch("orchestrator", "serve")
        replica.wait_for("database_awaited")
        assert not logged([replica], "orchestrator_ready")
    finally:
        mortal_postgres.start()
    recovery.injected()
    replica.wait_for("orchestrator_ready")
    ready = time.monotonic()
    shaky.start_worker()
    traffic = Traffic(shaky)
    traffic.submit(2)
    traffic.ends()
    recovery.note(("ready", ready))
    traffic.check()
