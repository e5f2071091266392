"""max_parallelism on real queues and rows: it holds at every instant, and nothing gets stuck.

A trigger in the test's database notes, after every statement, how many unfinished branches of a block are dispatched.
The run's row is locked while that changes, so its maximum is the truth. The agents count themselves too.
"""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from messaging import topology
from messaging.port import PublishOutcome
from orchestrator.service.relay import Relay
from orchestrator.storage import gates, writes
from schemas.statuses import ResultStatus
from tests.conftest import Eventually
from tests.integration.documents import one_block
from tests.integration.system import System, completed

_NOTE_DISPATCHED = """
    CREATE TABLE peaks (run_id uuid, block_id text, dispatched bigint, counter bigint);
    CREATE FUNCTION note_dispatched() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO peaks
        SELECT b.run_id, b.step_id,
            (SELECT count(*) FROM step_executions s WHERE s.run_id = b.run_id AND s.parent_step_id = b.step_id
                AND s.status IN ('QUEUED', 'RUNNING')),
            b.branches_dispatched
        FROM step_executions b
        WHERE b.max_parallelism IS NOT NULL AND (b.run_id, b.step_id) IN (SELECT run_id, parent_step_id FROM changed);
        RETURN NULL;
    END $$;
    CREATE TRIGGER note_dispatched AFTER UPDATE ON step_executions
        REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION note_dispatched();
"""


class Counted:
    """An agent that counts how many of its kind run, and gives the others a chance to do so too."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.calls: list[int] = []

    async def count(self, input: dict[str, Any]) -> Any:
        self.calls.append(input["n"])
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(20):
                await asyncio.sleep(0)
        finally:
            self.running -= 1
        return input


class Stuck:
    """An agent that ends when it is told to."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.go_on = asyncio.Event()

    async def stuck(self, input: dict[str, Any]) -> Any:
        self.calls.append(input["n"])
        await self.go_on.wait()
        return input


@pytest.fixture
async def watched(system: System) -> System:
    """The system, with the trigger."""
    await system.connection.execute(_NOTE_DISPATCHED)
    return system


async def peak(system: System, run_id: UUID) -> int:
    """Return how many branches of the run's block were dispatched at most at any instant."""
    rows = await system.fetch("SELECT max(dispatched), max(counter) FROM peaks WHERE run_id = $1", run_id)
    assert rows[0][0] >= rows[0][1], "the block's counter is above the number of its dispatched branches"
    return int(rows[0][0])


async def gate_is_gone(system: System, run_id: UUID) -> None:
    await system.quiet()
    assert not await system.gate_exists(run_id, "block")


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("limit", [1, 2, 11])
async def test_no_more_branches_than_the_limit_are_dispatched_at_any_instant(
    watched: System, limit: int, replicas: int
) -> None:
    counted = Counted()
    for _ in range(replicas):
        await watched.start_replica()
    await watched.start_worker(counted.count, concurrency=20)
    result = await watched.run(one_block(12, agent_name="count", max_parallelism=limit))
    assert result.status is ResultStatus.COMPLETED
    assert await peak(watched, result.run_id) == limit
    assert counted.most <= limit
    assert sorted(counted.calls) == list(range(12))
    await gate_is_gone(watched, result.run_id)


@pytest.mark.parametrize("limit", [12, 13, 70_000])
async def test_a_limit_that_holds_nothing_back_needs_no_gate(system: System, limit: int) -> None:
    counted = Counted()
    await system.start_replica()
    await system.start_worker(counted.count, concurrency=20)
    document = one_block(12, agent_name="count", max_parallelism=limit)
    result = await system.run(document)
    assert result.status is ResultStatus.COMPLETED
    rows = await system.steps(result.run_id)
    assert rows["block"]["max_parallelism"] == limit
    assert rows["block"]["branches_passed"] == 0, "no branch went through a gate"
    await gate_is_gone(system, result.run_id)


async def test_a_limit_above_the_largest_prefetch_of_amqp_has_a_gate_with_an_open_window(
    system: System, eventually: Eventually
) -> None:
    stuck = Stuck()
    first = await system.start_replica()
    await system.start_worker(stuck.stuck, concurrency=20)
    run_id = await system.submit(one_block(4, agent_name="stuck", max_parallelism=2))
    await eventually(lambda: len(stuck.calls) == 2)
    await system.end(first, crash=True)
    # A block of 70,001 branches would say the same, slowly: what a replica that takes the gate over sees is its row.
    await system.fetch("UPDATE gates SET max_parallelism = 70000, lease_until = now()")
    await system.start_replica()
    stuck.go_on.set()
    assert await system.ended(run_id) == "COMPLETED"
    await gate_is_gone(system, run_id)


