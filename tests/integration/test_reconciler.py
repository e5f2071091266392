"""The reconciler, look by look: what is lost is sent again, and what only waits, or is only unheard, is left alone."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from messaging import topology
from messaging.port import Broker, Consumer, OutgoingMessage, PublishOutcome
from orchestrator.service import reconciler as reconciling
from orchestrator.service.reconciler import Reconciler
from orchestrator.storage.postgres import PostgresStorage
from schemas.messages import AgentResult
from schemas.statuses import ReportStatus
from tests.conftest import Eventually
from tests.integration.by_hand import driver_without_relay, requested
from tests.integration.documents import one_block
from tests.integration.system import System, completed

SILENT_AFTER = 60.0


async def echo(input: Any) -> Any:
    return input


@pytest.fixture
async def results(system: System) -> AsyncIterator[Consumer]:
    """A consumer of the results, as every replica is one."""
    await system.broker.declare(topology.EXCHANGES, topology.QUEUES)
    consumer = await system.broker.consume(topology.RESULTS_QUEUE, prefetch=1)
    yield consumer
    await consumer.close()


@pytest.fixture
def reconciler(system: System, results: Consumer) -> Reconciler:
    """A reconciler that looks when the test says so; what it decides stays in the outbox."""
    return reconciler_of(system)


def reconciler_of(system: System, broker: Broker | None = None) -> Reconciler:
    driver = driver_without_relay(system.database)
    return Reconciler(PostgresStorage(system.database), broker or system.broker, driver, silent_after=SILENT_AFTER)


async def lost(system: System, branches: int, agent_name: str = "echo") -> UUID:
    """Return a run whose tasks have been sent, long ago, and are nowhere."""
    await system.broker.declare(topology.EXCHANGES, [*topology.QUEUES, topology.agent_queue(agent_name)])
    event = await requested(system.database, one_block(branches, agent_name=agent_name))
    await driver_without_relay(system.database).drive([event])
    await system.fetch("DELETE FROM outbox")
    await age(system, 10 * SILENT_AFTER)
    return event.run_id


async def age(system: System, seconds: float) -> None:
    await system.fetch(
        "UPDATE step_executions SET queued_at = queued_at - make_interval(secs => $1), "
        "heartbeat_at = heartbeat_at - make_interval(secs => $1) WHERE agent_name IS NOT NULL",
        seconds,
    )


async def sent_again(system: System) -> set[str]:
    """Return the branches whose tasks are in the outbox."""
    return {row["step_id"] for row in await system.fetch("SELECT step_id FROM outbox WHERE task_id IS NOT NULL")}


async def put_into_queue(system: System, agent_name: str, count: int) -> None:
    await system.broker.publish(
        [OutgoingMessage(topology.TASKS_EXCHANGE, agent_name, "AgentTask", str(uuid4()), b"{}") for _ in range(count)]
    )


async def test_it_takes_two_looks_to_send_lost_tasks_again(system: System, reconciler: Reconciler) -> None:
    run_id = await lost(system, 3)
    before = await system.task_ids(run_id)
    assert await reconciler.run_once() == 0
    assert await sent_again(system) == set()
    assert await reconciler.run_once() == 3
    assert await sent_again(system) == {"b0", "b1", "b2"}
    assert await system.task_ids(run_id) == before


async def test_what_was_sent_again_completes_the_run(system: System, reconciler: Reconciler, results: Consumer) -> None:
    run_id = await lost(system, 3)
    await reconciler.run_once()
    await reconciler.run_once()
    await results.close()
    await system.make_due()
    await system.start_worker(echo)
    await system.start_replica()
    assert await system.ended(run_id) == "COMPLETED"
    assert (await system.run_row(run_id))["output"] == {f"b{n}": {"n": n} for n in range(3)}


async def test_tasks_that_wait_in_their_queue_are_left_alone_however_long(
    system: System, reconciler: Reconciler
) -> None:
    await lost(system, 3)
    await put_into_queue(system, "echo", 3)
    assert [await reconciler.run_once() for _ in range(4)] == [0, 0, 0, 0]


async def test_of_several_the_oldest_are_the_lost_ones(system: System, reconciler: Reconciler) -> None:
    await lost(system, 5)
    await system.fetch(
        "UPDATE step_executions SET queued_at = queued_at - make_interval(secs => 10 - position) "
        "WHERE agent_name IS NOT NULL"
    )
    await put_into_queue(system, "echo", 2)
    await reconciler.run_once()
    assert await reconciler.run_once() == 3
    assert await sent_again(system) == {"b0", "b1", "b2"}


async def test_a_queue_full_of_fresh_tasks_does_not_hide_the_lost_ones(system: System, reconciler: Reconciler) -> None:
    await lost(system, 2)
    event = await requested(system.database, one_block(5))
    await driver_without_relay(system.database).drive([event])
    await system.fetch("DELETE FROM outbox")
    await put_into_queue(system, "echo", 5)
    await reconciler.run_once()
    assert await reconciler.run_once() == 2


async def test_what_a_worker_has_claimed_is_suspected_last(system: System, reconciler: Reconciler) -> None:
    """A purge takes what waits and not what workers have; those come back to the queue when the worker dies."""
    run_id = await lost(system, 3)
    await system.fetch("UPDATE step_executions SET status = 'RUNNING' WHERE run_id = $1 AND step_id = 'b0'", run_id)
    await put_into_queue(system, "echo", 1)
    await reconciler.run_once()
    assert await reconciler.run_once() == 2
    assert await sent_again(system) == {"b1", "b2"}


async def test_a_running_attempt_may_be_silent_for_longer_because_its_worker_speaks_at_an_interval(
    system: System, reconciler: Reconciler
) -> None:
    run_id = await lost(system, 1)
    await system.broker.delete_queue("agent.echo")
    await system.fetch(
        "UPDATE step_executions SET status = 'RUNNING', heartbeat_at = now() - make_interval(secs => $2) "
        "WHERE run_id = $1 AND step_id = 'b0'",
        run_id,
        2.5 * SILENT_AFTER,
    )
    assert [await reconciler.run_once(), await reconciler.run_once()] == [0, 0]
    await age(system, SILENT_AFTER)
    assert [await reconciler.run_once(), await reconciler.run_once()] == [0, 1]


async def test_a_task_that_is_still_to_be_sent_is_not_lost(system: System, reconciler: Reconciler) -> None:
    event = await requested(system.database, one_block(2))
    await driver_without_relay(system.database).drive([event])
    await age(system, 10 * SILENT_AFTER)
    assert [await reconciler.run_once(), await reconciler.run_once()] == [0, 0]


async def test_while_results_wait_to_be_applied_nobody_counts_as_silent(
    system: System, reconciler: Reconciler, results: Consumer, eventually: Eventually
) -> None:
    await lost(system, 1)
    assert await reconciler.run_once() == 0
    for _ in range(2):  # one in hand, one behind it
        await system.publish(topology.RESULTS_QUEUE.name, b"{}")

    async def ready(count: int) -> bool:
        return (await system.broker.check_queue(topology.RESULTS_QUEUE.name)).ready == count

    await eventually(lambda: ready(1))
    assert [await reconciler.run_once(), await reconciler.run_once()] == [0, 0]
    await results.ack(await results.receive(1))
    await eventually(lambda: ready(0))
    assert [await reconciler.run_once(), await reconciler.run_once()] == [0, 1]


async def test_an_answer_that_denies_our_own_consumer_is_none(
    system: System, reconciler: Reconciler, results: Consumer
) -> None:
    """RabbitMQ says of a queue whose leader does not answer that it has neither messages nor consumers."""
    await lost(system, 1)
    await results.close()
    assert [await reconciler.run_once() for _ in range(3)] == [0, 0, 0]


async def test_a_queue_that_seems_to_have_neither_messages_nor_consumers_is_doubted_for_longer(
    system: System, reconciler: Reconciler
) -> None:
    await lost(system, 1)
    await age(system, -7 * SILENT_AFTER)
    assert [await reconciler.run_once() for _ in range(3)] == [0, 0, 0]
    worker = await system.broker.consume(topology.agent_queue("echo"), prefetch=1)
    assert [await reconciler.run_once(), await reconciler.run_once()] == [0, 1]
    await worker.close()


async def test_a_queue_that_does_not_exist_holds_nothing_for_certain(system: System, reconciler: Reconciler) -> None:
    await lost(system, 1)
    await age(system, -7 * SILENT_AFTER)
    await system.broker.delete_queue("agent.echo")
    assert [await reconciler.run_once(), await reconciler.run_once()] == [0, 1]


async def test_while_the_broker_takes_no_messages_nobody_counts_as_silent(
    system: System, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lost(system, 1)

    async def blocked(messages: Any) -> list[PublishOutcome]:
        return [PublishOutcome.UNKNOWN for _ in messages]

    with monkeypatch.context() as alarm:
        alarm.setattr(system.broker, "publish", blocked)
        assert [await reconciler.run_once() for _ in range(5)] == [0] * 5
    assert await reconciler.run_once() + await reconciler.run_once() == 1


async def test_a_broker_that_cannot_be_reached_says_nothing_about_its_queues(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "BROKER_SECONDS", 0.2)
    await lost(system, 1)
    gone = await system.connect("gone")
    reconciler = reconciler_of(system, gone)
    assert await reconciler.run_once() == 0
    await gone.close()
    assert [await reconciler.run_once(), await reconciler.run_once()] == [0, 0]


async def test_two_replicas_that_look_at_once_send_each_task_once(system: System, results: Consumer) -> None:
    await lost(system, 4)
    one, other = reconciler_of(system), reconciler_of(system)
    await asyncio.gather(one.run_once(), other.run_once())
    counts = await asyncio.gather(one.run_once(), other.run_once())
    assert sum(counts) == 4
    assert len(await system.fetch("SELECT FROM outbox WHERE task_id IS NOT NULL")) == 4


async def test_each_time_in_vain_takes_twice_the_silence(system: System, reconciler: Reconciler) -> None:
    """Somebody's worker that never says what it does would get its task over and over."""
    await lost(system, 1)
    assert [await reconciler.run_once(), await reconciler.run_once()] == [0, 1]
    await system.fetch("DELETE FROM outbox")
    await age(system, 7 * SILENT_AFTER)
    assert [await reconciler.run_once() for _ in range(3)] == [0, 0, 0]
    await age(system, SILENT_AFTER)
    assert [await reconciler.run_once(), await reconciler.run_once()] == [0, 1]


