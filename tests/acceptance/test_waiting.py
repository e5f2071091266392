"""`forkjoin runs show` says of every unfinished step what it waits for."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from orchestrator.storage.database import Database
from tests.acceptance.alone import block_of, nap
from tests.acceptance.cluster import PATIENCE, Cluster, wait_until
from tests.integration.by_hand import driver_without_relay, requested
from tests.services.processes import free_ports

CLOCK = r"\d\d:\d\d:\d\d"


def submitted(cluster: Cluster, directory: Path, document: dict[str, Any]) -> str:
    path = directory / "workflow.json"
    path.write_text(json.dumps(document))
    done = cluster.forkjoin("submit", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def waiting(cluster: Cluster, run_id: str, **environment: str) -> dict[str, dict[str, Any]]:
    """Return what the steps wait for, by step id."""
    shown = cluster.forkjoin("runs", "show", run_id, "--json", **environment)
    assert shown.returncode == 0, shown.stderr
    return {step["step_id"]: step["waiting_for"] for step in json.loads(shown.stdout)["steps"]}


def lines(cluster: Cluster, run_id: str, **environment: str) -> dict[str, str]:
    """Return the words after "waits for", by step id."""
    shown = cluster.forkjoin("runs", "show", run_id, **environment)
    assert shown.returncode == 0, shown.stderr
    return dict(re.findall(r"(b\d)  .*  waits for (.*?)\s*$", shown.stdout, flags=re.MULTILINE))


def until_kinds(cluster: Cluster, run_id: str, **kinds: str) -> None:
    """Look until each of these steps waits for something of that kind."""
    found: dict[str, Any] = {}

    def reached() -> bool:
        found.update(waiting(cluster, run_id))
        return {step_id: (found.get(step_id) or {}).get("kind") for step_id in kinds} == kinds

    wait_until(reached, PATIENCE, lambda: f"{found}, not {kinds}")


def test_branches_of_a_busy_worker(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_orchestrator()
    cluster.start_worker("--concurrency", "1")
    run_id = submitted(cluster, tmp_path, block_of(nap(60), nap(60), nap(60), max_parallelism=2))
    until_kinds(cluster, run_id, block="branches", b0="attempt", b1="worker", b2="slot")

    found, said = waiting(cluster, run_id), lines(cluster, run_id)

    assert found["block"] == {"kind": "branches", "open": 3, "total": 3}
    assert found["b0"]["attempt"] == 1
    assert said["b0"] == f"attempt 1 on worker {found['b0']['worker_id']}, " + said["b0"].partition(", ")[2]
    assert re.fullmatch(rf"attempt 1 on worker \S+, since {CLOCK} \(last sign of life {CLOCK}\)", said["b0"])
    assert (found["b1"]["consumers"], found["b1"]["tasks_ready"]) == (1, 1)
    assert said["b1"] == "a worker: 1 consumes agent.nap, 1 task waits"
    assert found["b2"] == {"kind": "slot", "taken": 2, "limit": 2}
    assert said["b2"] == "a slot of its gate (2 of 2 taken)"


def test_tasks_without_a_worker(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_orchestrator()
    assert cluster.start_worker().stop() == 0
    document = block_of(nap(60), nap(60))
    document["steps"]["b1"]["agent_name"] = "nobody"
    run_id = submitted(cluster, tmp_path, document)
    until_kinds(cluster, run_id, b0="worker", b1="queue")
    wait_until(lambda: waiting(cluster, run_id)["b1"]["since"] is not None, PATIENCE, lambda: "never returned")

    found, said = waiting(cluster, run_id), lines(cluster, run_id)

    assert (found["b0"]["consumers"], found["b0"]["tasks_ready"]) == (0, 1)
    assert said["b0"] == "a worker: none consumes agent.nap now, 1 task waits"
    assert re.fullmatch(
        rf'a worker: none has ever declared agent "nobody" \(since {CLOCK}; given up at {CLOCK}\)', said["b1"]
    )


def test_a_task_that_was_never_sent_and_a_broker_that_does_not_answer(cluster: Cluster) -> None:
    run_id = asyncio.run(committed(cluster.database_url, block_of(nap(60))))
    assert waiting(cluster, run_id)["b0"]["kind"] == "sending"
    assert re.fullmatch(
        rf"its task to be sent, since {CLOCK} \(is the broker out of reach\?\)", lines(cluster, run_id)["b0"]
    )

    asyncio.run(forget_messages(cluster.database_url))
    [port] = free_ports(1)
    nowhere = f"amqp://guest:guest@127.0.0.1:{port}/"

    assert (
        lines(cluster, run_id, FORKJOIN_AMQP_URL=nowhere)["b0"] == "a worker for agent.nap (the broker was not asked)"
    )
    assert waiting(cluster, run_id, FORKJOIN_AMQP_URL=nowhere)["b0"]["consumers"] is None


async def committed(database_url: str, document: dict[str, Any]) -> str:
    """Commit a run as an orchestrator does that dies before it can publish."""
    database = Database(database_url)
    event = await requested(database, document)
    await driver_without_relay(database).drive([event])
    await database.close()
    return str(event.run_id)


async def forget_messages(database_url: str) -> None:
    database = Database(database_url)
    async with database.connection() as connection:
        await connection.execute("DELETE FROM outbox")
    await database.close()
