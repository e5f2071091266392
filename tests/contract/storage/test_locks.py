"""Runs are locked by one session at a time; the others wait in line."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID

import pytest

from orchestrator.engine.state import Wanted
from orchestrator.errors import RunLocked
from orchestrator.storage.database import is_lost_connection, is_transient
from orchestrator.storage.port import Storage
from schemas.statuses import StepStatus
from tests.conftest import Eventually
from tests.contract.storage.backends import Backend
from tests.contract.storage.rows import (
    DOCUMENT,
    WORKFLOW,
    block,
    changes,
    locking,
    message,
    queued,
    run,
    seen,
    step,
    write,
)

ONE = Wanted(steps=frozenset({"one"}))


async def lock(storage: Storage, *run_ids: UUID, then: list[Storage] | None = None) -> None:
    """Lock runs, say so, and let them go."""
    async with locking(storage, *run_ids):
        if then is not None:
            then.append(storage)


async def waits(backend: Backend, count: int) -> bool:
    return await backend.waiting() == count


async def test_a_locked_run_makes_the_next_session_wait_and_see_what_was_committed(
    backend: Backend, storage: Storage, other: Storage, runs: Sequence[UUID], eventually: Eventually
) -> None:
    async with locking(storage, runs[0]) as session:
        looking = asyncio.create_task(seen(other, runs[0], ONE))
        await eventually(lambda: waits(backend, 1))
        await session.write(changes(changed=[step(runs[0], "one", StepStatus.QUEUED, attempt=1)]))
        assert not looking.done()
    found = (await looking).steps["one"]
    assert found is not None
    assert found.status is StepStatus.QUEUED


async def test_a_session_that_fails_lets_its_locks_go(storage: Storage, other: Storage, runs: Sequence[UUID]) -> None:
    with suppress(ZeroDivisionError):
        async with locking(storage, *runs):
            raise ZeroDivisionError
    await lock(other, *runs)


async def test_other_runs_are_not_held_up(storage: Storage, other: Storage, runs: Sequence[UUID]) -> None:
    async with locking(storage, runs[0]):
        await lock(other, runs[1])


async def test_who_waits_longest_is_served_first(
    backend: Backend, storage: Storage, runs: Sequence[UUID], eventually: Eventually
) -> None:
    served: list[Storage] = []
    clients = [backend.client(f"client-{number}") for number in range(3)]
    waiting = []
    async with locking(storage, runs[0]):
        for count, client in enumerate(clients, 1):
            waiting.append(asyncio.create_task(lock(client, runs[0], then=served)))
            await eventually(lambda count=count: waits(backend, count))
        assert served == []
    await asyncio.gather(*waiting)
    assert served == clients


async def test_who_is_cancelled_leaves_the_line(
    backend: Backend, storage: Storage, other: Storage, runs: Sequence[UUID], eventually: Eventually
) -> None:
    async with locking(storage, runs[0]):
        cancelled = asyncio.create_task(lock(other, runs[0]))
        await eventually(lambda: waits(backend, 1))
        behind = asyncio.create_task(lock(backend.client("behind"), runs[0]))
        await eventually(lambda: waits(backend, 2))
        cancelled.cancel()
        await eventually(lambda: waits(backend, 1))
    await behind
    assert cancelled.cancelled()
    await lock(other, runs[0])


async def test_a_run_that_somebody_keeps_locked_ends_the_session(
    storage: Storage, other: Storage, runs: Sequence[UUID]
) -> None:
    async with locking(storage, runs[0]):
        with pytest.raises(RunLocked):
            await lock(other, *runs)
        await lock(other, runs[1])  # that one was let go


async def test_runs_are_locked_in_the_order_of_their_ids(
    backend: Backend, storage: Storage, other: Storage, runs: Sequence[UUID], eventually: Eventually
) -> None:
    low, high = runs
    async with locking(storage, high):
        both = asyncio.create_task(lock(other, high, low))
        await eventually(lambda: waits(backend, 1))
        behind = asyncio.create_task(lock(backend.client("behind"), low))
        await eventually(lambda: waits(backend, 2))
    await asyncio.gather(both, behind)
    async with locking(storage, low):
        both = asyncio.create_task(lock(other, high, low))
        await eventually(lambda: waits(backend, 1))
        await lock(backend.client("free"), high)
    await both


async def test_sessions_that_want_the_same_runs_in_any_order_all_come_through(
    backend: Backend, runs: Sequence[UUID]
) -> None:
    served: list[Storage] = []
    clients = [backend.client(f"client-{number}") for number in range(6)]
    orders = [runs if number % 2 else runs[::-1] for number in range(6)]
    await asyncio.gather(*(lock(one, *order, then=served) for one, order in zip(clients, orders, strict=True)))
    assert len(served) == 6


async def test_the_second_of_two_who_create_the_same_run_may_try_again(
    backend: Backend, storage: Storage, other: Storage, eventually: Eventually
) -> None:
    new = run()
    whole = changes(block(new.id), queued(new.id, 0), new=new, outbox=[(message(new.id), 10.0)])
    await storage.store_definition(WORKFLOW, DOCUMENT)
    async with locking(storage, new.id) as session:
        await session.write(whole)
        second = asyncio.create_task(write(other, new.id, whole))
        await eventually(lambda: waits(backend, 1))
    [error] = await asyncio.gather(second, return_exceptions=True)
    assert isinstance(error, Exception)
    assert is_transient(error)
    assert not is_lost_connection(error)
    assert (await seen(other, new.id)).run == new


async def test_who_waits_to_create_a_run_creates_it_when_the_first_one_fails(
    backend: Backend, storage: Storage, other: Storage, eventually: Eventually
) -> None:
    new = run()
    await storage.store_definition(WORKFLOW, DOCUMENT)
    with suppress(ZeroDivisionError):
        async with locking(storage, new.id) as session:
            await session.write(changes(new=new))
            second = asyncio.create_task(write(other, new.id, changes(new=new)))
            await eventually(lambda: waits(backend, 1))
            raise ZeroDivisionError
    await second
    assert (await seen(storage, new.id)).run == new


async def test_a_run_that_comes_to_be_while_another_is_waited_for_is_locked_too(
    backend: Backend, storage: Storage, other: Storage, runs: Sequence[UUID], eventually: Eventually
) -> None:
    new, holds, may_let_go = run(), asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with locking(other, runs[0], new.id):
            holds.set()
            await may_let_go.wait()

    async with locking(storage, runs[0]) as session:
        holding = asyncio.create_task(hold())
        await eventually(lambda: waits(backend, 1))
        await session.write(changes(new=new))
    await holds.wait()
    try:
        with pytest.raises(RunLocked):
            await lock(backend.client("third"), new.id)
    finally:
        may_let_go.set()
    await holding
