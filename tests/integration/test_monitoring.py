"""What a replica says of itself while the broker and the database fail and come back, and what it counts meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from yarl import URL

from messaging.monitoring.condition import Condition, Status
from messaging.monitoring.exposition import Exposition
from messaging.monitoring.monitored import open_endpoint
from messaging.rabbitmq import RabbitmqBroker
from orchestrator import bootstrap, monitoring
from orchestrator.monitoring import ReplicaMonitor
from orchestrator.service.replica import Replica
from orchestrator.settings import Settings
from orchestrator.storage.database import Database
from orchestrator.storage.postgres import PostgresStorage
from orchestrator.storage.schema import head
from schemas.statuses import ResultStatus
from tests.conftest import Eventually
from tests.contract.proxy import Proxy
from tests.integration.documents import one_block
from tests.integration.replicas import Brokers
from tests.integration.system import System, completed
from tests.services.http import Answer
from tests.services.http import asked as asked_at


@dataclass
class Watched:
    """A replica whose ways to the broker and to the database can be cut, and the monitor that answers for it."""

    settings: Settings
    monitor: ReplicaMonitor
    database: Database
    broker: RabbitmqBroker
    to_broker: Proxy
    to_database: Proxy
    stop: asyncio.Event
    replica: Replica | None = None

    async def is_in(self, status: Status, *parts: str) -> bool:
        """Whether its condition is this, with these parts in trouble."""
        condition = await self.monitor.condition()
        return condition.status is status and {trouble.part for trouble in condition.troubles} == set(parts)

    async def samples(self) -> dict[tuple[str, ...], float]:
        """Return what /metrics shows."""
        text, content_type = Exposition().write(await self.monitor.instruments(), "text/plain")
        return Answer(200, text.decode(), content_type).samples


@pytest.fixture(autouse=True)
def always_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "SCHEMA_SECONDS", 0.0)
    monkeypatch.setattr(monitoring, "CENSUS_SECONDS", 0.0)
    monkeypatch.setattr(monitoring, "CENSUS_REST", 0.0)
    monkeypatch.setattr(monitoring, "PATIENCE", 1.0)


@pytest.fixture
async def watched(amqp_url: str, migrated_url: str) -> AsyncIterator[Watched]:
    """Nothing has started yet: see `working`."""
    urls, proxies = [], []
    for url in (URL(amqp_url), URL(migrated_url)):
        proxy = Proxy(url.host or "127.0.0.1", url.port or 0)
        await proxy.start()
        proxies.append(proxy)
        urls.append(str(url.with_host("127.0.0.1").with_port(proxy.port)))
    settings = Settings(amqp_url=urls[0], database_url=urls[1], replica_id="watched", drain_timeout=60)
    database, broker = bootstrap.make_database(settings), bootstrap.make_broker(settings, "watched")
    stop = asyncio.Event()
    monitor = ReplicaMonitor(database, broker, lambda: broker.reconnects, stop.is_set)
    yield Watched(settings, monitor, database, broker, *proxies, stop)
    await monitor.close()
    await broker.close()
    await database.close()
    for proxy in proxies:
        await proxy.stop()


@pytest.fixture
async def working(watched: Watched) -> AsyncIterator[Watched]:
    await watched.broker.connect()
    async with bootstrap.running_replica(
        watched.settings, watched.database, watched.broker, watched.monitor
    ) as replica:
        watched.replica = replica
        yield watched


@pytest.fixture
async def system(amqp_url: str, migrated_url: str) -> AsyncIterator[System]:
    """A client and workers beside the replica that is watched."""
    system = await System(Brokers(amqp_url), migrated_url).open()
    yield system
    await system.close()


async def echo(input: Any) -> Any:
    return input


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_replica_that_waits_for_the_broker_and_the_database_starts(watched: Watched) -> None:
    await watched.to_database.stop()
    assert await watched.is_in(Status.STARTING, "broker", "database")
    await watched.to_database.start()
    assert await watched.is_in(Status.STARTING, "broker")
    await watched.broker.connect()
    assert await watched.is_in(Status.STARTING)


async def test_a_replica_without_its_broker_is_degraded_until_it_is_back(
    working: Watched, eventually: Eventually
) -> None:
    assert await working.is_in(Status.OK)
    await working.to_broker.stop()
    await eventually(lambda: working.is_in(Status.DEGRADED, "broker"))
    found = await working.samples()
    assert (found["forkjoin_ready",], found["forkjoin_trouble", "broker"]) == (0, 1)
    await working.to_broker.start()
    await eventually(lambda: working.is_in(Status.OK))
    found = await working.samples()
    assert (found["forkjoin_ready",], found["forkjoin_trouble", "broker"]) == (1, 0)
    assert found["forkjoin_outages_total", "broker"] == 1
    assert found["forkjoin_broker_reconnects_total",] >= 2


async def test_a_replica_without_its_database_is_degraded_until_it_is_back(
    working: Watched, eventually: Eventually
) -> None:
    await working.to_database.stop()
    await eventually(lambda: working.is_in(Status.DEGRADED, "database"))
    found = await working.samples()
    assert (found["forkjoin_census_up",], found["forkjoin_trouble", "database"]) == (0, 1)
    assert ("forkjoin_outbox_messages",) not in found
    await working.to_database.start()
    await eventually(lambda: working.is_in(Status.OK))
    assert (await working.samples())["forkjoin_census_up",] == 1


async def test_a_database_that_hangs_is_told_of_in_time_and_asked_once(
    working: Watched, eventually: Eventually
) -> None:
    assert await working.is_in(Status.OK)
    working.to_database.freeze()
    async with asyncio.timeout(30):
        for _ in range(5):
            condition: Condition = await working.monitor.condition()
    assert condition.status is Status.DEGRADED
    assert [trouble.part for trouble in condition.troubles] == ["database"]
    working.to_database.thaw()
    await eventually(lambda: working.is_in(Status.OK))


@pytest.mark.parametrize(
    ("statement", "undo", "reason"),
    [
        (
            "UPDATE alembic_version SET version_num = '9999'; UPDATE schema_compatibility SET oldest_revision = '9998'",
            "UPDATE alembic_version SET version_num = '{0}'; UPDATE schema_compatibility SET oldest_revision = '{0}'",
            "it was migrated by a newer version; upgrade forkjoin",
        ),
        (
            "UPDATE alembic_version SET version_num = '0001'",
            "UPDATE alembic_version SET version_num = '{}'",
            "the database schema is at 0001, older than",
        ),
        (
            "ALTER TABLE alembic_version RENAME TO elsewhere",
            "ALTER TABLE elsewhere RENAME TO alembic_version",
            "the database has no forkjoin schema",
        ),
    ],
    ids=["newer", "older", "missing"],
)
async def test_a_schema_that_is_not_ours_any_more_is_told_of(
    working: Watched, migrated_url: str, statement: str, undo: str, reason: str
) -> None:
    await execute(migrated_url, statement)
    condition = await working.monitor.condition()
    await execute(migrated_url, undo.format(head()))
    assert condition.status is Status.DEGRADED
    [trouble] = condition.troubles
    assert trouble.part == "schema"
    assert reason in trouble.reason
    assert await working.is_in(Status.OK)


async def test_a_replica_that_was_told_to_stop_drains(working: Watched) -> None:
    working.stop.set()
    assert await working.is_in(Status.DRAINING)


async def test_a_run_leaves_its_numbers(system: System, working: Watched) -> None:
    await system.start_worker(echo)
    result = await system.run(one_block(20, max_parallelism=5))
    assert result.status is ResultStatus.COMPLETED
    await system.quiet()
    found = await working.samples()
    assert found["forkjoin_run_seconds_count", "COMPLETED"] == 1
    assert found["forkjoin_steps_ended_total", "branch", "COMPLETED"] == 20
    assert found["forkjoin_steps_ended_total", "step", "COMPLETED"] == 1
    assert found["forkjoin_queue_seconds_count", "echo"] == 20
    assert found["forkjoin_running_seconds_count", "echo"] == 20
    assert found["forkjoin_delivery_batch_size_sum", "orchestrator.runs"] == 1
    assert found["forkjoin_delivery_batch_size_sum", "orchestrator.results"] == 20
    assert found["forkjoin_delivery_batch_size_sum", "orchestrator.gate"] >= 5
    assert found["forkjoin_published_messages_total", "CONFIRMED"] >= 41
    assert sum(number for labels, number in found.items() if labels[0] == "forkjoin_inputs_total") >= 21
    assert found["forkjoin_transaction_inputs_count",] == found["forkjoin_transaction_seconds_count",] > 1
    assert (found["forkjoin_runs", "RUNNING"], found["forkjoin_gates_held",], found["forkjoin_gates",]) == (0, 0, 0)


async def test_a_replica_that_nobody_asks_asks_the_database_nothing_for_it(
    working: Watched, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    asked: list[str] = []
    looks = 0
    what_is_due = PostgresStorage.what_is_due

    async def counted(self: PostgresStorage, replica_id: str) -> Any:
        nonlocal looks
        looks += 1
        return await what_is_due(self, replica_id)

    async def noted(name: str) -> None:
        asked.append(name)

    monkeypatch.setattr(PostgresStorage, "what_is_due", counted)
    monkeypatch.setattr(monitoring, "take_census", lambda _: noted("census"))
    monkeypatch.setattr(monitoring, "schema_difference", lambda _: noted("schema"))
    async with open_endpoint(working.settings, 0, working.monitor, working.monitor.meter.loop_lag) as port:
        await eventually(lambda: looks >= 3)
        assert asked == []
        assert (await asked_at(port, "/livez")).status == 200
        assert asked == [], "/livez asks nobody"
        await asked_at(port, "/readyz")
        assert asked == ["schema"]


async def test_repetitions_and_dead_letters_are_counted(system: System, working: Watched) -> None:
    await system.start_worker(echo)
    run_id = await system.submit(one_block(1))
    assert await system.ended(run_id) == "COMPLETED"
    [task_id] = (await system.task_ids(run_id)).values()
    await system.report(completed(run_id, task_id, {"n": 0}, worker_id="worker"))
    await system.publish("orchestrator.results", b"{")
    assert len(await system.stored_dead_letters(1)) == 1
    found = await working.samples()
    late = {labels[1:]: number for labels, number in found.items() if labels[0] == "forkjoin_inputs_total"}
    assert sum(number for labels, number in late.items() if {"DUPLICATE", "STALE"} & set(labels)) == 1
    assert found["forkjoin_dead_lettered_total", "malformed_message", "orchestrator.results"] == 1
    assert found["forkjoin_dead_letters", "malformed_message"] == 1


async def test_what_is_under_way_is_seen_in_the_census(
    system: System, working: Watched, eventually: Eventually
) -> None:
    go_on = asyncio.Event()

    async def held(input: Any) -> Any:
        await go_on.wait()
        return input

    await system.start_worker(held)
    run_id: UUID = await system.submit(one_block(6, agent_name="held", max_parallelism=2))

    async def two_run() -> bool:
        found = await working.samples()
        return found.get(("forkjoin_branches", "RUNNING")) == 2

    await eventually(two_run)
    found = await working.samples()
    go_on.set()
    assert await system.ended(run_id) == "COMPLETED"
    assert found["forkjoin_runs", "RUNNING"] == 1
    assert found["forkjoin_branches", "PENDING"] == 4
    assert found["forkjoin_agent_attempts", "held", "RUNNING"] == 2
    assert (found["forkjoin_gate_slots",], found["forkjoin_gate_slots_used",]) == (2, 2)
    assert (found["forkjoin_gate_branches_waiting",], found["forkjoin_gates_held",]) == (4, 1)
    assert found["forkjoin_event_loop_lag_seconds_count",] == 0, "nobody has opened the port"