async def test_branches_are_dispatched_in_the_order_of_the_definition(watched: System) -> None:
    counted = Counted()
    await watched.start_replica()
    await watched.start_worker(counted.count, concurrency=20)
    result = await watched.run(one_block(30, agent_name="count", max_parallelism=1))
    assert result.status is ResultStatus.COMPLETED
    assert counted.calls == list(range(30))


async def test_a_failing_branch_frees_its_slot(watched: System) -> None:
    async def broken(input: Any) -> Any:
        raise ValueError("no")

    await watched.start_replica()
    await watched.start_worker(broken)
    result = await watched.run(one_block(9, agent_name="broken", max_parallelism=2))
    assert result.status is ResultStatus.FAILED
    assert await peak(watched, result.run_id) == 2
    assert (await watched.steps(result.run_id))["block"]["branches_failed"] == 9
    await gate_is_gone(watched, result.run_id)


async def test_two_limited_blocks_at_once_do_not_share_their_limits(watched: System) -> None:
    counted = Counted()
    await watched.start_replica()
    await watched.start_replica()
    await watched.start_worker(counted.count, concurrency=20)
    runs = await asyncio.gather(
        *(watched.run(one_block(8, agent_name="count", max_parallelism=limit)) for limit in (1, 3))
    )
    assert [await peak(watched, run.run_id) for run in runs] == [1, 3]
    for run in runs:
        await gate_is_gone(watched, run.run_id)


async def test_another_replica_takes_the_gate_of_one_that_died_within_seconds_and_the_limit_holds(
    watched: System, eventually: Eventually
) -> None:
    stuck = Stuck()
    first = await watched.start_replica()
    await watched.start_worker(stuck.stuck, concurrency=20)
    run_id = await watched.submit(one_block(6, agent_name="stuck", max_parallelism=2))
    await eventually(lambda: len(stuck.calls) == 2)
    await watched.start_replica("successor")
    await watched.end(first, crash=True)
    await eventually(lambda: holder_is(watched, run_id, "successor"))
    stuck.go_on.set()
    assert await watched.ended(run_id) == "COMPLETED"
    assert await peak(watched, run_id) == 2
    assert sorted(stuck.calls) == list(range(6))
    await gate_is_gone(watched, run_id)


