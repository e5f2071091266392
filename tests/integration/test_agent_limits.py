"""Limits of agents on real services: over all runs, blocks, workers and replicas, and whatever happens meanwhile.

The agents count themselves: how many of them run at once is what a limit is for.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from messaging import topology
from orchestrator.engine.agent_limit import AgentLimit, burst
from orchestrator.service import agent_gates
from orchestrator.service.relay import Relay
from orchestrator.storage import agent_limits
from orchestrator.storage.agent_limits import change_limit
from orchestrator.storage.agents import list_agents
from orchestrator.storage.postgres import PostgresStorage
from orchestrator.storage.queries import get_run
from schemas.statuses import ResultStatus
from tests.conftest import Eventually
from tests.integration.documents import agent, one_block, workflow
from tests.integration.system import System

AGENT = "work"


class Agents:
    """Agents that end when they are told to, or after a few turns, and count how many of them run at once."""

    def __init__(self, *, stuck: bool = False) -> None:
        self.running = 0
        self.most = 0
        self.calls: list[Any] = []
        self.starts: list[float] = []
        self._turns = asyncio.Semaphore(0)
        self._stuck = stuck

    async def work(self, input: Any) -> Any:
        self.calls.append(input)
        self.starts.append(asyncio.get_running_loop().time())
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self._stuck:
                await self._turns.acquire()
            for _ in range(20):
                await asyncio.sleep(0)
        finally:
            self.running -= 1
        return input

    def end(self, count: int = 1) -> None:
        """Have so many of them end, those that run the longest first."""
        for _ in range(count):
            self._turns.release()

    def end_all(self) -> None:
        """Have all end that run, and those that come."""
        self._stuck = False
        self.end(1_000)


async def limit(system: System, most: int | None = None, rate: float | None = None, agent_name: str = AGENT) -> None:
    await change_limit(system.database, agent_name, lambda _: AgentLimit(most, rate))


async def held(system: System) -> int:
    return int((await system.fetch("SELECT count(*) FROM outbox WHERE held_at IS NOT NULL"))[0][0])


def holding(system: System, count: int) -> Callable[[], Awaitable[bool]]:
    """Return whether so many tasks are held, for `eventually`."""

    async def reached() -> bool:
        return await held(system) == count

    return reached


async def completed(system: System, *run_ids: UUID) -> None:
    for run_id in run_ids:
        assert await system.ended(run_id) == "COMPLETED"
    await system.quiet()


@pytest.mark.parametrize("most", [1, 3])
async def test_no_more_attempts_than_the_limit_run_at_once_over_all_runs_blocks_workers_and_replicas(
    system: System, eventually: Eventually, most: int
) -> None:
    agents = Agents(stuck=True)
    await limit(system, most)
    for _ in range(2):
        await system.start_replica()
        await system.start_worker(agents.work, concurrency=20)
    one = workflow({"one": agent(AGENT, next_step="two"), "two": agent(AGENT)})
    documents = [one_block(8, agent_name=AGENT), one_block(8, agent_name=AGENT, max_parallelism=5), one, one]
    running = asyncio.gather(*(system.run(document) for document in documents))
    await eventually(lambda: agents.running == most)
    agents.end_all()
    results = await running
    assert {result.status for result in results} == {ResultStatus.COMPLETED}
    assert agents.most == most
    assert len(agents.calls) == 20
    await system.quiet()
    assert await system.fetch("SELECT 1 FROM step_attempts") == []


async def test_a_slot_is_handed_on_at_once_by_whoever_frees_it(
    system: System, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_gates.AgentGates, "wake", lambda _: None)  # the lookout would find it within a second
    agents = Agents(stuck=True)
    await limit(system, 1)
    await system.start_replica()
    await system.start_worker(agents.work)
    run_id = await system.submit(one_block(4, agent_name=AGENT))
    for number in range(4):
        await eventually(lambda number=number: len(agents.calls) == number + 1)
        agents.end()
    assert agents.most == 1
    await completed(system, run_id)


async def test_branches_of_a_limited_agent_start_in_the_order_of_the_definition(system: System) -> None:
    agents = Agents()
    await limit(system, 1)
    await system.start_replica()
    await system.start_worker(agents.work)
    assert (await system.run(one_block(12, agent_name=AGENT))).status is ResultStatus.COMPLETED
    assert agents.calls == [{"n": number} for number in range(12)]


async def test_other_agents_are_not_held_up(system: System, eventually: Eventually) -> None:
    async def free(input: Any) -> Any:
        return input

    agents = Agents(stuck=True)
    await limit(system, 1)
    await system.start_replica()
    await system.start_worker(agents.work, free)
    stuck = await system.submit(one_block(4, agent_name=AGENT))
    await eventually(holding(system, 3))
    assert (await system.run(one_block(4, agent_name="free"))).status is ResultStatus.COMPLETED
    agents.end_all()
    await completed(system, stuck)


async def test_a_limit_is_changed_while_runs_go_on(system: System, eventually: Eventually) -> None:
    agents = Agents(stuck=True)
    for _ in range(2):
        await system.start_replica()
    await system.start_worker(agents.work, concurrency=20)
    run_id = await system.submit(one_block(12, agent_name=AGENT))
    await eventually(lambda: agents.running == 12)
    await limit(system, 2)  # what is under way counts
    later = await system.submit(one_block(12, agent_name=AGENT))
    await eventually(holding(system, 12))
    agents.end(10)
    await completed_steps(system, eventually, 10)
    assert (agents.running, await held(system)) == (2, 12)
    agents.end()
    await eventually(lambda: len(agents.calls) == 13)
    assert agents.running == 2
    await limit(system, 5)
    await eventually(lambda: agents.running == 5)
    await limit(system, 3)
    agents.end(3)
    await eventually(lambda: agents.running == 3 and len(agents.calls) == 17)
    await limit(system)
    await eventually(lambda: agents.running == 10)
    assert await held(system) == 0
    agents.end_all()
    await completed(system, run_id, later)


async def completed_steps(system: System, eventually: Eventually, count: int) -> None:
    async def reached() -> bool:
        rows = await system.fetch("SELECT 1 FROM step_executions WHERE status = 'COMPLETED'")
        return len(rows) >= count

    await eventually(reached)


async def test_an_agent_is_paused_by_a_limit_of_zero(system: System, eventually: Eventually) -> None:
    agents = Agents()
    await limit(system, 0)
    await system.start_replica()
    await system.start_worker(agents.work)
    run_id = await system.submit(one_block(3, agent_name=AGENT))
    await eventually(holding(system, 3))
    assert agents.calls == []
    await limit(system, 2)
    await completed(system, run_id)


async def test_a_rate_is_kept_over_all_replicas_and_used(system: System) -> None:
    agents, rate, starts = Agents(), 20.0, 40
    await limit(system, rate=rate)
    for _ in range(2):
        await system.start_replica()
        await system.start_worker(agents.work, concurrency=20)
    runs = await asyncio.gather(*(system.run(one_block(starts // 2, agent_name=AGENT)) for _ in range(2)))
    assert {run.status for run in runs} == {ResultStatus.COMPLETED}
    [[first, last]] = await system.fetch("SELECT min(queued_at), max(queued_at) FROM step_executions WHERE attempt = 1")
    assert (last - first).total_seconds() >= (starts - burst(rate)) / rate
    assert len(agents.calls) == starts
    await system.quiet()


async def test_what_a_replica_let_through_is_sent_by_another_when_that_one_dies_before_it_comes_to_it(
    system: System, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = Agents(stuck=True)
    await limit(system, 2)
    first = await system.start_replica()
    await system.start_worker(agents.work)
    with monkeypatch.context() as patched:
        _send_no_tasks(patched)
        run_id = await system.submit(one_block(5, agent_name=AGENT))
        await eventually(holding(system, 3))
        await system.end(first, crash=True)
    await system.start_replica()
    await eventually(lambda: agents.running == 2)
    agents.end_all()
    await completed(system, run_id)
    assert agents.most == 2
    assert len(agents.calls) == 5


async def test_slots_that_a_replica_freed_before_it_died_are_handed_on_by_another(
    system: System, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = Agents(stuck=True)
    await limit(system, 2)
    first = await system.start_replica()
    await system.start_worker(agents.work)
    run_id = await system.submit(one_block(5, agent_name=AGENT))
    await eventually(lambda: agents.running == 2)
    with monkeypatch.context() as patched:
        patched.setattr(PostgresStorage, "let_tasks_through", _never)
        agents.end(2)
        await completed_steps(system, eventually, 2)
        await system.end(first, crash=True)
    agents.end_all()
    await system.start_replica()
    await completed(system, run_id)
    assert agents.most == 2


async def test_a_replica_that_freezes_while_it_lets_tasks_through_holds_the_others_up_for_seconds_only(
    system: System, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_limits, "_TAKE_TURNS", agent_limits._TAKE_TURNS.replace("'5s'", "'1s'"))
    let_through, thaw, frozen = agent_limits._let_through, asyncio.Event(), asyncio.Event()

    async def freezing(*arguments: Any) -> Any:
        if not frozen.is_set():
            frozen.set()
            await thaw.wait()
        return await let_through(*arguments)

    agents = Agents()
    await limit(system, 1)
    await system.start_replica()
    await system.start_replica()
    await system.start_worker(agents.work)
    monkeypatch.setattr(agent_limits, "_let_through", freezing)
    run_id = await system.submit(one_block(3, agent_name=AGENT))
    await eventually(frozen.is_set)
    await completed(system, run_id)
    thaw.set()  # its session is gone; it goes on all the same
    assert (await system.run(one_block(3, agent_name=AGENT))).status is ResultStatus.COMPLETED
    assert agents.most == 1
    await system.quiet()


async def test_held_tasks_go_with_the_run_that_is_cancelled_and_take_no_slot(
    system: System, eventually: Eventually
) -> None:
    agents = Agents(stuck=True)
    await limit(system, 1)
    await system.start_replica()
    await system.start_worker(agents.work)
    run_id = await system.submit(one_block(5, agent_name=AGENT))
    await eventually(holding(system, 4))
    other = await system.submit(workflow({"one": agent(AGENT)}))
    await eventually(holding(system, 5))
    await system.cancel(run_id)
    await eventually(holding(system, 0))
    agents.end_all()
    await completed(system, other)
    assert len(agents.calls) == 2


async def test_a_task_that_is_sent_again_needs_no_other_slot(system: System, eventually: Eventually) -> None:
    agents = Agents()
    await limit(system, 1)
    await system.start_replica(silent_after=0.3)
    await system.broker.declare(topology.EXCHANGES, [topology.agent_queue(AGENT)])
    run_id = await system.submit(one_block(3, agent_name=AGENT))

    async def task_waits() -> bool:
        return (await system.broker.check_queue(topology.agent_queue(AGENT).name)).ready == 1

    await eventually(task_waits)
    await system.broker.delete_queue(topology.agent_queue(AGENT).name)
    await system.start_worker(agents.work)
    await completed(system, run_id)
    assert agents.most == 1


async def test_a_held_attempt_has_not_begun_to_wait_for_a_worker(system: System, eventually: Eventually) -> None:
    agents = Agents(stuck=True)
    await limit(system, 1)
    await system.start_replica(silent_after=0.3)
    await system.start_worker(agents.work)
    first = await system.submit(workflow({"one": agent(AGENT)}))
    await eventually(lambda: agents.running == 1)
    run_id = await system.submit(workflow({"one": agent(AGENT, queue_timeout_seconds=600)}))
    await eventually(holding(system, 1))
    [step] = (await system.steps(run_id)).values()
    assert (step["status"], step["due_at"]) == ("QUEUED", None)
    agents.end()
    await eventually(lambda: len(agents.calls) == 2)
    agents.end()
    await completed(system, first, run_id)


async def test_a_retry_waits_for_a_slot_as_the_first_attempt_did(system: System) -> None:
    tries: list[int] = []

    async def work(input: dict[str, Any]) -> Any:
        tries.append(input["n"])
        if tries.count(input["n"]) == 1:
            raise ValueError("not yet")
        return input

    await limit(system, 1)
    await system.start_replica()
    await system.start_worker(work)
    retry = {"max_attempts": 2, "initial_interval_seconds": 0.01}
    assert (await system.run(one_block(4, agent_name=AGENT, retry=retry))).status is ResultStatus.COMPLETED
    assert sorted(tries) == sorted([*range(4), *range(4)])
    await system.quiet()


async def test_readers_see_who_waits_for_the_limit(system: System, eventually: Eventually) -> None:
    agents = Agents(stuck=True)
    await limit(system, 2, 50.0)
    await limit(system, 1, agent_name="idle")
    await system.start_replica()
    await system.start_worker(agents.work, report_started_after=0)
    run_id = await system.submit(one_block(5, agent_name=AGENT))

    async def two_run() -> bool:
        return {(one.running, one.waiting) for one in await list_agents(system.database)} == {(2, 3), (0, 0)}

    await eventually(two_run)
    idle, work = await list_agents(system.database)
    assert (idle.agent_name, idle.limit, idle.queued) == ("idle", AgentLimit(1, None), 0)
    assert (work.agent_name, work.limit, work.queued) == (AGENT, AgentLimit(2, 50.0), 0)
    steps = {step.step_id: step for step in (await get_run(system.database, run_id)).steps}
    assert [name for name, step in sorted(steps.items()) if step.held_since is not None] == ["b2", "b3", "b4"]
    assert (steps["b4"].agent_max_concurrency, steps["b4"].agent_rate_per_second) == (2, 50.0)
    assert steps["b0"].agent_max_concurrency is None
    agents.end_all()
    await completed(system, run_id)


async def test_whoever_lets_a_task_through_sends_it_at_once(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_limits, "HAND_OVER_SECONDS", 600.0)  # no sweep does
    agents = Agents()
    await limit(system, 1)
    await system.start_replica()
    await system.start_worker(agents.work)
    run_id = await system.submit(one_block(3, agent_name=AGENT))
    await completed(system, run_id)


def _send_no_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    committed = Relay.committed

    async def without_tasks(self: Relay, batch: Any) -> None:
        batch.messages = [row for row in batch.messages if row.exchange != topology.TASKS_EXCHANGE]
        await committed(self, batch)

    monkeypatch.setattr(Relay, "committed", without_tasks)


async def _never(*_: Any) -> Any:
    await asyncio.Event().wait()
