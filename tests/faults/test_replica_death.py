"""FAULTS row 13 and its kin: orchestrators that die, stop and come while they hold gates."""

import time

import pytest

from tests.acceptance.cluster import PATIENCE, Cluster, Service, wait_until
from tests.faults.oracles import check_limits, fetch, record_history
from tests.faults.recovery import Recovery
from tests.faults.scene import assert_quiet, block, end_of, executions, logs, release, start_worker, submit
from tests.faults.traffic import Traffic

LIMIT = 3
BRANCHES = [f"b{number}" for number in range(8)]
HOLDS = "SELECT 1 FROM gates WHERE holder = $1"


def holder_of(cluster: Cluster) -> str:
    """Return who holds the only gate."""
    (row,) = fetch(cluster, "SELECT holder FROM gates")
    return str(row["holder"])


def start_replicas(cluster: Cluster, *names: str) -> dict[str, Service]:
    return {name: cluster.start_orchestrator(FORKJOIN_REPLICA_ID=name) for name in names}


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_the_limit_holds_when_the_holder_of_a_full_gate_goes(cluster: Cluster, recovery: Recovery, how: str) -> None:
    record_history(cluster.database_url)
    replicas = start_replicas(cluster, "one", "two")
    worker = start_worker(cluster)
    run_id = submit(cluster, block("waiting", {name: {} for name in BRANCHES}, max_parallelism=LIMIT))
    wait_until(lambda: executions(cluster).total() == LIMIT, PATIENCE, lambda: logs(cluster))
    # Forgotten as sent: else they are sent once more in ten seconds, to a worker that has ended by then.
    wait_until(lambda: fetch(cluster, "SELECT 1 FROM outbox") == [], PATIENCE, lambda: logs(cluster))
    holder = replicas.pop(holder_of(cluster))
    (other,) = replicas

    recovery.injected()
    if how == "killed":
        holder.kill()
    else:
        assert holder.stop() == 0
        assert fetch(cluster, "SELECT 1 FROM gates WHERE holder = $1 OR lease_until < now()", other) != [], "given back"
    wait_until(lambda: holder_of(cluster) == other, PATIENCE, lambda: f"{other} did not take the gate over")
    taken_over = time.monotonic()
    assert executions(cluster).total() == LIMIT, "those whose tickets came again run already"
    release(cluster)

    assert end_of(cluster, run_id).statuses() == {"block": "COMPLETED"} | dict.fromkeys(BRANCHES, "COMPLETED")
    recovery.note(("gate taken over", taken_over), ("block completed", time.monotonic()))
    assert executions(cluster) == dict.fromkeys(BRANCHES, 1)
    check_limits(cluster, run_id, {"block": LIMIT})
    assert worker.stop() == 0
    assert_quiet(cluster, "waiting")


@pytest.mark.slow
def test_a_rolling_restart_of_all_replicas_under_load_is_not_noticed(cluster: Cluster, recovery: Recovery) -> None:
    replicas = start_replicas(cluster, "one", "two")
    cluster.start_worker("--concurrency", "20")
    traffic = Traffic(cluster, branches=8, limit=2, seconds=0.2)

    recovery.injected()
    for name, replica in replicas.items():
        start_replicas(cluster, f"{name}-anew")
        traffic.submit(6)
        wait_until(lambda: fetch(cluster, HOLDS, name) != [], PATIENCE, lambda: logs(cluster))  # noqa: B023
        assert replica.stop() == 0
    recovery.ended()

    traffic.recovers(recovery)
    traffic.check()


@pytest.mark.slow
def test_replicas_come_and_go_while_twenty_runs_are_active(cluster: Cluster, recovery: Recovery) -> None:
    replicas = list(start_replicas(cluster, "one", "two").values())
    cluster.start_worker("--concurrency", "40")
    traffic = Traffic(cluster, branches=20, limit=2, seconds=0.5)

    recovery.injected()
    for turn in range(6):
        traffic.submit(20 - len(traffic.unfinished()))
        done = traffic.completed_branches()
        oldest = replicas.pop(0)
        if turn % 2:
            oldest.kill()
        else:
            assert oldest.stop() == 0
        replicas += start_replicas(cluster, f"turn-{turn}").values()
        wait_until(lambda done=done: traffic.completed_branches() > done, PATIENCE, lambda: logs(cluster))  # type: ignore[misc]
    recovery.ended()

    traffic.recovers(recovery, seconds=120)
    traffic.check()


@pytest.mark.slow
def test_a_replica_that_stops_in_order_leaves_no_message_behind(cluster: Cluster, recovery: Recovery) -> None:
    cluster.start_worker("--concurrency", "20")
    traffic = Traffic(cluster, branches=20, limit=4, seconds=0.05)
    late = "SELECT type, routing_key, due_at - now() AS due FROM outbox WHERE due_at > now() + interval '2 seconds'"
    for name in ("one", "two", "three"):
        (replica,) = start_replicas(cluster, name).values()
        traffic.submit(10)
        traffic.is_under_way((len(traffic.runs) - 5) / len(traffic.runs))
        assert replica.stop() == 0
        assert fetch(cluster, late) == [], "they would wait for a sweep in ten seconds"
    recovery.injected()
    start_replicas(cluster, "last")
    traffic.recovers(recovery)
    traffic.check()
