"""forkjoin as people run it: its own commands, with their defaults."""

import asyncio
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from messaging.port import Consumer, OutgoingMessage, PublishOutcome, Queue, QueueKind
from messaging.rabbitmq import RabbitmqBroker
from messaging.topology import RUNS_KEY, SUBMIT_EXCHANGE
from tests.acceptance.cluster import Cluster
from tests.benchmarks.history import store_finished_runs
from tests.benchmarks.loads import Group, Load
from tests.benchmarks.measurement import Role, refills
from tests.benchmarks.servers import Servers
from tests.benchmarks.systems.port import Outcome, WrongResults, check

WORKERS = 2
CONCURRENCY = 100
_PREFETCH = 1000
_REGISTRY = "tests.benchmarks.agents:agents"


class Forkjoin:
    """One orchestrator and two workers; the client is in this process.

    Args:
        servers: The broker and the database server.
        stored_runs: So many finished runs are in its tables from the start.
    """

    def __init__(self, servers: Servers, *, stored_runs: int = 0) -> None:
        self._servers = servers
        self._stored_runs = stored_runs
        self._cluster: Cluster | None = None
        self._broker: RabbitmqBroker | None = None
        self._consumer: Consumer | None = None
        self._replies = Queue(f"bench.replies.{uuid.uuid4().hex[:8]}", QueueKind.EXCLUSIVE)

    @property
    def name(self) -> str:
        """What it is called, with the runs that it has stored."""
        return f"forkjoin, {self._stored_runs:,} runs stored" if self._stored_runs else "forkjoin"

    @property
    def settings(self) -> str:
        """How it is set up."""
        stored = f"; {self._stored_runs:,} finished runs in its tables" if self._stored_runs else ""
        return (
            f"`forkjoin serve` once, {WORKERS} `forkjoin-worker --concurrency {CONCURRENCY}`, else defaults; every "
            f"result in Postgres, quorum queues, persistent, publisher confirms, tasks acked late{stored}"
        )

    @property
    def database_url(self) -> str:
        """Its own database."""
        assert self._cluster is not None, f"{self.name} is not started"
        return self._cluster.database_url

    def takes(self, load: Load) -> bool:
        """Whether it is any load, or with runs stored one of those that show what storing them costs."""
        return not self._stored_runs or load.group is Group.RUNS or (load.group is Group.BLOCK and load.branches > 100)

    def processes(self) -> Mapping[Role, Sequence[int]]:
        """Return the processes of orchestrator and workers."""
        if self._cluster is None:
            return {}
        orchestrator, *workers = (service.process.pid for service in self._cluster.services)
        return {Role.ORCHESTRATOR: [orchestrator], Role.WORKERS: workers}

    async def start(self) -> None:
        """Start the commands on a fresh vhost and a fresh database."""
        directory = Path(tempfile.mkdtemp(prefix="forkjoin-bench-"))
        self._cluster = Cluster(self._servers.rabbitmq.new_vhost(), self._servers.postgres.new_database(), directory)
        await asyncio.to_thread(self._start_cluster, self._cluster)
        self._broker = RabbitmqBroker(self._cluster.amqp_url, name="bench")
        await self._broker.connect()
        self._consumer = await self._broker.consume(self._replies, prefetch=_PREFETCH)

    async def run(self, load: Load) -> Outcome:
        """Submit the runs and wait for their results, on one queue for all replies."""
        workflow = _workflow(load)
        if load.one_by_one:
            times = [await self._exchange([_request(workflow, load, self._replies)], load) for _ in range(load.runs)]
            return Outcome(sum(wall for wall, _ in times), tuple(wall for wall, _ in times))
        wall, outputs = await self._exchange([_request(workflow, load, self._replies) for _ in range(load.runs)], load)
        return Outcome(wall, tuple(_refills(outputs, load)) if load.naps else ())

    async def stop(self) -> None:
        """Kill the commands, and delete the vhost and the database."""
        if self._cluster is None:
            return
        if self._broker is not None:
            await self._broker.close()
        self._cluster.stop()
        self._servers.rabbitmq.drop_vhost(self._cluster.amqp_url)
        self._servers.postgres.drop_database(self._cluster.database_url)
        shutil.rmtree(self._cluster.directory, ignore_errors=True)
        self._cluster = self._broker = self._consumer = None

    def _start_cluster(self, cluster: Cluster) -> None:
        cluster.migrate()
        if self._stored_runs:
            store_finished_runs(self._servers.postgres, cluster.database_url, self._stored_runs)
        cluster.start_orchestrator()
        for _ in range(WORKERS):
            cluster.start_worker("--concurrency", str(CONCURRENCY), registry=_REGISTRY)

    async def _exchange(self, requests: list[OutgoingMessage], load: Load) -> tuple[float, list[dict[str, Any]]]:
        assert self._broker is not None
        assert self._consumer is not None
        bodies: list[bytes] = []
        started = time.perf_counter()
        outcomes = await self._broker.publish(requests, timeout=load.seconds)
        while len(bodies) < len(requests):
            deliveries = await self._consumer.receive(_PREFETCH)
            bodies += [delivery.body for delivery in deliveries]
            await self._consumer.ack(deliveries)
        elapsed = time.perf_counter() - started
        if set(outcomes) != {PublishOutcome.CONFIRMED}:
            raise WrongResults(f"run requests were not confirmed: {sorted(set(outcomes))}")
        return elapsed, [_output(body, load) for body in bodies]


def _workflow(load: Load) -> dict[str, Any]:
    if load.group is Group.LOOP:
        config = {"collection": "${workflow.input.items}", "loop_body": ["one"], "execution_mode": "parallel"}
        loop = {"type": "loop", "loop_config": {**config, "max_iterations": load.branches}}
        one = {"agent_name": "echo", "input_mapping": {"n": "${loop.item.n}", "text": "${loop.item.text}"}}
        return {"name": load.name, "start_step": "loop", "steps": {"loop": loop, "one": one}}
    names = [f"b{branch}" for branch in range(load.branches)]
    block: dict[str, Any] = {"type": "parallel", "parallel_steps": names}
    if load.limit is not None:
        block["max_parallelism"] = load.limit
    agent = "nap" if load.naps else "echo"
    branches = {name: {"agent_name": agent, "input_mapping": load.given(branch)} for branch, name in enumerate(names)}
    return {"name": load.name, "start_step": "block", "steps": {"block": block, **branches}}


def _request(workflow: dict[str, Any], load: Load, replies: Queue) -> OutgoingMessage:
    body = json.dumps({"version": 1, "workflow": workflow, "input": {"items": load.items()}}).encode()
    return OutgoingMessage(SUBMIT_EXCHANGE, RUNS_KEY, "RunRequest", uuid.uuid4().hex, body, reply_to=replies.name)


def _output(body: bytes, load: Load) -> dict[str, Any]:
    result = json.loads(body)
    if result["status"] != "COMPLETED":
        raise WrongResults(f"run {result.get('run_id')} is {result['status']}: {result.get('error')}")
    output: dict[str, Any] = result["output"]
    looped = load.group is Group.LOOP
    check([one["output"] for one in output["iterations"]] if looped else list(output.values()), load)
    return output


def _refills(outputs: list[dict[str, Any]], load: Load) -> list[float]:
    assert load.limit is not None, f"{load.name} times refills, so it needs a limit"
    return [
        seconds
        for output in outputs
        for seconds in refills([(branch["start"], branch["end"]) for branch in output.values()], load.limit)
    ]
