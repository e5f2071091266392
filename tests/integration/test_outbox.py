"""The outbox: what a crash leaves behind is sent, what was sent is forgotten, what is sent twice does no harm."""

from typing import Any
from uuid import UUID

import pytest

from messaging import topology
from messaging.port import OutgoingMessage, PublishOutcome
from orchestrator.engine.inputs import ExternalInput, TaskReported
from orchestrator.service.driver import Driver
from orchestrator.service.relay import Relay
from tests.conftest import Eventually
from tests.integration.by_hand import driver_without_relay, requested
from tests.integration.documents import Document, agent, one_block, workflow
from tests.integration.system import System, completed

CHAIN = workflow({"one": agent("echo", next_step="two"), "two": agent("echo")})


async def echo(input: Any) -> Any:
    return input


@pytest.mark.parametrize(
    "document", [CHAIN, one_block(20), one_block(20, max_parallelism=3)], ids=["chain", "block", "gate"]
)
async def test_what_a_process_committed_and_did_not_publish_is_sent_by_another(
    system: System, document: Document
) -> None:
    event = await requested(system.database, document)
    await driver_without_relay(system.database).drive([event])
    assert await system.count("outbox") > 0
    await system.make_due()
    await system.fetch("UPDATE gates SET lease_until = now()")
    await system.start_worker(echo)
    await system.start_replica()
    assert await system.ended(event.run_id) == "COMPLETED"
    await system.quiet()


async def test_a_sweeper_leaves_messages_to_the_process_that_wrote_them_for_some_seconds(system: System) -> None:
    await driver_without_relay(system.database).drive([await requested(system.database, CHAIN)])
    rows = await system.fetch("SELECT due_at - created_at AS delay FROM outbox")
    assert {row["delay"].total_seconds() for row in rows} == {10.0}


async def test_messages_of_which_nobody_knows_whether_they_arrived_are_sent_again(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[UUID] = []
    publish = Relay._publish

    async def doubtful(self: Relay, rows: Any, **options: Any) -> Any:
        known = set(tries)
        tries.extend(row.message_id for row in rows)
        outcomes = await publish(self, rows, **options)
        first = [row.message_id not in known for row in rows]
        return [PublishOutcome.UNKNOWN if new else outcome for new, outcome in zip(first, outcomes, strict=True)]

    monkeypatch.setattr(Relay, "_publish", doubtful)
    await system.start_replica()
    await system.start_worker(echo)
    run_id = await system.submit(one_block(5))
    assert await system.ended(run_id) == "COMPLETED"
    await system.quiet()
    assert {tries.count(message_id) for message_id in tries} == {2}


async def test_a_commit_whose_confirmation_was_lost_is_applied_again_without_harm(system: System) -> None:
    driver = driver_without_relay(system.database)
    event = await requested(system.database, one_block(3))
    await apply_twice(driver, [event])
    tasks = await system.task_ids(event.run_id)
    results: list[ExternalInput] = [TaskReported(completed(event.run_id, task, name)) for name, task in tasks.items()]
    for result in results:
        await apply_twice(driver, [result])
    await apply_twice(driver, results)
    assert await system.status(event.run_id) == "COMPLETED"
    assert (await system.run_row(event.run_id))["output"] == {"b0": "b0", "b1": "b1", "b2": "b2"}
    rows = await system.fetch("SELECT type, count(*) FROM outbox WHERE type = 'AgentTask' GROUP BY type")
    assert [tuple(row) for row in rows] == [("AgentTask", 3)]


async def test_a_message_that_was_sent_and_not_forgotten_is_sent_again_without_harm(
    system: System, eventually: Eventually
) -> None:
    calls: list[Any] = []

    async def note(input: Any) -> None:
        calls.append(input)

    event = await requested(system.database, workflow({"one": agent("note")}))
    await driver_without_relay(system.database).drive([event])
    rows = await system.fetch("SELECT * FROM outbox WHERE type = 'AgentTask'")
    await system.broker.declare(topology.EXCHANGES, [topology.agent_queue("note")])
    await system.broker.publish(
        [
            OutgoingMessage(row["exchange"], row["routing_key"], row["type"], str(row["message_id"]), row["body"])
            for row in rows
        ]
    )
    await system.make_due()
    await system.start_replica()
    await eventually(lambda: no_rows(system, "outbox"))
    await system.start_worker(note)
    assert await system.ended(event.run_id) == "COMPLETED"
    await system.quiet()
    assert len(calls) <= 2


async def test_two_sweepers_at_once_do_not_send_the_same_rows(system: System) -> None:
    await driver_without_relay(system.database).drive([await requested(system.database, one_block(1_200))])
    await system.broker.declare(topology.EXCHANGES, [topology.agent_queue("echo")])
    await system.make_due()
    for _ in range(3):
        await system.start_replica()
    await system.quiet()
    assert (await system.broker.check_queue("agent.echo")).ready == 1_200


async def no_rows(system: System, table: str) -> bool:
    return await system.count(table) == 0


async def apply_twice(driver: Driver, inputs: list[ExternalInput]) -> None:
    for _ in range(2):
        await driver.drive(inputs)
