"""The outbox: what is due is sent by one sender at a time, and what no queue takes is told by its age."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from uuid import UUID, uuid4

from orchestrator.storage.changes import OutboxRow
from orchestrator.storage.port import Storage
from tests.conftest import Eventually
from tests.contract.storage.backends import Backend
from tests.contract.storage.rows import NOTHING, add_run, changes, message

RUN = UUID(int=1)


async def put(storage: Storage, *delays: float) -> list[OutboxRow]:
    """Put a message for each delay into the outbox."""
    rows = [message(RUN, routing_key=f"agent-{number}") for number in range(len(delays))]
    await add_run(storage, run_id=RUN, outbox=zip(rows, delays, strict=True))
    return rows


async def due(storage: Storage, limit: int = 100) -> Sequence[OutboxRow]:
    async with storage.outbox() as outbox:
        return await outbox.lock_due(limit)


def ids(rows: Iterable[OutboxRow]) -> list[UUID]:
    return [row.message_id for row in rows]


async def waits(backend: Backend, count: int) -> bool:
    return await backend.waiting() == count


async def test_a_message_is_read_as_it_was_written(storage: Storage) -> None:
    rows = [
        message(RUN, step_id="one", task_id=uuid4(), exchange="e", routing_key="k", type="T", correlation_id="c"),
        message(RUN)._replace(body=b"\0\xff"),
    ]
    await add_run(storage, run_id=RUN, outbox=[(row, 0.0) for row in rows])
    assert sorted(await due(storage), key=lambda row: row.routing_key) == sorted(rows, key=lambda row: row.routing_key)


async def test_messages_are_due_after_their_delay_the_oldest_first(backend: Backend, storage: Storage) -> None:
    [late, never, early, now] = await put(storage, 60, 6000, 30, 0)
    assert await due(storage) == [now]
    await backend.pass_time(120)
    assert await due(storage) == [now, early, late]
    assert await due(storage, 2) == [now, early]
    assert never not in await due(storage)


async def test_what_one_sends_nobody_else_sends(storage: Storage, other: Storage) -> None:
    [first, second, third] = await put(storage, -3, -2, -1)
    async with storage.outbox() as outbox, other.outbox() as another:
        assert await outbox.lock_due(2) == [first, second]
        assert await another.lock_due(2) == [third]
        assert await outbox.lock_due(3) == [first, second]
    assert len(await due(other)) == 3


async def test_what_was_deleted_is_gone_once_that_is_committed(storage: Storage, other: Storage) -> None:
    [gone, left] = await put(storage, 0, 0)
    async with storage.outbox() as outbox:
        await outbox.delete([gone.message_id, uuid4()])
        assert await outbox.lock_due(10) == [left]
        assert await due(other) == []
    assert await due(other) == [left]


async def test_what_fails_while_sending_leaves_everything_for_another_try(storage: Storage, other: Storage) -> None:
    rows = await put(storage, 0, 0, 0)
    with suppress(ZeroDivisionError):
        async with storage.outbox() as outbox:
            await outbox.delete(ids(rows[:1]))
            await outbox.postpone(ids(rows[1:2]), delay=60, returned=True)
            raise ZeroDivisionError
    assert sorted(ids(await due(other))) == sorted(ids(rows))
    async with storage.outbox() as outbox:
        [postponed] = await outbox.postpone(ids(rows[1:2]), delay=60, returned=True)
    assert postponed.unroutable_for.total_seconds() == 0


async def test_forgetting_a_message_waits_for_who_sends_it(
    backend: Backend, storage: Storage, other: Storage, eventually: Eventually
) -> None:
    rows = await put(storage, 0)

    async def forget() -> None:
        async with other.outbox() as another:
            await another.delete(ids(rows))

    async with storage.outbox() as outbox:
        assert await outbox.lock_due(10) == rows
        forgetting = asyncio.create_task(forget())
        await eventually(lambda: waits(backend, 1))
        await outbox.postpone(ids(rows), delay=0, returned=False)
    await forgetting
    assert await due(storage) == []


async def test_postponing_a_message_waits_for_who_deletes_it_and_then_does_nothing(
    backend: Backend, storage: Storage, other: Storage, eventually: Eventually
) -> None:
    rows = await put(storage, 0)

    async def postpone() -> Sequence[object]:
        async with other.outbox() as another:
            return await another.postpone(ids(rows), delay=0, returned=True)

    async with storage.outbox() as outbox:
        await outbox.delete(ids(rows))
        postponing = asyncio.create_task(postpone())
        await eventually(lambda: waits(backend, 1))
    assert await postponing == []
    assert await due(storage) == []


async def test_a_postponed_message_is_due_after_the_delay(backend: Backend, storage: Storage) -> None:
    rows = await put(storage, 0)
    async with storage.outbox() as outbox:
        [postponed] = await outbox.postpone([*ids(rows), uuid4()], delay=60, returned=False)
    assert postponed.message_id == rows[0].message_id
    assert await due(storage) == []
    await backend.pass_time(61)
    assert await due(storage) == rows


async def test_a_message_that_no_queue_takes_is_told_by_the_time_since_it_first_came_back(
    backend: Backend, storage: Storage
) -> None:
    rows = await put(storage, 0)
    told = []
    for returned in (False, True, False, True):
        async with storage.outbox() as outbox:
            [postponed] = await outbox.postpone(ids(rows), delay=0, returned=returned)
        told.append(postponed.unroutable_for.total_seconds())
        await backend.pass_time(1_000)
    assert told[:2] == [0, 0]
    assert 1_000 <= told[2] < 1_500
    assert 2_000 <= told[3] < 2_500


async def test_the_messages_of_attempts_that_were_given_up_are_forgotten(storage: Storage) -> None:
    tasks = [message(RUN, task_id=uuid4()) for _ in range(3)]
    beside = message(RUN)
    await add_run(storage, run_id=RUN, outbox=[(row, 0.0) for row in [*tasks, beside]])
    given_up = [row.task_id for row in tasks[:2] if row.task_id is not None]
    async with storage.outbox() as outbox:
        await outbox.delete_tasks([*given_up, uuid4()])
    assert sorted(ids(await due(storage))) == sorted(ids([tasks[2], beside]))


async def test_a_message_of_a_session_is_there_when_that_is_committed(storage: Storage, other: Storage) -> None:
    await add_run(storage, run_id=RUN)
    row = message(RUN)
    async with storage.session() as session:
        await session.first_look({RUN: NOTHING})
        await session.write(changes(outbox=[(row, 0.0)]))
        assert await due(other) == []
    assert await due(other) == [row]
