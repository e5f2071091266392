"""FAULTS rows 21, 22 and 27: a broker that restarts, is killed, or closes everybody's connections, under load."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.cluster import PATIENCE, Cluster, wait_until
from tests.faults.recovery import Recovery
from tests.faults.scene import logged, logs
from tests.faults.traffic import Traffic
from tests.services.private_rabbitmq import PrivateRabbitMQ, server_command
from tests.services.rabbitmq import RabbitMQ


@pytest.fixture(scope="module")
def mortal_broker() -> Iterator[RabbitMQ]:
    """A broker that only these tests use."""
    if server_command() is None:
        pytest.skip("needs a rabbitmq-server on this machine, to stop and kill one")
    broker = PrivateRabbitMQ()
    try:
        broker.start()
        yield RabbitMQ(broker.url, "private, to be stopped", broker.management, broker)
    finally:
        broker.remove()


@pytest.fixture
def shaky(mortal_broker: RabbitMQ, database_url: str, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster on a fresh vhost of that broker, with two replicas and two workers."""
    cluster = Cluster(mortal_broker.new_vhost(), database_url, tmp_path)
    cluster.migrate()
    for _ in range(2):
        cluster.launch("orchestrator", "serve")
        cluster.launch("agent_worker", "tests.acceptance.journal_agents:agents", "--concurrency", "20")
    wait_until(lambda: all_ready(cluster), PATIENCE, lambda: logs(cluster))
    yield cluster
    cluster.stop()
    mortal_broker.drop_vhost(cluster.amqp_url)


def all_ready(cluster: Cluster) -> bool:
    ready = [
        logged([service], "orchestrator_ready") or logged([service], "worker_ready") for service in cluster.services
    ]
    return all(ready)


@pytest.mark.parametrize("how", ["killed", pytest.param("restarted", marks=pytest.mark.slow)])
def test_all_runs_complete_though_the_broker_is(
    shaky: Cluster, mortal_broker: RabbitMQ, recovery: Recovery, how: str
) -> None:
    traffic = Traffic(shaky, branches=10, limit=3, seconds=0.2)
    traffic.submit(20)
    traffic.is_under_way()

    recovery.injected()
    if how == "killed":
        mortal_broker.kill()
    else:
        mortal_broker.stop()
    mortal_broker.start()
    recovery.ended()

    traffic.recovers(recovery)
    for service in shaky.services:
        lost, restored = logged([service], "broker_connection_lost"), logged([service], "broker_connection_restored")
        assert 1 <= len(lost) <= 2, "one clear line for each of the two connections"
        assert len(restored) == len(lost)
    traffic.check(repeats=1)


def test_connections_that_are_closed_by_force_while_deliveries_are_held_are_made_up_for(
    shaky: Cluster, mortal_broker: RabbitMQ, recovery: Recovery
) -> None:
    traffic = Traffic(shaky, branches=10, limit=3, seconds=0.2)
    traffic.submit(20)
    traffic.is_under_way()
    cuts = 3

    recovery.injected()
    for _ in range(cuts):
        done = traffic.completed_branches()
        mortal_broker.close_connections(at_least=8)
        wait_until(lambda done=done: traffic.completed_branches() > done, PATIENCE, lambda: logs(shaky))  # type: ignore[misc]
    recovery.ended()

    assert traffic.unfinished(), "they were cut under load"
    traffic.recovers(recovery)
    traffic.check(repeats=cuts)
