"""What fault tests do with a cluster: submit, disturb, and check the oracles of FAULTS.md."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pika
import pika.exceptions

from tests.acceptance.cluster import PATIENCE, Cluster, Service, wait_until

REGISTRY = "tests.faults.deadly_agents:agents"
FINAL = {"COMPLETED", "FAILED", "CANCELLED"}


@dataclass(frozen=True)
class Ended:
    """A run that has ended: its status, and its step rows by id."""

    status: str
    steps: Mapping[str, Mapping[str, Any]]

    def statuses(self) -> dict[str, str]:
        return {step_id: row["status"] for step_id, row in self.steps.items()}

    def error(self, step_id: str) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.steps[step_id]["error"])
        return error


def block(agent: str, inputs: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a workflow with one block: a branch for each of *inputs*."""
    steps: dict[str, Any] = {"block": {"type": "parallel", "parallel_steps": list(inputs)} | fields}
    steps |= {name: {"agent_name": agent, "input_mapping": given} for name, given in inputs.items()}
    return {"name": "faults", "start_step": "block", "steps": steps}


def submit(cluster: Cluster, workflow: dict[str, Any]) -> str:
    """Submit a run and return its id."""
    file = cluster.directory / "workflow.json"
    file.write_text(json.dumps(workflow))
    done = cluster.forkjoin("submit", str(file))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def end_of(cluster: Cluster, run_id: str, *, seconds: float = PATIENCE) -> Ended:
    """Wait until the run has ended (O1), and return how."""
    found = Ended("", {})

    def ended() -> bool:
        nonlocal found
        found = asyncio.run(_load(cluster, run_id))
        return found.status in FINAL

    wait_until(ended, seconds, lambda: f"run {run_id} is {found.status}: {found.statuses()}; {logs(cluster)}")
    return found


def executions(cluster: Cluster) -> Counter[str]:
    """Return how often each step was begun, ended or not."""
    return Counter(line["step"] for line in journal(cluster) if line["what"] == "start")


def journal(cluster: Cluster) -> list[dict[str, Any]]:
    """Return what the agents noted so far."""
    path = cluster.journal
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def release(cluster: Cluster) -> None:
    """Let all waiting agents go."""
    cluster.journal.with_name("release").touch()


def start_worker(cluster: Cluster, *options: str, **environment: str) -> Service:
    """Start a worker with the deadly agents, and wait until it is ready."""
    service = cluster.launch("agent_worker", REGISTRY, *options, **environment)
    service.wait_for("worker_ready")
    return service


def logged(services: Sequence[Service], action: str) -> list[dict[str, Any]]:
    """Return all lines of *services* with this action."""
    return [line for service in services for line in service.actions() if line.get("action") == action]


def logs(cluster: Cluster) -> str:
    """Return the last lines of all services, for a failing test's message."""
    return "\n".join(line for service in cluster.services for line in service.log.read_text().splitlines()[-5:])


def assert_quiet(cluster: Cluster, *agents: str) -> None:
    """Check that nothing is left (O5); all workers must have ended, so what they held is ready again."""
    left: dict[str, int] = {}

    def nothing() -> bool:
        nonlocal left
        left = {**_ready(cluster, [f"agent.{agent}" for agent in agents]), **asyncio.run(_rows(cluster))}
        return not any(left.values())

    wait_until(nothing, PATIENCE, lambda: f"left over: {left}")


@contextmanager
def supervised(cluster: Cluster, count: int, *options: str, **environment: str) -> Iterator[list[Service]]:
    """Keep *count* workers alive as a supervisor does: one that ends is started again at once."""
    started: list[Service] = []
    over = threading.Event()

    def launch() -> Service:
        started.append(cluster.launch("agent_worker", REGISTRY, *options, **environment))
        return started[-1]

    def watch() -> None:
        alive = [launch() for _ in range(count)]
        while not over.wait(0.02):
            alive = [service if service.process.poll() is None else launch() for service in alive]
        for service in alive:
            service.kill()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield started
    finally:
        over.set()
        thread.join()


async def _load(cluster: Cluster, run_id: str) -> Ended:
    connection = await asyncpg.connect(cluster.database_url)
    try:
        status = await connection.fetchval("SELECT status FROM runs WHERE id::text = $1", run_id)
        rows = await connection.fetch("SELECT * FROM step_executions WHERE run_id::text = $1", run_id)
    finally:
        await connection.close()
    return Ended(status or "", {row["step_id"]: dict(row) for row in rows})


async def _rows(cluster: Cluster) -> dict[str, int]:
    connection = await asyncpg.connect(cluster.database_url)
    try:
        return {table: await connection.fetchval(f"SELECT count(*) FROM {table}") for table in ("outbox", "gates")}
    finally:
        await connection.close()


def _ready(cluster: Cluster, queues: Sequence[str]) -> dict[str, int]:
    with pika.BlockingConnection(pika.URLParameters(cluster.amqp_url)) as connection:
        channel = connection.channel()
        names = [*queues, "orchestrator.results", "orchestrator.runs", "orchestrator.dead-letters"]
        return {name: channel.queue_declare(name, passive=True).method.message_count for name in names}
