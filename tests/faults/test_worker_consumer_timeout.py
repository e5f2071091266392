"""FAULTS row 29: agents that take longer than the broker's consumer_timeout, on a broker whose timeout is seconds."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.acceptance.cluster import PATIENCE, Cluster, wait_until
from tests.faults.scene import (
    assert_quiet,
    block,
    end_of,
    executions,
    logged,
    release,
    start_worker,
    submit,
)
from tests.services.private_rabbitmq import PrivateRabbitMQ, server_command
from tests.services.rabbitmq import RabbitMQ

TIMEOUT = 1.0  # seconds
TIMES = 3  # how often it passes while the agents run


@pytest.fixture(scope="module")
def impatient_broker() -> Iterator[RabbitMQ]:
    """A broker that takes deliveries back after a second."""
    if server_command() is None:
        pytest.skip("needs a rabbitmq-server on this machine, to start one with a consumer_timeout of its own")
    broker = PrivateRabbitMQ(
        configuration=f"consumer_timeout = {int(TIMEOUT * 1000)}\ncollect_statistics_interval = 500\n",
        # By default the broker looks once a minute.
        advanced_configuration="[{rabbit, [{channel_tick_interval, 300}]}].",
    )
    try:
        broker.start()
        yield RabbitMQ(broker.url, "private, with a short consumer_timeout", broker.management, broker)
    finally:
        broker.remove()


@pytest.fixture
def cluster(impatient_broker: RabbitMQ, database_url: str, tmp_path: Path) -> Iterator[Cluster]:
    """A cluster on a fresh vhost of that broker."""
    cluster = Cluster(impatient_broker.new_vhost(), database_url, tmp_path)
    cluster.migrate()
    yield cluster
    cluster.stop()
    impatient_broker.drop_vhost(cluster.amqp_url)


def wait_until_counted(broker: RabbitMQ, cluster: Cluster, queue: str, count: int) -> None:
    """Wait until the management API counts so many messages of the queue, ready or in the hands of a worker.

    Its figures are up to ten seconds old: 0 may be from before the first message came. So let it count those first.
    """
    assert broker.management is not None
    path = f"/queues/{urlsplit(cluster.amqp_url).path.removeprefix('/')}/{queue}"
    management = broker.management

    def counted() -> bool:
        return bool(management.call("GET", path).get("messages") == count)

    wait_until(counted, PATIENCE, lambda: str(management.call("GET", path)))


@pytest.mark.parametrize(
    ("workers", "limit"),
    [(3, None), (1, 2), pytest.param(1, None, marks=pytest.mark.slow), pytest.param(3, 2, marks=pytest.mark.slow)],
)
def test_agents_that_outlive_consumer_timeout_run_once_and_their_results_count(
    impatient_broker: RabbitMQ, cluster: Cluster, workers: int, limit: int | None
) -> None:
    orchestrator = cluster.start_orchestrator()
    # A limit below the number of times that the tasks come again: they must not be taken for poison.
    settings = {"FORKJOIN_WORKER_MAX_DELIVERIES": "2"}
    services = [start_worker(cluster, "--concurrency", "4", **settings) for _ in range(workers)]
    branches = [f"b{number}" for number in range(4)]
    fields = {"max_parallelism": limit} if limit else {}
    run_id = submit(cluster, block("waiting", {name: {} for name in branches}, **fields))

    wait_until(lambda: len(executions(cluster)) == (limit or 4), PATIENCE, lambda: "the first branches did not start")
    wait_until(
        lambda: len(logged(services, "consumer_timed_out")) >= TIMES,
        PATIENCE,
        lambda: "the timeout did not pass so often",
    )
    if limit:
        wait_until(lambda: len(logged([orchestrator], "consumer_timed_out")) >= 2, PATIENCE, lambda: "the gate held on")
    assert len(executions(cluster)) == (limit or 4), "the limit holds, though all tickets came again"
    wait_until_counted(impatient_broker, cluster, "agent.waiting", limit or 4)
    release(cluster)
    ended = end_of(cluster, run_id)

    assert ended.statuses() == {"block": "COMPLETED"} | dict.fromkeys(branches, "COMPLETED")
    assert executions(cluster) == dict.fromkeys(branches, 1)
    for line in logged([orchestrator, *services], "consumer_timed_out"):
        assert (line["setting"], line["seconds"], line["level"]) == ("consumer_timeout", TIMEOUT, "warning")
        assert "rabbitmq.conf" in line["remedy"]
    assert logged(services, "consumer_timed_out")
    told = logged([orchestrator], "agent_outlived_consumer_timeout")
    assert {line["setting"] for line in told} == {"consumer_timeout"}
    wait_until_counted(impatient_broker, cluster, "agent.waiting", 0)
    for service in (*services, orchestrator):
        assert service.stop() == 0
    assert_quiet(cluster, "waiting")


def test_a_worker_that_dies_after_its_tasks_came_again_is_replaced(cluster: Cluster) -> None:
    cluster.start_orchestrator()
    first = start_worker(cluster)
    run_id = submit(cluster, block("waiting", {"only": {}}))
    wait_until(lambda: executions(cluster) == {"only": 1}, PATIENCE, lambda: "the branch did not start")
    second = start_worker(cluster)
    # Whoever does not run it has it by now, and waits.
    wait_until(lambda: logged([second], "stands_by") != [], PATIENCE, lambda: "the task never came to the other worker")
    first.kill()
    wait_until(lambda: executions(cluster) == {"only": 2}, PATIENCE, lambda: "nobody took the task over")
    release(cluster)
    assert end_of(cluster, run_id).statuses() == {"block": "COMPLETED", "only": "COMPLETED"}
    assert second.stop() == 0
    assert_quiet(cluster, "waiting")
