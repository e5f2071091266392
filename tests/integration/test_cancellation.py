"""A run that is cancelled while workers have tasks of it: agents end, and waiting tasks are never executed."""

import asyncio
import time
from typing import Any
from uuid import UUID, uuid4

from agent_worker import AgentContext
from messaging import topology
from messaging.port import Binding, Queue, QueueKind
from schemas.codec import decode
from schemas.messages import RunCancelled
from schemas.statuses import ResultStatus
from tests.conftest import Eventually
from tests.integration.documents import agent, block, one_block, workflow
from tests.integration.system import System

AGENTS = ("awaits", "looks")


class Agents:
    """An async agent that awaits for ever and a sync one that looks, unless they are let go; both write down."""

    def __init__(self) -> None:
        self.begun: list[UUID] = []  # runs, once for each attempt
        self.cancelled: list[tuple[str, bool]] = []  # which agent, and what its context said
        self.released = asyncio.Event()

    async def awaits(self, input: Any, context: AgentContext) -> Any:
        self.begun.append(context.run_id)
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled.append(("awaits", context.cancelled))
            raise
        return input

    def looks(self, input: Any, context: AgentContext) -> Any:
        self.begun.append(context.run_id)
        while not context.cancelled:
            if self.released.is_set():
                return input
            time.sleep(0.001)
        self.cancelled.append(("looks", context.over))
        return "too late"

    def named(self) -> tuple[Any, Any]:
        """Return them as functions, for the workers."""

        async def awaits(input: Any, context: AgentContext) -> Any:
            return await self.awaits(input, context)

        def looks(input: Any, context: AgentContext) -> Any:
            return self.looks(input, context)

        return awaits, looks


def branches(each: int, **fields: Any) -> Any:
    """Return a workflow of one block with so many branches for each of the agents."""
    steps = {f"{name}-{number}": agent(name, input_mapping={"n": number}) for name in AGENTS for number in range(each)}
    return workflow({"block": block(list(steps), **fields), **steps})


async def nothing_waits(system: System, eventually: Eventually) -> None:
    """Wait until the agents' queues are empty; what their workers held is settled when they have drained."""

    async def empty() -> bool:
        return not any([(await system.broker.check_queue(f"agent.{name}")).ready for name in AGENTS])

    await eventually(empty)


async def test_agents_of_a_cancelled_run_end_and_its_waiting_tasks_are_never_executed(
    system: System, eventually: Eventually
) -> None:
    agents = Agents()
    await system.start_replica()
    workers = [await system.start_worker(*agents.named(), concurrency=1) for _ in range(2)]
    run_id = await system.submit(branches(20))
    await eventually(lambda: len(agents.begun) == 4)
    await system.cancel(run_id, "enough")
    assert await system.ended(run_id) == "CANCELLED"
    await eventually(lambda: len(agents.cancelled) == 4)
    assert sorted(agents.cancelled) == [("awaits", True)] * 2 + [("looks", True)] * 2
    await nothing_waits(system, eventually)
    assert agents.begun == [run_id] * 4
    agents.released.set()
    result = await system.run(branches(4))
    assert result.status is ResultStatus.COMPLETED
    assert agents.begun.count(run_id) == 4
    assert len(agents.begun) == 4 + 8
    await system.quiet()
    await asyncio.gather(*(worker.drain() for worker in workers))
    await nothing_waits(system, eventually)
    assert set((await system.statuses(run_id)).values()) == {"CANCELLED"}


async def test_branches_that_wait_at_a_gate_are_never_executed_and_other_runs_go_on(
    system: System, eventually: Eventually
) -> None:
    agents = Agents()
    await system.start_replica()
    await system.start_replica()
    await system.start_worker(*agents.named())
    other = await system.submit(branches(2))
    run_id = await system.submit(branches(5, max_parallelism=3))
    await eventually(lambda: (agents.begun.count(run_id), agents.begun.count(other)) == (3, 4))
    await system.cancel(run_id)
    await eventually(lambda: len(agents.cancelled) == 3)
    assert await system.ended(run_id) == "CANCELLED"
    agents.released.set()
    assert await system.ended(other) == "COMPLETED"
    await system.quiet()
    assert (agents.begun.count(run_id), agents.begun.count(other)) == (3, 4)


async def test_anyone_may_listen_for_cancellations_and_hears_each_run_once(
    system: System, eventually: Eventually
) -> None:
    await system.start_replica()
    await system.broker.declare([], [topology.agent_queue("by-hand")])
    mine = Queue("in-another-language", QueueKind.EXCLUSIVE, (Binding("orchestrator.workers", "cancelled"),))
    listener = await system.broker.consume(mine, prefetch=10)
    runs = [await system.submit(one_block(2, agent_name="by-hand")) for _ in range(3)]
    for run_id in runs:
        await system.step_is(run_id, "b0", "QUEUED")
    for run_id in (runs[0], runs[0], uuid4(), runs[1]):
        await system.cancel(run_id)
    heard: list[UUID] = []
    async with asyncio.timeout(30):
        while runs[1] not in heard:
            deliveries = await listener.receive(10)
            await listener.ack(deliveries)
            assert {delivery.type for delivery in deliveries} == {"RunCancelled"}
            heard += [decode(RunCancelled, delivery.body).run_id for delivery in deliveries]
    await eventually(lambda: sum(system.verdicts().get(f"{key} run_is_final", 0) for key in ("DUPLICATE", "STALE")))
    await system.quiet()
    assert heard == runs[:2]
    assert (await system.broker.check_queue(mine.name)).ready == 0


async def test_a_run_is_cancelled_though_no_worker_listens(system: System) -> None:
    await system.start_replica()
    await system.broker.declare([], [topology.agent_queue("by-hand")])
    run_id = await system.submit(one_block(2, agent_name="by-hand"))
    await system.step_is(run_id, "b0", "QUEUED")
    await system.cancel(run_id)
    assert await system.ended(run_id) == "CANCELLED"
    await system.quiet()
