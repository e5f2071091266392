"""One look tells a replica whether it has a reason to look closer."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

from orchestrator.storage.changes import GateRow
from orchestrator.storage.due import Due
from orchestrator.storage.port import Storage
from orchestrator.storage.writes import GATE_LEASE_SECONDS
from schemas.statuses import StepStatus
from tests.contract.storage.backends import Backend
from tests.contract.storage.rows import BLOCK, NOTHING, add_run, block, changes, message, queued, step, write

RUN, OTHER_RUN = UUID(int=1), UUID(int=2)
GATE = GateRow(RUN, BLOCK, 2, "a")
NOBODY = "nobody"  # holds nothing


async def test_nothing_is_due_in_an_empty_storage(storage: Storage) -> None:
    assert await storage.what_is_due(NOBODY) == frozenset()


async def test_a_message_is_due_when_its_writer_has_had_its_time(backend: Backend, storage: Storage) -> None:
    await add_run(storage, run_id=RUN, outbox=[(message(RUN), 600.0), (message(RUN), 60.0)])
    assert await storage.what_is_due(NOBODY) == frozenset()
    await backend.pass_time(61)
    assert await storage.what_is_due(NOBODY) == {Due.MESSAGES}


async def test_a_message_that_is_left_for_later_is_due_then(backend: Backend, storage: Storage) -> None:
    row = message(RUN)
    await add_run(storage, run_id=RUN, outbox=[(row, 0.0)])
    async with storage.outbox() as outbox:
        await outbox.postpone([row.message_id], delay=60, returned=False)
    assert await storage.what_is_due(NOBODY) == frozenset()
    await backend.pass_time(61)
    assert await storage.what_is_due(NOBODY) == {Due.MESSAGES}


async def test_a_message_that_somebody_is_sending_is_due_until_it_is_gone(storage: Storage, other: Storage) -> None:
    row = message(RUN)
    await add_run(storage, run_id=RUN, outbox=[(row, 0.0)])
    async with other.outbox() as outbox:
        await outbox.lock_due(1)
        await outbox.delete([row.message_id])
        assert await storage.what_is_due(NOBODY) == {Due.MESSAGES}, "its sender may die"
    assert await storage.what_is_due(NOBODY) == frozenset()


async def test_what_is_not_committed_is_not_due(storage: Storage, other: Storage) -> None:
    late = queued(RUN, 0)._replace(due_at=None)
    await add_run(storage, block(RUN), late, run_id=RUN)
    async with other.session() as session:
        await session.first_look({RUN: NOTHING})
        await session.write(changes(gate=replace(GATE, holder="b"), outbox=[(message(RUN), 0.0)]))
        assert await storage.what_is_due("b") == frozenset()
    assert await storage.what_is_due("b") == {Due.MESSAGES, Due.GATES}


async def test_an_attempt_is_due_when_its_time_is_up_until_it_has_ended(backend: Backend, storage: Storage) -> None:
    dues = {"never": None, "soon": 60.0, "late": -1.0}
    attempts = [
        step(
            RUN,
            name,
            StepStatus.RUNNING,
            task_id=uuid4(),
            due_at=None if due is None else backend.now() + timedelta(seconds=due),
        )
        for name, due in dues.items()
    ]
    await add_run(storage, *attempts[:2], run_id=RUN)
    assert await storage.what_is_due(NOBODY) == frozenset()
    await write(storage, RUN, changes(attempts[2]))
    assert await storage.what_is_due(NOBODY) == {Due.TIMES}
    await write(storage, RUN, changes(changed=[step(RUN, "late", StepStatus.FAILED)]))
    assert await storage.what_is_due(NOBODY) == frozenset()


async def test_a_gate_is_due_to_its_holder_always_and_to_others_when_its_lease_has_lapsed(
    backend: Backend, storage: Storage
) -> None:
    await add_run(storage, block(RUN), run_id=RUN, gate=GATE)
    assert await storage.what_is_due("a") == {Due.GATES}, "it may not know that it holds the gate"
    assert await storage.what_is_due("b") == frozenset()
    await backend.pass_time(GATE_LEASE_SECONDS + 1)
    assert await storage.what_is_due("b") == {Due.GATES}
    await storage.take_leases("b")
    assert await storage.what_is_due("a") == frozenset()
    assert await storage.what_is_due("b") == {Due.GATES}
    await storage.delete_gate("b", RUN, BLOCK)
    assert await storage.what_is_due("b") == frozenset()


async def test_a_gate_that_was_given_up_is_due_to_all(storage: Storage) -> None:
    await add_run(storage, block(RUN), run_id=RUN, gate=GATE)
    await storage.release_leases("a")
    assert await storage.what_is_due("b") == {Due.GATES}


async def test_all_that_is_due_comes_together(backend: Backend, storage: Storage) -> None:
    late = step(RUN, "late", StepStatus.RUNNING, task_id=uuid4(), due_at=backend.now() - timedelta(seconds=1))
    await backend.limit("echo", 1)
    waits = step(RUN, "waits", StepStatus.QUEUED, task_id=uuid4())
    held = message(RUN, task_id=waits.task_id)
    await add_run(
        storage, block(RUN), late, waits, run_id=RUN, gate=GATE, outbox=[(message(RUN), 0.0)], held=[(held, 0.0)]
    )
    assert await storage.what_is_due("a") == frozenset(Due)
