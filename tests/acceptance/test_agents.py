"""`forkjoin agents list` as an operator types it: queues as RabbitMQ has them, attempts as Postgres has them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.alone import block_of, echo, nap
from tests.acceptance.cluster import PATIENCE, Cluster, wait_until
from tests.services.processes import free_ports

NOWHERE = "amqp://guest:guest@127.0.0.1:{port}/"


def submit(cluster: Cluster, directory: Path, document: dict[str, Any], *options: str) -> None:
    path = directory / "workflow.json"
    path.write_text(json.dumps(document))
    done = cluster.forkjoin("submit", str(path), *options)
    assert done.returncode == 0, done.stderr


def listed(cluster: Cluster, **environment: str) -> dict[str, dict[str, Any]]:
    """Return the agents by their names."""
    done = cluster.forkjoin("agents", "list", "--json", **environment)
    assert done.returncode == 0, done.stderr
    return {agent.pop("agent_name"): agent for agent in json.loads(done.stdout)}


def rows(shown: str) -> list[list[str]]:
    return [re.split(" {2,}", line.strip()) for line in shown.splitlines()]


def until(cluster: Cluster, agent_name: str, **expected: int) -> dict[str, dict[str, Any]]:
    """Look until this is so of an agent, and return them all."""
    found: dict[str, dict[str, Any]] = {}

    def reached() -> bool:
        found.clear()
        found.update(listed(cluster))
        return found.get(agent_name, {}).items() >= expected.items()

    wait_until(reached, PATIENCE, lambda: f"{found}, not {agent_name}: {expected}")
    return found


def test_agents_with_their_queues_their_attempts_and_their_workers(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_orchestrator(FORKJOIN_UNKNOWN_AGENT_AFTER="600")
    cluster.start_worker("--concurrency", "1")
    submit(cluster, tmp_path, block_of(echo(), echo()), "--wait")
    submit(cluster, tmp_path, block_of({"agent_name": "nobody"}, *[nap() for _ in range(5)], max_parallelism=4))

    found = until(cluster, "nap", running=1, queued=2, pending=2, tasks_ready=2)

    [worker] = found["nap"].pop("workers")
    assert worker == {"worker_id": worker["worker_id"], "running": 1}
    assert found == {
        "echo": {
            "queue": "agent.echo", "queue_exists": True, "tasks_ready": 0, "consumers": 1,
            "limit": None, "waiting": 0, "queued": 0, "running": 0, "pending": 0, "workers": [],
        },
        "nap": {
            "queue": "agent.nap", "queue_exists": True, "tasks_ready": 2, "consumers": 1,
            "limit": None, "waiting": 0, "queued": 2, "running": 1, "pending": 2,
        },
        "nobody": {
            "queue": "agent.nobody", "queue_exists": False, "tasks_ready": None, "consumers": None,
            "limit": None, "waiting": 0, "queued": 1, "running": 0, "pending": 0, "workers": [],
        },
    }  # fmt: skip
    tries = iter(lambda: cluster.forkjoin("agents", "list"), None)  # a busy broker may not answer within the time
    shown = next(done for done in tries if "queues are" not in done.stderr)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert rows(shown.stdout) == [
        ["agent", "queue", "ready", "consumers", "QUEUED", "RUNNING", "PENDING", "workers"],
        ["echo", "agent.echo", "0", "1", "0", "0", "0"],
        ["nap", "agent.nap", "2", "1", "2", "1", "2", f"{worker['worker_id']} (1)"],
        ["nobody", "no queue", "1", "0", "0"],
    ]


def test_without_a_broker_the_agents_are_listed_and_their_queues_are_not(cluster: Cluster, tmp_path: Path) -> None:
    orchestrator = cluster.start_orchestrator()
    submit(cluster, tmp_path, block_of(nap(), nap()))
    until(cluster, "nap", queued=2)
    assert orchestrator.stop() == 0
    [port] = free_ports(1)
    nowhere = NOWHERE.format(port=port)

    done = cluster.forkjoin("agents", "list", FORKJOIN_AMQP_URL=nowhere)

    assert done.returncode == 0
    assert rows(done.stdout) == [["agent", "QUEUED", "RUNNING", "PENDING", "workers"], ["nap", "2", "0", "0"]]
    assert done.stderr.splitlines()[-1] == (
        "forkjoin: queues are not shown: RabbitMQ at FORKJOIN_AMQP_URL has not answered within 3 seconds"
    )
    assert listed(cluster, FORKJOIN_AMQP_URL=nowhere)["nap"] == {
        "queue": "agent.nap", "queue_exists": None, "tasks_ready": None, "consumers": None,
        "limit": None, "waiting": 0, "queued": 2, "running": 0, "pending": 0, "workers": [],
    }  # fmt: skip


@pytest.mark.parametrize(("options", "written"), [((), ""), (("--json",), "[]\n")])
def test_without_agents_it_says_so_on_stderr(cluster: Cluster, options: tuple[str, ...], written: str) -> None:
    done = cluster.forkjoin("agents", "list", *options)
    assert (done.returncode, done.stdout) == (0, written)
    assert done.stderr == "no agents: no attempt is open, and no run of the last 24 hours had any\n"
