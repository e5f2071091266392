"""Queues that somebody purges or deletes on the real broker, while a run is active: the run ends all the same."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import aio_pika
import pytest

from agent_worker import AgentContext
from messaging import topology
from messaging.port import QueueMissing
from tests.conftest import Eventually
from tests.integration.documents import one_block
from tests.integration.replicas import Brokers
from tests.integration.system import System

SILENT_AFTER = 0.5
BRANCHES = 6

Swallow = Callable[[str], Awaitable[None]]


@pytest.fixture
def brokers(amqp_url: str) -> Brokers:
    return Brokers(amqp_url)


@pytest.fixture(params=["purged", "deleted"])
async def swallow(request: pytest.FixtureRequest, amqp_url: str) -> AsyncIterator[Swallow]:
    """Purge or delete a queue, as an operator does in RabbitMQ's management pages."""
    connection = await aio_pika.connect(amqp_url)
    channel = await connection.channel()

    async def purge_or_delete(name: str) -> None:
        if request.param == "purged":
            await (await channel.get_queue(name, ensure=False)).purge()
        else:
            await channel.queue_delete(name)

    yield purge_or_delete
    await connection.close()


class Work:
    """An agent that works when it is told to, and counts how often it was called and how many calls overlapped."""

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()
        self.most_at_once = 0
        self.may_end = asyncio.Event()
        self._running: Counter[str] = Counter()

    async def echo(self, task: Any, context: AgentContext) -> Any:
        self.calls[task["n"]] += 1
        self._running[context.step_id] += 1
        self.most_at_once = max(self.most_at_once, len(+self._running))
        await self.may_end.wait()
        self._running[context.step_id] -= 1
        return task


async def ready(system: System, queue: str) -> int:
    try:
        return (await system.broker.check_queue(queue)).ready
    except QueueMissing:
        return 0


async def check_completed(system: System, run_id: UUID) -> None:
    assert await system.ended(run_id) == "COMPLETED"
    assert (await system.run_row(run_id))["output"] == {f"b{n}": {"n": n} for n in range(BRANCHES)}
    await system.quiet()


async def test_tasks_that_no_worker_had_yet(system: System, swallow: Swallow, eventually: Eventually) -> None:
    work = Work()
    work.may_end.set()
    await (await system.start_worker(work.echo)).close()  # it has declared the queue
    await system.start_replica(silent_after=SILENT_AFTER)
    run_id = await system.submit(one_block(BRANCHES))
    await eventually(lambda: ready_is(system, "agent.echo", BRANCHES))
    await swallow("agent.echo")
    await system.start_worker(work.echo)
    await check_completed(system, run_id)
    assert work.calls == dict.fromkeys(range(BRANCHES), 1)


async def test_tasks_that_waited_behind_those_of_a_busy_worker(
    system: System, swallow: Swallow, eventually: Eventually
) -> None:
    work = Work()
    await system.start_worker(work.echo, concurrency=2, heartbeat_interval=0.2)
    await system.start_replica(silent_after=SILENT_AFTER)
    run_id = await system.submit(one_block(BRANCHES))
    await eventually(lambda: work.calls.total() == 2)
    await eventually(lambda: ready_is(system, "agent.echo", BRANCHES - 2))
    await swallow("agent.echo")
    await eventually(lambda: ready_is(system, "agent.echo", 0))
    # Sent again, and waiting again; a worker that had to consume anew may hold some beyond those that it runs.
    await eventually(lambda: ready_is(system, "agent.echo", BRANCHES - 4, at_least=True))
    work.may_end.set()
    await check_completed(system, run_id)
    assert work.calls == dict.fromkeys(range(BRANCHES), 1), "what the worker had is not run again"


async def test_results_that_waited_for_an_orchestrator(
    system: System, swallow: Swallow, eventually: Eventually
) -> None:
    work = Work()
    await system.start_worker(work.echo, heartbeat_interval=0.2)
    replica = await system.start_replica()
    run_id = await system.submit(one_block(BRANCHES))
    await eventually(lambda: work.calls.total() == BRANCHES)
    for number in range(BRANCHES):
        await system.step_is(run_id, f"b{number}", "RUNNING")
    await system.end(replica, crash=False)
    work.may_end.set()
    await eventually(lambda: ready_is(system, topology.RESULTS_QUEUE.name, BRANCHES, at_least=True))
    await swallow(topology.RESULTS_QUEUE.name)
    await system.start_replica(silent_after=SILENT_AFTER)
    await check_completed(system, run_id)
    assert work.calls == dict.fromkeys(range(BRANCHES), 1), "the worker answers from memory"


