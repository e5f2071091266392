"""`max_parallelism` on the real thing: two orchestrators, three workers, RabbitMQ and Postgres."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.cluster import Cluster
from tests.acceptance.journal import occupancy, read_journal

BRANCHES = 200


def napping_workflow(branches: int, limit: int) -> dict[str, Any]:
    naps = random.Random(branches)
    steps: dict[str, Any] = {
        "block": {"type": "parallel", "parallel_steps": [f"b{n}" for n in range(branches)], "max_parallelism": limit}
    }
    for n in range(branches):
        steps[f"b{n}"] = {
            "agent_name": "nap",
            "input_mapping": {"n": n, "seconds": round(naps.uniform(0.02, 0.08), 4)},
        }
    return {"name": "napping", "start_step": "block", "steps": steps}


def run_in(cluster: Cluster, workflow: dict[str, Any], directory: Path) -> dict[str, Any]:
    file = directory / "workflow.json"
    file.write_text(json.dumps(workflow))
    done = cluster.forkjoin("submit", str(file), "--wait", "--json")
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("limit", [7, 1, 199, 200, 201])
def test_a_block_runs_as_many_branches_at_once_as_its_limit_allows_and_never_more(
    cluster: Cluster, tmp_path: Path, limit: int
) -> None:
    for _ in range(2):
        cluster.start_orchestrator()
    for _ in range(3):
        cluster.start_worker("--concurrency", "100")

    result = run_in(cluster, napping_workflow(BRANCHES, limit), tmp_path)

    executions = read_journal(cluster.journal)
    seen = occupancy(executions)
    print(f"limit {limit}: at most {seen.highest} at once, {seen.mean_while_more_remain:.2f} on average")
    assert len(executions) == BRANCHES
    assert list(result["output"]) == [f"b{n}" for n in range(BRANCHES)]
    assert seen.highest <= limit
    if limit == 7:
        assert seen.highest == 7
