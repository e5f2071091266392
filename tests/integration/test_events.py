"""orchestrator.events: every status change is told, in an order that makes sense, many in one message."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from messaging import topology
from messaging.port import Binding, Consumer, Queue, QueueKind
from schemas.codec import decode
from schemas.messages import RunEvent, StepEvent
from tests.integration.documents import agent, one_block, workflow
from tests.integration.system import System

Collect = Callable[[UUID], Awaitable[list[RunEvent]]]


async def echo(input: Any) -> Any:
    return input


async def everything(system: System) -> Consumer:
    """Consume the events of all runs."""
    await system.broker.declare(topology.EXCHANGES, ())
    binding = Binding(topology.EVENTS_EXCHANGE, "run.#")
    return await system.broker.consume(Queue("test.events", QueueKind.EXCLUSIVE, (binding,)), prefetch=0)


async def told(consumer: Consumer, run_id: UUID) -> list[RunEvent]:
    """Return the messages about a run, up to the one that tells of its end."""
    messages: list[RunEvent] = []
    async with asyncio.timeout(30):
        while True:
            deliveries = await consumer.receive(1_000)
            await consumer.ack(deliveries)
            for delivery in deliveries:
                assert (delivery.type, delivery.routing_key) == ("RunEvent", f"run.{run_id}")
                messages.append(decode(RunEvent, delivery.body))
                if any(change.step_id is None and change.status.is_final for change in messages[-1].events):
                    return messages


def by_step(messages: list[RunEvent]) -> dict[str | None, list[str]]:
    statuses: dict[str | None, list[str]] = defaultdict(list)
    for message in messages:
        for change in message.events:
            statuses[change.step_id].append(change.status.value)
    return dict(statuses)


def changes(messages: list[RunEvent]) -> list[StepEvent]:
    return [change for message in messages for change in message.events]


async def test_every_status_change_is_told_in_order(system: System) -> None:
    consumer = await everything(system)
    await system.start_replica()
    await system.start_worker(echo)
    document = one_block(5, next_step="last")
    document["steps"]["last"] = agent("echo")
    run_id = await system.submit(document)
    messages = await told(consumer, run_id)
    lived = ["QUEUED", "RUNNING", "COMPLETED"]
    assert by_step(messages) == {
        None: ["RUNNING", "COMPLETED"],
        "block": ["RUNNING", "COMPLETED"],
        "last": lived,
        **{f"b{number}": lived for number in range(5)},
    }
    place = {(change.step_id, change.status.value): index for index, change in enumerate(changes(messages))}
    assert place[None, "RUNNING"] < place["block", "RUNNING"] < place["b0", "QUEUED"]
    assert max(place[f"b{number}", "COMPLETED"] for number in range(5)) < place["block", "COMPLETED"]
    assert place["block", "COMPLETED"] < place["last", "QUEUED"] < place["last", "COMPLETED"] < place[None, "COMPLETED"]
    assert [change.branch_name for change in changes(messages) if change.step_id == "b1"] == ["b1"] * 3
    assert {change.parent_step_id for change in changes(messages) if change.step_id == "b1"} == {"block"}


async def test_a_branch_that_waits_at_its_gate_is_told_of_as_pending(system: System) -> None:
    consumer = await everything(system)
    await system.start_replica()
    await system.start_worker(echo)
    run_id = await system.submit(one_block(4, max_parallelism=1))
    statuses = by_step(await told(consumer, run_id))
    assert [statuses[f"b{number}"] for number in range(4)] == [["PENDING", "QUEUED", "RUNNING", "COMPLETED"]] * 4


async def test_failures_carry_their_error(system: System) -> None:
    async def broken(input: Any) -> None:
        raise ValueError("the well is dry")

    consumer = await everything(system)
    await system.start_replica()
    await system.start_worker(broken)
    run_id = await system.submit(one_block(2, agent_name="broken"))
    found = {change.step_id: change for change in changes(await told(consumer, run_id)) if change.error is not None}
    assert set(found) == {"b0", "b1", "block", None}
    error = found["b0"].error
    assert error is not None
    assert (error.code, error.message) == ("agent_error", "the well is dry")


async def test_a_cancellation_tells_of_every_step_that_it_ended(system: System) -> None:
    async def waits(input: Any) -> None:
        await asyncio.Event().wait()

    consumer = await everything(system)
    await system.start_replica()
    await system.start_worker(waits)
    run_id = await system.submit(one_block(6, agent_name="waits", max_parallelism=2))
    await system.step_is(run_id, "b1", "QUEUED")
    await system.cancel(run_id)
    statuses = by_step(await told(consumer, run_id))
    assert {step: seen[-1] for step, seen in statuses.items()} == {
        None: "CANCELLED",
        "block": "CANCELLED",
        **{f"b{number}": "CANCELLED" for number in range(6)},
    }


async def test_the_changes_of_one_transaction_are_one_message(system: System) -> None:
    consumer = await everything(system)
    await system.start_replica()
    await system.start_worker(echo, concurrency=200)
    run_id = await system.submit(one_block(300))
    messages = await told(consumer, run_id)
    assert len(changes(messages)) == 2 + 2 + 3 * 300
    assert len(messages[0].events) == 1 + 1 + 300, "the request, the block and all its branches"
    assert len(messages) < 300 / 3


async def test_a_watcher_that_comes_late_misses_what_was_and_sees_what_comes(system: System) -> None:
    go_on = asyncio.Event()

    async def waits(input: Any) -> None:
        await go_on.wait()

    await system.start_replica()
    await system.start_worker(waits)
    run_id = await system.submit(workflow({"one": agent("waits")}))
    await system.step_is(run_id, "one", "RUNNING")
    async with system.client.events(run_id) as batches:
        go_on.set()
        seen: list[tuple[str | None, str]] = []
        async with asyncio.timeout(30):
            async for batch in batches:
                seen += [(change.step_id, change.status.value) for change in changes(list(batch))]
                if (None, "COMPLETED") in seen:
                    break
    assert seen[-2:] == [("one", "COMPLETED"), (None, "COMPLETED")]
    assert (None, "RUNNING") not in seen