async def test_tickets_of_a_gate(system: System, swallow: Swallow, eventually: Eventually) -> None:
    work = Work()
    await system.start_worker(work.echo)
    await system.start_replica(silent_after=SILENT_AFTER)
    run_id = await system.submit(one_block(BRANCHES, max_parallelism=2))
    gate = topology.gate_queue(run_id, "block").name
    await eventually(lambda: ready_is(system, gate, BRANCHES - 2))
    await eventually(lambda: work.calls.total() == 2)
    await swallow(gate)
    work.may_end.set()
    await check_completed(system, run_id)
    assert work.most_at_once == 2
    assert not await system.gate_exists(run_id, "block")
    assert work.calls == dict.fromkeys(range(BRANCHES), 1)


async def test_commands(system: System, swallow: Swallow, eventually: Eventually) -> None:
    """A command that is swallowed is lost: it says nothing about a run until it is applied. The next one is heard."""
    work = Work()
    await system.start_worker(work.echo)
    replica = await system.start_replica()
    run_id = await system.submit(one_block(BRANCHES))
    await eventually(lambda: work.calls.total() == BRANCHES)
    await system.end(replica, crash=False)
    await system.cancel(run_id)
    await eventually(lambda: ready_is(system, topology.COMMANDS_QUEUE.name, 1))
    await swallow(topology.COMMANDS_QUEUE.name)
    await system.start_replica()
    await swallow(topology.COMMANDS_QUEUE.name)  # and once more while it is consumed

    async def consumed() -> bool:
        try:
            return (await system.broker.check_queue(topology.COMMANDS_QUEUE.name)).consumers == 1
        except QueueMissing:
            return False

    await eventually(consumed)
    assert await system.status(run_id) == "RUNNING"
    await system.cancel(run_id)
    assert await system.ended(run_id) == "CANCELLED"
    work.may_end.set()


@pytest.mark.parametrize("swallow", ["deleted"], indirect=True)
async def test_a_task_whose_queue_stays_away_fails_and_the_attempts_of_a_lost_worker_too(
    system: System, swallow: Swallow, eventually: Eventually
) -> None:
    work = Work()
    worker = await system.start_worker(work.echo, concurrency=1)
    await system.start_replica(silent_after=SILENT_AFTER, unknown_agent_after=1.0)
    run_id = await system.submit(one_block(2))
    await eventually(lambda: ready_is(system, "agent.echo", 1))
    await system.step_is(run_id, "b0", "RUNNING")
    await worker.close()
    await swallow("agent.echo")
    assert await system.ended(run_id) == "FAILED"
    errors = {step_id: row["error"] for step_id, row in (await system.steps(run_id)).items() if step_id != "block"}
    assert {error["code"] for error in errors.values()} == {"unknown_agent"}
    assert "does not exist" in errors["b0"]["message"]
    assert "not been heard of" in errors["b0"]["message"]
    await system.quiet()


@pytest.mark.parametrize("swallow", ["deleted"], indirect=True)
async def test_a_worker_that_declares_the_queue_anew_gets_what_was_sent_again(
    system: System, swallow: Swallow, eventually: Eventually
) -> None:
    work = Work()
    work.may_end.set()
    await (await system.start_worker(work.echo)).close()
    await system.start_replica(silent_after=SILENT_AFTER)
    run_id = await system.submit(one_block(BRANCHES))
    await eventually(lambda: ready_is(system, "agent.echo", BRANCHES))
    await swallow("agent.echo")

    async def returned() -> bool:
        rows = await system.fetch("SELECT FROM outbox WHERE task_id IS NOT NULL AND returned_at IS NOT NULL")
        return len(rows) == BRANCHES

    await eventually(returned)
    await system.start_worker(work.echo)
    await check_completed(system, run_id)


async def ready_is(system: System, queue: str, count: int, *, at_least: bool = False) -> bool:
    found = await ready(system, queue)
    return found >= count if at_least else found == count
