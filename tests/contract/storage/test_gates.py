"""Leases of gates: one holder at a time, another one when the lease has lapsed, and gone with all its tickets."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from orchestrator.engine.records import StepExecution
from orchestrator.storage.changes import GateRow
from orchestrator.storage.gates import Lease
from orchestrator.storage.port import Storage
from orchestrator.storage.writes import GATE_LEASE_SECONDS
from schemas.statuses import StepStatus
from tests.conftest import Eventually
from tests.contract.storage.backends import Backend
from tests.contract.storage.rows import (
    BLOCK,
    NOTHING,
    add_run,
    block,
    branch,
    changes,
    message,
    run,
    step,
    ticket,
    write,
)

RUN, OTHER_RUN = UUID(int=1), UUID(int=2)
GATE = GateRow(RUN, BLOCK, 2, "a")
LEASE = Lease(RUN, BLOCK, 2, StepStatus.RUNNING, has_free_slots=True)
ALMOST, MORE = GATE_LEASE_SECONDS - 2, GATE_LEASE_SECONDS + 1


async def sent(storage: Storage) -> frozenset[UUID]:
    """Return the ids of what is in the outbox."""
    async with storage.outbox() as outbox:
        return frozenset(row.message_id for row in await outbox.lock_due(100))


async def waits(backend: Backend, count: int) -> bool:
    return await backend.waiting() == count


async def test_a_gate_is_held_by_who_opened_it(storage: Storage) -> None:
    await add_run(storage, block(RUN), run_id=RUN, gate=GATE)
    assert await storage.take_leases("b") == []
    assert await storage.take_leases("a") == [LEASE]


async def test_a_gate_is_taken_over_only_when_its_lease_has_lapsed(backend: Backend, storage: Storage) -> None:
    await add_run(storage, block(RUN), run_id=RUN, gate=GATE)
    await backend.pass_time(ALMOST)
    assert await storage.take_leases("b") == []
    await backend.pass_time(MORE - ALMOST)
    assert await storage.take_leases("b") == [LEASE]
    assert await storage.take_leases("a") == []


async def test_a_lease_that_is_renewed_does_not_lapse(backend: Backend, storage: Storage) -> None:
    await add_run(storage, block(RUN), run_id=RUN, gate=GATE)
    for _ in range(3):
        await backend.pass_time(ALMOST)
        assert await storage.take_leases("a") == [LEASE]
        assert await storage.take_leases("b") == []


async def test_a_holder_that_comes_late_but_first_keeps_its_gate(backend: Backend, storage: Storage) -> None:
    await add_run(storage, block(RUN), run_id=RUN, gate=GATE)
    await backend.pass_time(MORE)
    assert await storage.take_leases("a") == [LEASE]
    assert await storage.take_leases("b") == []


async def test_a_released_gate_is_taken_over_at_once(storage: Storage) -> None:
    await add_run(storage, block(RUN), run_id=RUN, gate=GATE)
    await add_run(storage, block(OTHER_RUN), run_id=OTHER_RUN, gate=replace(GATE, run_id=OTHER_RUN, holder="c"))
    await storage.release_leases("a")
    assert await storage.take_leases("b") == [LEASE]
    assert [lease.key for lease in await storage.take_leases("c")] == [(OTHER_RUN, BLOCK)]


async def test_all_that_somebody_holds_comes_together(backend: Backend, storage: Storage) -> None:
    await add_run(storage, block(RUN), run_id=RUN, gate=GATE)
    await backend.pass_time(MORE)
    await add_run(storage, block(OTHER_RUN), run_id=OTHER_RUN, gate=replace(GATE, run_id=OTHER_RUN, holder="b"))
    assert {lease.key for lease in await storage.take_leases("b")} == {(RUN, BLOCK), (OTHER_RUN, BLOCK)}


@pytest.mark.parametrize(
    ("counters", "has_free_slots"),
    [({}, True), ({"dispatched": 1}, True), ({"dispatched": 2}, False), ({"dispatched": 1, "passed": 4}, False)],
)
async def test_a_lease_tells_whether_slots_are_free(
    storage: Storage, counters: dict[str, Any], has_free_slots: bool
) -> None:
    await add_run(storage, block(RUN, **counters), run_id=RUN, gate=GATE)
    [lease] = await storage.take_leases("a")
    assert lease.has_free_slots is has_free_slots


async def test_a_lease_tells_how_its_block_is(storage: Storage) -> None:
    await add_run(storage, block(RUN), run_id=RUN, gate=GATE)
    await write(storage, RUN, changes(changed=[block(RUN)._replace(status=StepStatus.FAILED)]))
    [lease] = await storage.take_leases("a")
    assert lease.block_status is StepStatus.FAILED


async def test_a_gate_that_is_not_committed_is_nobodys(storage: Storage, other: Storage) -> None:
    await add_run(storage, block(RUN), run_id=RUN)
    async with storage.session() as session:
        await session.first_look({RUN: NOTHING})
        await session.write(changes(gate=GATE))
        assert await other.take_leases("a") == []
    assert await other.take_leases("a") == [LEASE]


async def test_a_deleted_gate_takes_its_unsent_tickets_with_it(storage: Storage) -> None:
    mine, beside = [ticket(RUN), ticket(RUN)], [ticket(RUN, "other"), ticket(OTHER_RUN), message(RUN)]
    await add_run(storage, block(RUN), run_id=RUN, gate=GATE, outbox=[(row, 0.0) for row in [*mine, *beside]])
    await storage.delete_gate("b", RUN, BLOCK)
    assert await sent(storage) == {row.message_id for row in [*mine, *beside]}
    await storage.delete_gate("a", RUN, BLOCK)
    await storage.delete_gate("a", RUN, BLOCK)
    assert await sent(storage) == {row.message_id for row in beside}
    assert await storage.take_leases("a") == []


async def test_a_gate_is_left_to_who_took_it_over(backend: Backend, storage: Storage) -> None:
    await add_run(storage, block(RUN), run_id=RUN, gate=GATE)
    await backend.pass_time(MORE)
    await storage.take_leases("b")
    await storage.delete_gate("a", RUN, BLOCK)
    assert await storage.take_leases("b") == [LEASE]


async def test_deleting_a_gate_waits_for_who_sends_its_tickets_and_nobody_takes_it_meanwhile(
    backend: Backend, storage: Storage, other: Storage, eventually: Eventually
) -> None:
    await add_run(storage, block(RUN), run_id=RUN, gate=GATE, outbox=[(ticket(RUN), 0.0)])
    async with storage.outbox() as outbox:
        await outbox.lock_due(1)
        deleting = asyncio.create_task(other.delete_gate("a", RUN, BLOCK))
        await eventually(lambda: waits(backend, 1))
        assert await storage.take_leases("a") == []
    await deleting
    assert await sent(storage) == frozenset()
    assert await storage.take_leases("a") == []


async def test_a_block_is_over_when_it_is_final_whatever_follows_in_its_own_branch(storage: Storage) -> None:
    steps = [step(RUN, status.value, status) for status in StepStatus]
    ended = branch(RUN, 1, StepStatus.COMPLETED, ordinal=0)._replace(step_id="inner")
    goes_on = branch(RUN, 1, StepStatus.RUNNING, ordinal=1)._replace(step_id="behind")
    await add_run(storage, *steps, block(RUN), ended, goes_on, run_id=RUN)
    over = {status for status in StepStatus if await storage.block_over(RUN, status.value)}
    assert over == {status for status in StepStatus if status.is_final}
    assert await storage.block_over(RUN, "inner")
    assert await storage.branches_over(RUN, ["inner"]) == frozenset()
    assert not await storage.block_over(RUN, "none")
    assert not await storage.block_over(OTHER_RUN, "inner")


async def test_branches_are_over_when_they_are_final(storage: Storage) -> None:
    steps = [step(RUN, status.value, status) for status in StepStatus]
    await add_run(storage, *steps, run_id=RUN)
    await add_run(storage, step(OTHER_RUN, "elsewhere", StepStatus.FAILED), run_id=OTHER_RUN)
    asked: Sequence[str] = [*(status.value for status in StepStatus), "elsewhere", "none"]
    assert await storage.branches_over(RUN, asked) == {status.value for status in StepStatus if status.is_final}
    assert await storage.branches_over(RUN, ["PENDING", "FAILED"]) == {"FAILED"}
    assert await storage.branches_over(run().id, asked) == frozenset()


async def test_a_branch_is_over_when_no_step_of_it_is_open(storage: Storage) -> None:
    def lane(position: int, *statuses: StepStatus) -> list[StepExecution]:
        return [
            branch(RUN, position, status, ordinal=ordinal)._replace(step_id=f"{position}{ordinal}")
            for ordinal, status in enumerate(statuses)
        ]

    done, fails = StepStatus.COMPLETED, StepStatus.FAILED
    over = [*lane(1, done, done), *lane(2, done, fails)]
    under_way = [*lane(0, done, StepStatus.QUEUED), *lane(3, StepStatus.PENDING)]
    await add_run(storage, block(RUN), *over, *under_way, run_id=RUN)
    assert await storage.branches_over(RUN, ["00", "10", "20", "30"]) == {"10", "20"}
