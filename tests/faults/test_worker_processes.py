"""FAULTS rows 1, 2, 4 and 6: workers that die, hang or are told to hurry while they work."""

import signal

from tests.acceptance.cluster import PATIENCE, Cluster, wait_until
from tests.faults.scene import (
    assert_quiet,
    block,
    end_of,
    executions,
    journal,
    release,
    start_worker,
    submit,
)

BRANCHES = ["a", "b", "c"]
MUTE = "600"  # seconds: the broker gives the tasks to others, long before the orchestrator misses them
ALL_COMPLETED = {"block": "COMPLETED"} | dict.fromkeys(BRANCHES, "COMPLETED")


def test_a_worker_that_is_killed_in_mid_task_is_replaced_by_another(cluster: Cluster) -> None:
    cluster.start_orchestrator(FORKJOIN_SILENT_AFTER=MUTE)
    first = start_worker(cluster)
    run_id = submit(cluster, block("waiting", {name: {} for name in BRANCHES}, max_parallelism=2))
    wait_until(lambda: executions(cluster) == {"a": 1, "b": 1}, PATIENCE, lambda: str(journal(cluster)))
    second = start_worker(cluster, FORKJOIN_WORKER_ID="second")
    first.kill()
    wait_until(lambda: executions(cluster) == {"a": 2, "b": 2}, PATIENCE, lambda: "nobody took the tasks over")
    release(cluster)

    ended = end_of(cluster, run_id)
    assert ended.statuses() == ALL_COMPLETED
    assert {ended.steps[name]["worker_id"] for name in BRANCHES} == {"second"}
    assert executions(cluster) == {"a": 2, "b": 2, "c": 1}
    assert second.stop() == 0
    assert_quiet(cluster, "waiting")


def test_a_worker_that_dies_between_confirm_and_ack_causes_a_repetition_without_effect(cluster: Cluster) -> None:
    cluster.start_orchestrator(FORKJOIN_SILENT_AFTER=MUTE)
    first = cluster.launch(
        "agent_worker", "tests.faults.dies_before_ack:agents", "--concurrency", "1", FORKJOIN_WORKER_ID="first"
    )
    run_id = submit(cluster, block("mortal", {name: {} for name in BRANCHES}))
    assert first.end() == -signal.SIGKILL
    second = start_worker(cluster)

    wait_until(lambda: executions(cluster).total() == len(BRANCHES) + 1, PATIENCE, lambda: "the task was not repeated")
    assert second.stop() == 0
    ended = end_of(cluster, run_id)
    assert ended.statuses() == ALL_COMPLETED
    (repeated,) = [name for name in BRANCHES if executions(cluster)[name] == 2]
    assert ended.steps[repeated]["worker_id"] == "first", "the first result counts, the second is a duplicate"
    assert_quiet(cluster, "mortal")


def test_an_agent_that_hangs_is_ended_by_its_timeout_and_its_slot_is_freed(cluster: Cluster) -> None:
    cluster.start_orchestrator()
    worker = start_worker(cluster, "--concurrency", "1")
    workflow = block("mortal", {name: {} for name in BRANCHES}, max_parallelism=1)
    workflow["steps"]["a"] |= {"agent_name": "hanging", "timeout_seconds": 0.5}

    ended = end_of(cluster, submit(cluster, workflow))
    assert ended.statuses() == {"block": "FAILED", "a": "FAILED", "b": "COMPLETED", "c": "COMPLETED"}
    assert ended.error("a")["code"] == "timeout"
    assert executions(cluster) == dict.fromkeys(BRANCHES, 1)
    assert worker.stop() == 0, "its thread still hangs, and does not keep it alive"
    assert_quiet(cluster, "mortal", "hanging")


def test_a_second_sigterm_ends_a_worker_at_once_and_its_work_goes_on_elsewhere(cluster: Cluster) -> None:
    cluster.start_orchestrator(FORKJOIN_SILENT_AFTER=MUTE)
    first = start_worker(cluster)
    run_id = submit(cluster, block("waiting", {name: {} for name in BRANCHES}))
    wait_until(lambda: executions(cluster).total() == 3, PATIENCE, lambda: "the branches did not start")
    second = start_worker(cluster, FORKJOIN_WORKER_ID="second")
    first.process.send_signal(signal.SIGTERM)
    first.wait_for("worker_draining")
    assert first.stop() == 0, "it does not wait for those that run, as draining would"
    wait_until(lambda: executions(cluster).total() == 6, PATIENCE, lambda: "the tasks did not go back")
    release(cluster)

    ended = end_of(cluster, run_id)
    assert ended.statuses() == ALL_COMPLETED
    assert {ended.steps[name]["worker_id"] for name in BRANCHES} == {"second"}
    assert second.stop() == 0
    assert_quiet(cluster, "waiting")