async def test_a_run_that_somebody_keeps_locked_does_not_stop_the_others(
    system: System, reconciler: Reconciler
) -> None:
    locked, free = await lost(system, 1), await lost(system, 1)
    await reconciler.run_once()
    async with system.database.transaction() as connection:
        await connection.execute("SELECT FROM runs WHERE id = $1 FOR UPDATE", locked)
        assert await reconciler.run_once() == 1
    assert [row["run_id"] for row in await system.fetch("SELECT run_id FROM outbox WHERE task_id IS NOT NULL")] == [
        free
    ]
    assert [await reconciler.run_once(), await reconciler.run_once()] == [0, 1]


async def test_agents_take_turns_where_there_are_many(
    system: System, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "AGENTS", 2)
    for agent_name in ("a", "b", "c"):
        await lost(system, 1, agent_name)
    for agent_name in ("a", "b"):
        await put_into_queue(system, agent_name, 1)
    assert sum([await reconciler.run_once() for _ in range(4)]) == 1


async def test_a_result_that_comes_after_all_is_applied_and_that_of_the_second_task_is_a_duplicate(
    system: System, reconciler: Reconciler, results: Consumer, eventually: Eventually
) -> None:
    run_id = await lost(system, 1)
    await reconciler.run_once()
    await reconciler.run_once()
    await results.close()
    await system.start_replica()
    result = completed(run_id, (await system.task_ids(run_id))["b0"], "late")
    await system.report(result, result)
    assert await system.ended(run_id) == "COMPLETED"
    await eventually(lambda: system.verdicts().get("DUPLICATE duplicate_result") == 1)
    assert (await system.run_row(run_id))["output"] == {"b0": "late"}


async def test_a_sign_of_life_ends_the_suspicion(system: System, reconciler: Reconciler, results: Consumer) -> None:
    run_id = await lost(system, 1)
    assert await reconciler.run_once() == 0
    await results.close()
    await system.start_replica()
    task_id = (await system.task_ids(run_id))["b0"]
    await system.report(AgentResult(run_id=run_id, task_id=task_id, status=ReportStatus.STARTED, worker_id="by-hand"))
    await system.step_is(run_id, "b0", "RUNNING")
    assert [await reconciler.run_once(), await reconciler.run_once()] == [0, 0]
