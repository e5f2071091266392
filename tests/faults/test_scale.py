"""FAULTS row 74: workflows of any size complete within bounded memory; times and memory are printed."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.cluster import Cluster, Service
from tests.faults.oracles import check_complete, fetch
from tests.faults.recovery import Recovery
from tests.faults.scene import assert_quiet, submit

Document = dict[str, Any]
COUNTS = "SELECT count(*) AS all, count(*) FILTER (WHERE status = 'COMPLETED') AS done FROM step_executions"
SAMPLE = {"agent_name": "echo", "input_mapping": {"a": "${workflow.input}"}}


def one_block(branches: int, limit: int | None = None) -> Document:
    names = [f"b{number}" for number in range(branches)]
    block = {"type": "parallel", "parallel_steps": names} | ({"max_parallelism": limit} if limit else {})
    return {"name": "wide", "start_step": "block", "steps": {"block": block, **dict.fromkeys(names, SAMPLE)}}


def chain(length: int) -> Document:
    steps = {f"s{number}": SAMPLE | {"next_step": f"s{number + 1}"} for number in range(length - 1)}
    return {"name": "long", "start_step": "s0", "steps": {**steps, f"s{length - 1}": SAMPLE}}


def many_items(count: int, limit: int | None = None, second: bool = False) -> Document:
    """Return a loop over so many numbers, perhaps with a second step that asks for the item too."""
    body = ["x", "y"] if second else ["x"]
    config = {"collection": list(range(count)), "loop_body": body, "execution_mode": "parallel"}
    loop = {"type": "loop", "loop_config": config | ({"max_parallelism": limit} if limit else {})}
    step = {"agent_name": "echo", "input_mapping": {"a": "${loop.item}"}}
    return {"name": "many", "start_step": "loop", "steps": {"loop": loop, **dict.fromkeys(body, step)}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("document", "steps", "megabytes"),
    [
        pytest.param(one_block(1), 2, 150, id="1 branch"),
        pytest.param(chain(1_000), 1_000, 150, id="a chain of 1000 steps"),
        pytest.param(one_block(10_000), 10_001, 200, id="10000 branches"),
        pytest.param(one_block(10_000, 100), 10_001, 200, id="10000 branches in turn"),
        pytest.param(one_block(100_000), 100_001, 600, id="100000 branches"),
        pytest.param(many_items(10_000, 100, second=True), 20_001, 200, id="10000 items in turn, two steps each"),
        pytest.param(many_items(100_000), 100_001, 300, id="100000 items"),
    ],
)
def test_a_workflow_completes_within_bounded_memory_whatever_its_size(
    cluster: Cluster, recovery: Recovery, document: Document, steps: int, megabytes: int
) -> None:
    services = [cluster.start_orchestrator(), cluster.start_worker("--concurrency", "100")]
    run_id = submit(cluster, document)
    recovery.injected()
    check_complete(cluster, [run_id], seconds=600)
    took = time.monotonic()

    (run,) = fetch(cluster, "SELECT status, output::text FROM runs")
    (count,) = fetch(cluster, COUNTS)
    assert (run["status"], count["all"], count["done"]) == ("COMPLETED", steps, steps)
    if "loop" in document["steps"]:
        iterations = json.loads(run["output"])["iterations"]
        assert [one["output"]["a"] for one in iterations] == document["steps"]["loop"]["loop_config"]["collection"]
    if "block" in document["steps"]:
        assert list(json.loads(run["output"])) == document["steps"]["block"]["parallel_steps"]
    peaks = [peak_megabytes(service) for service in services]
    recovery.note((f"orchestrator {peaks[0]} MB, worker {peaks[1]} MB at most; completed", took))
    assert max(peaks) < megabytes
    assert [service.stop() for service in services] == [0, 0]
    assert_quiet(cluster, "echo")


def peak_megabytes(service: Service) -> int:
    """Return the largest resident memory that a process has had (Linux)."""
    lines = Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024
