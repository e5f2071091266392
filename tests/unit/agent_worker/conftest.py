"""A task to run, and a worker over the in-memory broker that tests can watch and disturb."""

import asyncio
import json
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent_worker.options import WorkerOptions
from agent_worker.registry import AgentRegistry
from agent_worker.tracing import AttemptTracing
from agent_worker.worker import Worker
from messaging.memory import MemoryBroker, MemoryServer
from messaging.port import Consumer, OutgoingMessage, PublishOutcome
from messaging.topology import (
    DEAD_LETTERS_QUEUE,
    EXCHANGES,
    QUEUES,
    RESULTS_QUEUE,
    TASKS_EXCHANGE,
    agent_queue,
)
from schemas.codec import decode, encode
from schemas.messages import AgentResult, AgentTask


def make_task(agent_name: str = "echo", input: Any = None, **fields: Any) -> AgentTask:
    given = {"task_id": uuid.uuid4(), "run_id": uuid.uuid4(), "step_id": "step-a", "attempt": 1} | fields
    return AgentTask(agent_name=agent_name, input=input, **given)


class ScriptedBroker(MemoryBroker):
    """A MemoryBroker whose publishing can be held back, and told what becomes of the next messages."""

    def __init__(self, server: MemoryServer, **options: Any) -> None:
        super().__init__(server, **options)
        self.published: list[OutgoingMessage] = []
        self.batches: list[int] = []
        self.outcomes: deque[PublishOutcome] = deque()  # of the next batches; empty: what really happens
        self.open = asyncio.Event()
        self.open.set()

    async def publish(
        self, messages: Sequence[OutgoingMessage], *, timeout: float | None = None
    ) -> Sequence[PublishOutcome]:
        self.published += messages
        self.batches.append(len(messages))
        await self.open.wait()
        if self.outcomes:
            return [self.outcomes.popleft()] * len(messages)
        return await super().publish(messages)


@dataclass
class Bench:
    """A worker, the broker's other side, and what tests ask of both."""

    server: MemoryServer
    broker: ScriptedBroker  # the worker's
    client: MemoryBroker
    agents: AgentRegistry
    workers: list[Worker] = field(default_factory=list)
    _results: Consumer | None = None
    _received: deque[AgentResult] = field(default_factory=deque)

    def worker(self, tracing: AttemptTracing | None = None, **options: Any) -> Worker:
        """Make a worker that says of no task that it has started, unless *options* say otherwise."""
        defaults = {"worker_id": "worker-1", "report_started_after": 3_600.0}
        worker = Worker(self.broker, self.agents, WorkerOptions(**(defaults | options)), tracing=tracing)
        self.workers.append(worker)
        return worker

    async def start(self, **options: Any) -> Worker:
        worker = self.worker(**options)
        await worker.start()
        return worker

    async def send(
        self, *tasks: AgentTask | bytes, to: str | None = None, earlier_deliveries: int = 0, **headers: str
    ) -> None:
        """Put tasks into the queue of their agent, or of the agent *to*, as if they came there for the first time."""
        counted = {"x-delivery-count": earlier_deliveries} if earlier_deliveries else {}
        messages = []
        for task in tasks:
            body = task if isinstance(task, bytes) else encode(task)
            agent_name = to or (task.agent_name if isinstance(task, AgentTask) else "echo")
            await self.client.declare([], [agent_queue(agent_name)])
            messages.append(
                OutgoingMessage(
                    TASKS_EXCHANGE, agent_name, "AgentTask", str(uuid.uuid4()), body, headers=counted | headers
                )
            )
        outcomes = await self.client.publish(messages)
        assert set(outcomes) == {PublishOutcome.CONFIRMED}

    async def report(self) -> AgentResult:
        """Return the next report that the worker sent."""
        if self._results is None:
            self._results = await self.client.consume(RESULTS_QUEUE, prefetch=0)
        if not self._received:
            async with asyncio.timeout(30):
                deliveries = await self._results.receive(1_000)
            self._received += [decode(AgentResult, delivery.body) for delivery in deliveries]
            await self._results.ack(deliveries)
        return self._received.popleft()

    async def reports_left(self) -> int:
        return len(self._received) + (await self.client.check_queue(RESULTS_QUEUE.name)).ready

    async def waiting(self, agent_name: str = "echo") -> int:
        return (await self.client.check_queue(agent_queue(agent_name).name)).ready

    def unsettled(self, agent_name: str = "echo") -> int:
        return self.server.unsettled(agent_queue(agent_name).name)

    async def dead_letters(self) -> list[Any]:
        consumer = await self.client.consume(DEAD_LETTERS_QUEUE, prefetch=0)
        async with asyncio.timeout(30):
            return list(await consumer.receive(100))

    async def settle_down(self) -> None:
        """Let everything that is ready run; what waits for an event stays."""
        for _ in range(30):
            await asyncio.sleep(0)

    def sent_bodies(self) -> list[Any]:
        return [json.loads(message.body) for message in self.broker.published]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory an answer takes no time, so nobody waits long for one that does not come."""
    monkeypatch.setattr("agent_worker.colleagues.PATIENCE", 0.05)
    monkeypatch.setattr("agent_worker.desk.STAND_BY", 0.02)


@pytest.fixture
def task() -> Callable[..., AgentTask]:
    """Makes AgentTasks: ``task("agent", {"the": "input"}, timeout_seconds=1)``."""
    return make_task


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    server = MemoryServer()
    client = MemoryBroker(server)
    await client.connect()
    await client.declare(EXCHANGES, QUEUES)
    bench = Bench(server, ScriptedBroker(server), client, AgentRegistry())
    yield bench
    bench.broker.open.set()
    closing: list[Awaitable[None]] = [worker.close() for worker in bench.workers]
    await asyncio.gather(*closing)
    await bench.broker.close()
    await client.close()
