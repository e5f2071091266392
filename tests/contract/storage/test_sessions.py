"""Sessions see each other's work when it is committed, and nothing of what is undone."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from uuid import UUID

from orchestrator.engine.state import RunState, Wanted
from orchestrator.storage.port import Storage
from schemas.statuses import StepStatus
from schemas.stored_json import StoredJson
from tests.contract.storage.backends import Backend
from tests.contract.storage.rows import (
    DOCUMENT,
    TIME,
    WORKFLOW,
    block,
    branch,
    changes,
    locking,
    look,
    message,
    queued,
    run,
    seen,
    step,
    write,
)

ONE = Wanted(steps=frozenset({"one"}))


async def test_a_session_that_is_killed_leaves_nothing_behind(
    backend: Backend, storage: Storage, other: Storage, runs: Sequence[UUID]
) -> None:
    written = asyncio.Event()

    async def die() -> None:
        async with locking(storage, *runs) as session:
            await session.write(
                changes(changed=[step(runs[0], "one", StepStatus.QUEUED)], outbox=[(message(runs[0]), 0)])
            )
            written.set()
            await asyncio.Event().wait()

    dying = asyncio.create_task(die())
    await written.wait()
    await backend.kill(storage)
    found = (await seen(other, runs[0], ONE)).steps["one"]
    assert found is not None
    assert found.status is StepStatus.PENDING
    async with other.outbox() as outbox:
        assert await outbox.lock_due(10) == []
    dying.cancel()
    await asyncio.gather(dying, return_exceptions=True)


async def test_an_exception_leaves_nothing_behind(storage: Storage, runs: Sequence[UUID]) -> None:
    new = run()
    with suppress(ZeroDivisionError):
        async with locking(storage, runs[0]) as session:
            changed = [step(runs[0], "one", StepStatus.FAILED)]
            await session.write(changes(step(new.id, "two"), new=new, changed=changed, outbox=[(message(new.id), 0)]))
            raise ZeroDivisionError
    found = (await seen(storage, runs[0], ONE)).steps["one"]
    assert found is not None
    assert found.status is StepStatus.PENDING
    assert (await seen(storage, new.id)).run is None
    async with storage.outbox() as outbox:
        assert await outbox.lock_due(10) == []


async def test_nobody_sees_what_is_not_committed(storage: Storage, other: Storage, runs: Sequence[UUID]) -> None:
    new = run()
    over = [step(runs[0], "one", StepStatus.COMPLETED, due_at=TIME)]
    everything = Wanted(
        steps=frozenset({"one", "two"}), outcomes=frozenset({"one"}), run_values=True, failures=frozenset({"block"})
    )
    async with locking(storage, runs[0]) as session:
        await session.write(changes(step(new.id, "two"), new=new, changed=over, outbox=[(message(new.id), 0)]))
        assert await other.branches_over(runs[0], ["one"]) == frozenset()
        assert await other.due_inputs(10) == []
        assert (await seen(other, new.id, everything)).steps["two"] is None
        async with other.outbox() as outbox:
            assert await outbox.lock_due(10) == []
    assert await other.branches_over(runs[0], ["one"]) == {"one"}
    assert (await seen(other, new.id, everything)).steps["two"] is not None


async def test_a_session_sees_its_own_writes(storage: Storage) -> None:
    new, task = run(), queued(UUID(int=0), 1)
    await storage.store_definition(WORKFLOW, DOCUMENT)
    steps = [block(new.id), branch(new.id, 0, StepStatus.FAILED), branch(new.id, 1), branch(new.id, 2)]
    async with storage.session() as session:
        await look(session, new.id)
        await session.write(changes(*steps, new=new, input=[7]))
        await session.write(changes(changed=[branch(new.id, 1, StepStatus.QUEUED, task_id=task.task_id, attempt=1)]))
        state = RunState(None)
        wanted = Wanted(
            steps=frozenset({"y-1"}),
            outcomes=frozenset({"z-0"}),
            failures=frozenset({"block"}),
            waiting=frozenset({("block", 0, 4)}),
            run_values=True,
        )
        await session.load({new.id: state}, {new.id: wanted})
    found, outcome, values = state.steps["y-1"], state.outcomes["z-0"], state.run_values
    assert found is not None
    assert outcome is not None
    assert values is not None
    assert (found.status, found.task_id) == (StepStatus.QUEUED, task.task_id)
    assert outcome.status is StepStatus.FAILED
    assert [failure.step_id for failure in state.failures["block"]] == ["z-0"]
    assert [waiting.step_id for waiting in state.waiting["block"].steps] == ["x-2"]
    assert values.input == [7]


async def test_a_session_sees_what_others_commit_while_it_goes_on(
    storage: Storage, other: Storage, runs: Sequence[UUID]
) -> None:
    async with locking(storage, runs[0]) as session:
        await write(other, runs[1], changes(changed=[step(runs[1], "one", StepStatus.COMPLETED, output=1)]))
        state = RunState(None)
        await session.load({runs[1]: state}, {runs[1]: Wanted(outcomes=frozenset({"one"}))})
    outcome = state.outcomes["one"]
    assert outcome is not None
    assert outcome.output == StoredJson("1")
