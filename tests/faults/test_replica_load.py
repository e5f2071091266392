"""FAULTS rows 15, 16 and 17: work that waits for orchestrators or workers, and replicas that share it."""

import signal
import time

import psutil
import pytest

from tests.acceptance.cluster import PATIENCE, Cluster, Service, wait_until
from tests.faults import wire
from tests.faults.oracles import Expected, check, fetch, record_history
from tests.faults.recovery import Recovery
from tests.faults.scene import assert_quiet, block, end_of, executions, logs, release, start_worker, submit
from tests.faults.traffic import Traffic

MANY = 5_000


def step_count(cluster: Cluster, status: str) -> int:
    return int(fetch(cluster, "SELECT count(*) FROM step_executions WHERE status = $1", status)[0][0])


@pytest.mark.slow
def test_idle_replicas_share_the_load(cluster: Cluster) -> None:
    replicas = [cluster.start_orchestrator() for _ in range(2)]
    cluster.start_worker("--concurrency", "100")
    before = [cpu_seconds(replica) for replica in replicas]
    traffic = Traffic(cluster, branches=20, limit=5, seconds=0.01)
    traffic.submit(30)
    traffic.ends()
    spent = [cpu_seconds(replica) - start for replica, start in zip(replicas, before, strict=True)]
    print(f"CPU seconds of the replicas: {spent}")
    assert min(spent) > 0.2 * sum(spent), "RabbitMQ gives each of them its share of requests and results"
    traffic.check()


def cpu_seconds(service: Service) -> float:
    times = psutil.Process(service.process.pid).cpu_times()
    return float(times.user + times.system)


def test_results_that_pile_up_while_no_orchestrator_runs_are_applied_by_the_next(
    cluster: Cluster, recovery: Recovery
) -> None:
    orchestrator = cluster.start_orchestrator()
    worker = start_worker(cluster, "--concurrency", "1000")
    branches = [f"b{number}" for number in range(300)]
    run_id = submit(cluster, block("waiting", {name: {} for name in branches}))
    wait_until(lambda: executions(cluster).total() == len(branches), PATIENCE, lambda: logs(cluster))
    # A row that is not deleted yet would be sent again, when no worker is there any more.
    wait_until(lambda: fetch(cluster, "SELECT count(*) FROM outbox")[0][0] == 0, PATIENCE, lambda: logs(cluster))

    recovery.injected()
    orchestrator.kill()
    release(cluster)
    wait_until(lambda: wire.depth(cluster, "orchestrator.results") >= len(branches), PATIENCE, lambda: logs(cluster))
    recovery.ended()
    cluster.start_orchestrator()
    ready = time.monotonic()

    ended = end_of(cluster, run_id)
    recovery.note(("orchestrator ready", ready), (f"all {len(branches)} results", time.monotonic()))
    assert ended.statuses() == {"block": "COMPLETED"} | dict.fromkeys(branches, "COMPLETED")
    assert executions(cluster) == dict.fromkeys(branches, 1)
    assert worker.stop() == 0
    assert_quiet(cluster, "waiting")


@pytest.mark.slow
@pytest.mark.parametrize("declared", [True, False], ids=["a worker was there once", "never a worker"])
def test_five_thousand_tasks_wait_for_their_first_worker(cluster: Cluster, recovery: Recovery, declared: bool) -> None:
    cluster.start_orchestrator()
    if declared:
        wire.declare_agent(cluster, "mortal")
    branches = [f"b{number}" for number in range(MANY)]
    run_id = submit(cluster, block("mortal", {name: {} for name in branches}))
    waiting = "SELECT count(*) FROM outbox WHERE type = 'AgentTask' AND returned_at IS NOT NULL"
    wait_until(lambda: step_count(cluster, "QUEUED") == MANY, PATIENCE, lambda: logs(cluster))
    if declared:
        wait_until(lambda: wire.depth(cluster, "agent.mortal") == MANY, PATIENCE, lambda: logs(cluster))
    else:
        wait_until(lambda: fetch(cluster, waiting)[0][0] == MANY, PATIENCE, lambda: logs(cluster))

    recovery.injected()
    worker = start_worker(cluster, "--concurrency", "100")
    ready = time.monotonic()
    ended = end_of(cluster, run_id, seconds=120)
    recovery.note(("worker ready", ready), (f"all {MANY} results", time.monotonic()))
    assert set(ended.statuses().values()) == {"COMPLETED"}
    assert len(ended.steps) == MANY + 1
    assert executions(cluster) == dict.fromkeys(branches, 1)
    assert worker.stop() == 0
    assert_quiet(cluster, "mortal")


def test_of_one_result_that_two_replicas_get_at_the_same_instant_one_counts(cluster: Cluster) -> None:
    record_history(cluster.database_url)
    replicas = [cluster.start_orchestrator() for _ in range(2)]
    wire.declare_agent(cluster, "by-hand")
    cluster.start_worker()
    names = [f"b{number}" for number in range(50)]
    workflow = block("by-hand", {name: {} for name in names}, next_step="after")
    workflow["steps"]["after"] = {"agent_name": "echo", "input_mapping": {"all": "${block.output}"}}
    run_id = submit(cluster, workflow)
    wait_until(lambda: step_count(cluster, "QUEUED") == len(names), PATIENCE, lambda: logs(cluster))
    tasks = fetch(cluster, "SELECT step_id, task_id::text FROM step_executions WHERE agent_name = 'by-hand'")
    twice = [wire.result(run_id, task, name) for name, task in tasks for _ in range(2)]

    for replica in replicas:
        replica.process.send_signal(signal.SIGSTOP)
    wire.publish(cluster, wire.RESULTS, "AgentResult", twice)  # RabbitMQ gives them to the two by turns
    wait_until(lambda: wire.depth(cluster, "orchestrator.results") == 0, PATIENCE, lambda: "not delivered")
    for replica in replicas:
        replica.process.send_signal(signal.SIGCONT)

    with wire.channel(cluster) as channel:
        channel.queue_purge("agent.by-hand")
    output = {"all": {name: name for name in names}}
    steps = dict.fromkeys(["block", *names, "after"], "COMPLETED")
    check(cluster, {run_id: Expected("COMPLETED", output, steps)}, agents=("by-hand", "echo"))
    changes = fetch(cluster, "SELECT step_id FROM test_history WHERE after = 'COMPLETED' AND before <> 'COMPLETED'")
    assert sorted(row["step_id"] or "" for row in changes) == sorted(["", "block", "after", *names])
