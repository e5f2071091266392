"""Postgres that fails in the middle of runs: every run completes all the same."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from structlog.testing import capture_logs

from messaging import topology
from orchestrator.service.driver import Driver
from orchestrator.service.intake import BATCH, PREFETCH
from orchestrator.storage.unit_of_work import UnitOfWork
from schemas.statuses import ResultStatus
from tests.conftest import Eventually
from tests.integration.conftest import migrated
from tests.integration.documents import agent, one_block, workflow
from tests.integration.replicas import Brokers
from tests.integration.system import System, completed
from tests.services.postgres import Postgres
from tests.services.private_postgres import PrivatePostgres
from tests.services.sources import Unavailable

HELLO = workflow({"one": agent("held", input_mapping={"n": 0})})


class Held:
    """An agent that waits until it may end."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = asyncio.Event()

    async def held(self, input: dict[str, Any]) -> Any:
        self.begun += 1
        await self.go_on.wait()
        return input


async def echo(input: Any) -> Any:
    return input


@pytest.mark.parametrize("error", [asyncpg.DeadlockDetectedError, asyncpg.SerializationError])
async def test_a_transaction_that_the_server_undoes_is_tried_again(
    system: System, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    flush = UnitOfWork.flush
    undone: list[Exception] = []

    async def unlucky(self: UnitOfWork) -> None:
        await flush(self)
        if len(undone) < 5:
            undone.append(error("undone by a test"))
            raise undone[-1]

    await system.start_replica()
    await system.start_worker(echo)
    monkeypatch.setattr(UnitOfWork, "flush", unlucky)
    with capture_logs() as lines:
        result = await system.run(one_block(10))
    assert len(undone) == 5
    assert result.status is ResultStatus.COMPLETED
    assert len(result.output) == 10
    assert not [line for line in lines if line.get("action") == "database_lost"], "Postgres was there all the time"
    await system.quiet()


async def test_a_real_deadlock_is_survived(system: System) -> None:
    held = Held()
    await system.start_replica()
    await system.start_worker(held.held)
    await system.fetch("SET deadlock_timeout = '10s'")  # so that the replica is the one that is undone
    run_id = await system.submit(HELLO)
    await system.step_is(run_id, "one", "RUNNING")
    async with system.connection.transaction():
        await system.connection.execute("SELECT * FROM step_executions WHERE run_id = $1 FOR UPDATE", run_id)
        held.go_on.set()
        await system.somebody_waits_for_a_lock()
        await system.connection.execute("SELECT * FROM runs WHERE id = $1 FOR UPDATE", run_id)
    assert await system.ended(run_id) == "COMPLETED"


async def test_runs_complete_although_all_connections_to_the_database_are_cut(
    system: System, postgres: Postgres, eventually: Eventually
) -> None:
    held = Held()
    await system.start_replica()
    await system.start_replica()
    await system.start_worker(held.held, concurrency=50)
    runs = [await system.submit(one_block(10, agent_name="held", max_parallelism=5)) for _ in range(4)]
    await eventually(lambda: held.begun == 20)
    held.go_on.set()
    for _ in range(3):
        assert postgres.terminate_backends(system.database_url) > 0
        system.connection = await asyncpg.connect(system.database_url)
    for run_id in runs:
        assert await system.ended(run_id) == "COMPLETED"
        assert len((await system.run_row(run_id))["output"]) == 10
    await system.quiet()


async def test_a_request_that_arrives_while_connections_are_cut_is_a_run(system: System, postgres: Postgres) -> None:
    await system.start_replica()
    await system.start_worker(echo)
    assert (await system.run(one_block(2))).status is ResultStatus.COMPLETED  # connections are open now
    postgres.terminate_backends(system.database_url)
    system.connection = await asyncpg.connect(system.database_url)
    result = await system.run(one_block(3))
    assert result.status is ResultStatus.COMPLETED
    await system.quiet()


@pytest.fixture
def own_postgres() -> Iterator[PrivatePostgres]:
    """A Postgres that this test alone uses, and may stop."""
    try:
        server = PrivatePostgres()
    except Unavailable as reason:
        pytest.skip(str(reason))
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def on_own_postgres(brokers: Brokers, own_postgres: PrivatePostgres) -> AsyncIterator[System]:
    """The system on a Postgres of its own."""
    await migrated(own_postgres.url)
    system = await System(brokers, own_postgres.url).open()
    yield system
    await system.close()


@pytest.mark.parametrize("immediate", [False, True], ids=["fast", "immediate"])
async def test_a_run_completes_although_postgres_is_restarted_and_a_request_arrives_meanwhile(
    on_own_postgres: System, own_postgres: PrivatePostgres, eventually: Eventually, immediate: bool
) -> None:
    system, held = on_own_postgres, Held()
    await system.start_replica()
    await system.start_worker(held.held, concurrency=20)
    run_id = await system.submit(one_block(8, agent_name="held", max_parallelism=4))
    await eventually(lambda: held.begun == 4)
    with capture_logs() as lines:
        await asyncio.to_thread(own_postgres.stop, immediate=immediate)
        held.go_on.set()
        meanwhile = await system.submit(HELLO)
        known = await system.submit(one_block(8, agent_name="held", max_parallelism=4))
        await eventually(lambda: _said(lines, "database_lost"))
        await asyncio.to_thread(own_postgres.start)
        system.connection = await asyncpg.connect(system.database_url)
        for each in (run_id, meanwhile, known):
            assert await system.ended(each) == "COMPLETED"
        await eventually(lambda: _said(lines, "database_restored"))
    assert len(_said(lines, "database_lost")) == 1
    assert len(_said(lines, "database_restored")) == 1
    assert not _said(lines, "loop_interrupted")
    await system.quiet()


async def test_a_replica_without_its_database_takes_no_more_than_its_window_says_so_and_stops_in_time(
    on_own_postgres: System, own_postgres: PrivatePostgres, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, tries = on_own_postgres, 0
    once = Driver._once

    async def counted(self: Driver, inputs: Any) -> Any:
        nonlocal tries
        tries += 1
        return await once(self, inputs)

    running = await system.start_replica(drain_timeout=1.0)
    monkeypatch.setattr(Driver, "_once", counted)
    with capture_logs() as lines:
        await asyncio.to_thread(own_postgres.stop, immediate=True)
        await system.report(*(completed(uuid4(), uuid4()) for _ in range(3_000)))
        await eventually(lambda: running.replica.health().status == "degraded")
        await eventually(lambda: running.replica.intakes[1].in_hand > 0)
        assert [trouble.part for trouble in running.replica.health().troubles] == ["database"]
        async with asyncio.timeout(30):
            await system.end(running, crash=False)
    assert 1 <= tries < 30, "its tries have pauses between them"
    assert (await system.broker.check_queue(topology.RESULTS_QUEUE.name)).ready == 3_000
    assert len(_said(lines, "database_lost")) == 1
    [left] = _said(lines, "drain_timed_out")
    assert 0 < left["inputs"] <= BATCH
    await asyncio.to_thread(own_postgres.start)
    system.connection = await asyncpg.connect(system.database_url)


async def test_the_results_that_a_replica_without_database_does_not_take_stay_in_their_queue(
    on_own_postgres: System, own_postgres: PrivatePostgres, eventually: Eventually
) -> None:
    system = on_own_postgres
    await system.start_replica()
    await asyncio.to_thread(own_postgres.stop, immediate=True)
    await system.report(*(completed(uuid4(), uuid4()) for _ in range(3_000)))

    async def left_in_queue() -> bool:
        return (await system.broker.check_queue(topology.RESULTS_QUEUE.name)).ready == 3_000 - PREFETCH

    await eventually(left_in_queue)
    await asyncio.to_thread(own_postgres.start)
    system.connection = await asyncpg.connect(system.database_url)
    await system.quiet()


async def test_an_idle_replica_stops_at_once_though_its_database_is_away(
    on_own_postgres: System, own_postgres: PrivatePostgres
) -> None:
    system = on_own_postgres
    running = await system.start_replica()
    await asyncio.to_thread(own_postgres.stop, immediate=True)
    async with asyncio.timeout(20):  # less than the drain timeout
        await system.end(running, crash=False)
    await asyncio.to_thread(own_postgres.start)
    system.connection = await asyncpg.connect(system.database_url)


def _said(lines: list[Any], action: str) -> list[Any]:
    return [line for line in lines if line.get("action") == action]
