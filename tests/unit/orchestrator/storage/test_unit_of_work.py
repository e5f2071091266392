"""What one transaction collects, and when that is written."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest

from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import Wanted
from orchestrator.storage import unit_of_work as module
from orchestrator.storage.changes import Changes, OutboxRow
from orchestrator.storage.unit_of_work import HAND_OVER_SECONDS, unit_of_work
from schemas.statuses import StepStatus

RUN = UUID(int=1)


class SlowStorage:
    """A storage whose writes end when they are allowed to."""

    def __init__(self) -> None:
        self.may_write = asyncio.Event()
        self.is_writing = asyncio.Event()
        self.calls: list[str] = []
        self.written: list[Changes] = []

    @asynccontextmanager
    async def session(self) -> AsyncIterator["SlowStorage"]:
        yield self
        self.calls.append("committed")

    async def write(self, changes: Changes) -> None:
        self.calls.append("writing")
        self.is_writing.set()
        try:
            await self.may_write.wait()
        except asyncio.CancelledError:
            self.calls.append("stopped")
            raise
        self.written.append(changes)
        self.calls.append("written")

    async def load(self, *_: Any) -> None:
        self.calls.append("loaded")


def step(number: int) -> StepExecution:
    return StepExecution(RUN, f"b{number}", StepStatus.PENDING)


def message() -> OutboxRow:
    return OutboxRow(uuid4(), RUN, None, None, "e", "k", "AgentTask", None, b"{}")


async def test_more_is_collected_while_a_piece_is_being_written() -> None:
    storage = SlowStorage()
    async with unit_of_work(storage, "r") as uow:  # type: ignore[arg-type]
        uow.add_step(step(1))
        await uow.begin_flush()
        assert storage.calls == ["writing"]
        uow.add_step(step(2))
        storage.may_write.set()
    assert [list(changes.new_steps) for changes in storage.written] == [[(RUN, "b1")], [(RUN, "b2")]]
    assert storage.calls == ["writing", "written", "writing", "written", "committed"]


async def test_whatever_asks_storage_next_waits_for_the_piece() -> None:
    storage = SlowStorage()
    async with unit_of_work(storage, "r") as uow:  # type: ignore[arg-type]
        uow.add_step(step(1))
        await uow.begin_flush()
        asyncio.get_running_loop().call_soon(storage.may_write.set)
        await uow.load({}, {RUN: Wanted(plan=True)})
        assert storage.calls == ["writing", "written", "loaded"]


async def test_a_transaction_that_fails_writes_nothing_any_more() -> None:
    storage = SlowStorage()

    async def transaction() -> None:
        async with unit_of_work(storage, "r") as uow:  # type: ignore[arg-type]
            uow.add_step(step(1))
            await uow.begin_flush()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await transaction()
    assert storage.calls == ["writing", "stopped"]


async def test_a_cancelled_transaction_stops_what_it_writes_before_it_is_rolled_back() -> None:
    storage = SlowStorage()

    async def transaction() -> None:
        async with unit_of_work(storage, "r") as uow:  # type: ignore[arg-type]
            uow.add_step(step(1))
            await uow.begin_flush()
            await uow.flush()

    running = asyncio.create_task(transaction())
    await storage.is_writing.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert storage.calls == ["writing", "stopped"]


async def test_messages_that_are_left_to_the_sweep_are_due_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HAND_OVER_MESSAGES", 2)
    storage = SlowStorage()
    storage.may_write.set()
    rows = [message() for _ in range(5)]
    async with unit_of_work(storage, "r") as uow:  # type: ignore[arg-type]
        for row in rows:
            uow.send(row)
    assert uow.handed_over == rows[:2]
    [changes] = storage.written
    assert [row for row, _ in changes.outbox] == rows
    delays = [delay for _, delay in changes.outbox]
    assert delays[:2] == [HAND_OVER_SECONDS] * 2
    assert 0 < delays[2] < delays[3] < delays[4] < 0.001
