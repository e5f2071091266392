"""FAULTS row 3: an agent that ends its own process, every time."""

import time

import pytest

from tests.acceptance.cluster import Cluster
from tests.faults.scene import assert_quiet, block, end_of, executions, submit, supervised

NEIGHBOURS = [f"good-{number}" for number in range(5)]
LIMIT = 6  # the least that spares neighbours; the default is 10


@pytest.mark.parametrize(("workers", "end"), [(1, "kill"), pytest.param(3, "exit", marks=pytest.mark.slow)])
def test_a_task_that_kills_its_worker_each_time_fails_and_its_neighbours_complete(
    cluster: Cluster, workers: int, end: str
) -> None:
    cluster.start_orchestrator()
    inputs = {"poison": {"end": end}} | {name: {"seconds": 0.2} for name in NEIGHBOURS}
    started = time.monotonic()
    with supervised(cluster, workers, FORKJOIN_WORKER_MAX_DELIVERIES=str(LIMIT)) as services:
        ended = end_of(cluster, submit(cluster, block("mortal", inputs)), seconds=300)
    print(f"{workers} workers, {len(services) - workers} deaths: {time.monotonic() - started:.1f} s")

    assert ended.statuses() == {"block": "FAILED", "poison": "FAILED"} | dict.fromkeys(NEIGHBOURS, "COMPLETED")
    assert ended.error("poison")["code"] == "worker_lost"
    ran = executions(cluster)
    assert ran["poison"] == LIMIT, "it is run until the limit, and then no more"
    assert all(1 <= ran[name] <= LIMIT for name in NEIGHBOURS)
    assert_quiet(cluster, "mortal")