async def test_a_replica_that_stops_in_order_gives_its_gates_up_at_once(
    watched: System, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (gates, writes):  # nobody may wait for the end of its lease
        monkeypatch.setattr(module, "GATE_LEASE_SECONDS", 600.0)
    stuck = Stuck()
    first = await watched.start_replica()
    await watched.start_worker(stuck.stuck, concurrency=20)
    run_id = await watched.submit(one_block(6, agent_name="stuck", max_parallelism=2))
    await eventually(lambda: len(stuck.calls) == 2)
    await watched.start_replica("successor")
    await watched.end(first, crash=False)
    await eventually(lambda: holder_is(watched, run_id, "successor"))
    stuck.go_on.set()
    assert await watched.ended(run_id) == "COMPLETED"
    assert await peak(watched, run_id) == 2
    assert sorted(stuck.calls) == list(range(6))
    await gate_is_gone(watched, run_id)


async def test_tickets_that_are_lost_with_their_queue_do_not_stop_the_block(
    watched: System, eventually: Eventually
) -> None:
    stuck = Stuck()
    first = await watched.start_replica()
    await watched.start_worker(stuck.stuck, concurrency=20)
    run_id = await watched.submit(one_block(6, agent_name="stuck", max_parallelism=2))
    await eventually(lambda: len(stuck.calls) == 2)
    await watched.end(first, crash=True)
    await watched.broker.delete_queue(topology.gate_queue(run_id, "block").name)
    await watched.fetch("UPDATE gates SET lease_until = now()")
    await watched.start_replica()
    stuck.go_on.set()
    assert await watched.ended(run_id) == "COMPLETED"
    assert await peak(watched, run_id) == 2
    assert sorted(stuck.calls) == list(range(6))
    await gate_is_gone(watched, run_id)


async def test_tickets_that_never_arrived_do_not_keep_the_block_from_starting(
    watched: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()
    first = await watched.start_replica()
    await watched.start_worker(counted.count, concurrency=20)
    _lose_tickets(monkeypatch)
    run_id = await watched.submit(one_block(6, agent_name="count", max_parallelism=2))
    assert await watched.ended(run_id) == "COMPLETED"
    assert await peak(watched, run_id) == 2
    assert sorted(counted.calls) == list(range(6))
    await gate_is_gone(watched, run_id)
    assert first.replica.health().status == "ok"


async def test_tickets_that_come_again_after_a_lost_connection_are_not_sent_again(
    watched: System, eventually: Eventually, request: pytest.FixtureRequest
) -> None:
    stuck = Stuck()
    await watched.start_replica()
    await watched.start_worker(stuck.stuck, concurrency=20)
    run_id = await watched.submit(one_block(6, agent_name="stuck", max_parallelism=2))
    await eventually(lambda: len(stuck.calls) == 2)
    if watched.brokers.amqp_url is None:
        watched.brokers.server.drop_connections()
    else:
        assert request.getfixturevalue("rabbitmq").close_connections(at_least=6) >= 6
    stuck.go_on.set()
    assert await watched.ended(run_id) == "COMPLETED"
    assert await peak(watched, run_id) == 2
    # Results may have been lost on their way, so that workers repeat; tasks were not sent again.
    attempts = {row["attempt"] for name, row in (await watched.steps(run_id)).items() if name != "block"}
    assert attempts == {1}
    await gate_is_gone(watched, run_id)


async def test_cancelling_a_limited_block_removes_its_gate(watched: System, eventually: Eventually) -> None:
    stuck = Stuck()
    await watched.start_replica()
    await watched.start_worker(stuck.stuck, concurrency=20)
    run_id = await watched.submit(one_block(6, agent_name="stuck", max_parallelism=2))
    await eventually(lambda: len(stuck.calls) == 2)
    await watched.cancel(run_id)
    assert await watched.ended(run_id) == "CANCELLED"
    stuck.go_on.set()
    await gate_is_gone(watched, run_id)
    assert len(stuck.calls) == 2


async def test_tickets_of_a_cancelled_block_that_were_still_to_be_sent_are_forgotten(
    watched: System, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    async def never(input: Any) -> None:
        await asyncio.Event().wait()

    await watched.start_replica()
    await watched.start_worker(never)
    with monkeypatch.context() as patched:  # tickets stay in the outbox, as those of a very large block do for a while
        _hold_tickets(patched)
        run_id = await watched.submit(one_block(6, agent_name="never", max_parallelism=2))
        await watched.step_is(run_id, "block", "RUNNING")
        await watched.cancel(run_id)
        assert await watched.ended(run_id) == "CANCELLED"
        await eventually(lambda: has_no_gate(watched))
    await watched.make_due()
    await gate_is_gone(watched, run_id)


async def test_a_report_by_hand_frees_a_slot_as_any_other(watched: System, eventually: Eventually) -> None:
    stuck = Stuck()
    await watched.start_replica()
    await watched.start_worker(stuck.stuck, concurrency=20)
    run_id = await watched.submit(one_block(4, agent_name="stuck", max_parallelism=1))
    for number in range(4):
        await eventually(lambda number=number: stuck.calls == list(range(number + 1)))
        task_id = (await watched.task_ids(run_id))[f"b{number}"]
        await watched.report(completed(run_id, task_id, number))
    assert await watched.ended(run_id) == "COMPLETED"
    assert (await watched.run_row(run_id))["output"] == {f"b{number}": number for number in range(4)}
    stuck.go_on.set()
    await gate_is_gone(watched, run_id)


def _lose_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each ticket lost by the broker after it was confirmed."""
    publish = Relay._publish

    async def lossy(self: Relay, rows: Any, **options: Any) -> Any:
        kept = [row for row in rows if row.exchange != topology.GATES_EXCHANGE]
        outcomes = iter(await publish(self, kept, **options))
        return [PublishOutcome.CONFIRMED if row.exchange == topology.GATES_EXCHANGE else next(outcomes) for row in rows]

    monkeypatch.setattr(Relay, "_publish", lossy)


def _hold_tickets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no ticket confirmed."""
    publish = Relay._publish

    async def slow(self: Relay, rows: Any, **options: Any) -> Any:
        kept = [row for row in rows if row.exchange != topology.GATES_EXCHANGE]
        outcomes = iter(await publish(self, kept, **options))
        return [PublishOutcome.UNKNOWN if row.exchange == topology.GATES_EXCHANGE else next(outcomes) for row in rows]

    monkeypatch.setattr(Relay, "_publish", slow)


async def holder_is(system: System, run_id: UUID, name: str) -> bool:
    rows = await system.fetch("SELECT holder FROM gates WHERE run_id = $1", run_id)
    return [row["holder"] for row in rows] == [name]


async def has_no_gate(system: System) -> bool:
    return await system.count("gates") == 0
