"""What only the storage in memory can do: clients that die at any step, lost answers, and a look at every commit."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from orchestrator.engine.decision import TakeOver
from orchestrator.engine.state import RunState, Wanted
from orchestrator.storage.changes import GateRow
from orchestrator.storage.database import is_lost_connection
from orchestrator.storage.port import Storage
from schemas.messages import ErrorInfo
from schemas.statuses import RunStatus, StepStatus
from tests.conftest import Eventually
from tests.contract.storage.rows import (
    BLOCK,
    DOCUMENT,
    NOTHING,
    WORKFLOW,
    add_run,
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
from tests.simulation.storage import Commit, MemoryClient, MemoryStorage, Operation

RUN, NEXT = UUID(int=1), UUID(int=2)
ERROR = ErrorInfo(code="agent_error", message="no luck")
QUEUED = [step(RUN, "one", StepStatus.QUEUED)]


class Fate:
    """A scheduler that does something at one point, once."""

    def __init__(self, point: str, deed: Callable[[], Any] = lambda: None) -> None:
        self.operations: list[str] = []
        self.lost = ""
        self._point = point
        self._deed = deed

    async def before(self, operation: str) -> None:
        self.operations.append(operation)
        self._pass(operation)

    async def after(self, operation: str) -> None:
        self._pass(f"after {operation}")

    def fails(self, operation: str) -> bool:
        return operation == self.lost

    def _pass(self, point: str) -> None:
        if point == self._point:
            self._deed()


@pytest.fixture
def memory() -> MemoryStorage:
    return MemoryStorage(lambda: datetime.now(UTC))


@pytest.fixture
async def witness(memory: MemoryStorage) -> Storage:
    """A client to which nothing happens, of a storage with a run."""
    witness = memory.client("witness")
    await add_run(witness, step(RUN, "one"), run_id=RUN)
    return witness


async def queue(client: Storage) -> None:
    await write(client, RUN, changes(changed=QUEUED, outbox=[(message(RUN), 0.0)]))


async def look_at_both(client: Storage) -> None:
    async with locking(client, RUN, NEXT):
        pass


async def is_queued(witness: Storage) -> bool:
    return (await seen(witness, RUN, Wanted(steps=frozenset({"one"})))).steps["one"] == QUEUED[0]


async def never(work: Awaitable[Any], client: MemoryClient, eventually: Eventually) -> None:
    """Make sure that *work* of a client that dies on the way does not return, and ends when it is cancelled."""
    task = asyncio.ensure_future(work)
    await eventually(client.is_dead)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


DEATHS = [
    *((operation, False) for operation in ("first look", "after first look", "write", "after write", "commit")),
    ("after commit", True),
]


@pytest.mark.parametrize(("point", "committed"), DEATHS)
async def test_a_client_that_dies_at(
    memory: MemoryStorage, witness: Storage, eventually: Eventually, point: str, committed: bool
) -> None:
    client = memory.client("dying", Fate(point, lambda: client.kill()))
    await never(queue(client), client, eventually)
    assert await is_queued(witness) is committed
    assert len(memory.outbox_rows) == committed


async def test_a_client_that_dies_while_it_waits_leaves_the_line(
    memory: MemoryStorage, witness: Storage, eventually: Eventually
) -> None:
    client = memory.client("dying")
    async with locking(witness, RUN):
        waiting = asyncio.create_task(queue(client))
        await eventually(lambda: memory.waiting == 1)
        client.kill()
        assert memory.waiting == 0
        await never(waiting, client, eventually)
    assert not await is_queued(witness)


async def test_a_client_that_dies_when_a_lock_was_just_granted_keeps_none_and_takes_no_more(
    memory: MemoryStorage, witness: Storage, eventually: Eventually
) -> None:
    await add_run(witness, run_id=NEXT)
    client = memory.client("dying")
    async with locking(witness, RUN):
        waiting = asyncio.create_task(look_at_both(client))
        await eventually(lambda: memory.waiting == 1)
    client.kill()  # before the task that waited has had its turn
    await never(waiting, client, eventually)
    await look_at_both(witness)


async def test_nothing_that_the_dead_ask_for_returns(
    memory: MemoryStorage, witness: Storage, eventually: Eventually
) -> None:
    client = memory.client("dead")
    client.kill()
    await never(queue(client), client, eventually)
    await never(client.take_leases("dead"), client, eventually)
    await never(client.store_definition(WORKFLOW, {**DOCUMENT, "version": "2"}), client, eventually)
    assert not await is_queued(witness)


async def test_what_is_raised_on_the_way_undoes_the_session(memory: MemoryStorage, witness: Storage) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    client = memory.client("unlucky", Fate("after write", fail))
    with pytest.raises(ZeroDivisionError):
        await queue(client)
    assert not await is_queued(witness)


@pytest.mark.parametrize(
    ("lost", "committed"),
    [
        ("first look", False),
        ("write", False),
        ("answer to write", False),
        ("commit", False),
        ("answer to commit", True),
    ],
)
async def test_a_lost_connection_undoes_what_is_not_committed(
    memory: MemoryStorage, witness: Storage, lost: str, committed: bool
) -> None:
    fate = Fate("")
    fate.lost = lost
    with pytest.raises(ConnectionError) as raised:
        await queue(memory.client("cut", fate))
    assert is_lost_connection(raised.value)
    assert await is_queued(witness) is committed


async def test_a_session_that_was_undone_cannot_go_on(memory: MemoryStorage, witness: Storage) -> None:
    fate = Fate("")
    fate.lost = "write"

    async def go_on() -> None:
        async with memory.client("cut", fate).session() as session:
            await session.first_look({RUN: NOTHING})
            with suppress(ConnectionError):
                await session.write(changes(changed=QUEUED))
            await write(witness, RUN, changes())  # its locks are free already

    with pytest.raises(ConnectionError, match="the transaction is over"):
        await go_on()
    assert not await is_queued(witness)


async def test_a_scheduler_is_asked_at_every_operation(memory: MemoryStorage, witness: Storage) -> None:
    fate = Fate("")
    client = memory.client("asked", fate)
    async with client.session() as session:
        _, states = await session.first_look({RUN: NOTHING})
        await session.load(states, {RUN: Wanted(steps=frozenset({"one"}))})
        await session.load_definition(await witness.store_definition(WORKFLOW, DOCUMENT))
        await session.write(changes())
        await session.close_line(RUN, BLOCK, 0, datetime.now(UTC))
        await session.cancel_open_steps(RUN, None, datetime.now(UTC))
        await session.take_over(run(NEXT), TakeOver(uuid4(), "one"))
        await session.wake_branches(RUN, BLOCK, datetime.now(UTC))
    async with client.outbox() as outbox:
        await outbox.lock_due(1)
        await outbox.delete([])
        await outbox.delete_tasks([])
        await outbox.postpone([], delay=0, returned=True)
        await outbox.put_back([])
    await client.let_tasks_through("echo", 1)
    await client.what_is_due("a")
    await client.take_leases("a")
    await client.release_leases("a")
    await client.delete_gate("a", RUN, BLOCK)
    await client.agents_with_room()
    await client.block_over(RUN, BLOCK)
    await client.branches_over(RUN, [])
    await client.due_inputs(1)
    await client.count_silent(1)
    await client.oldest_silent("echo", 1, 1)
    await client.find_strays(1, 1)
    identity = await client.store_definition(WORKFLOW, DOCUMENT)
    memory.register_workflow(WORKFLOW, DOCUMENT)
    assert await client.find_definition("small", None) == (identity, WORKFLOW.version)
    await client.store_dead_letters([])
    await client.check()
    assert fate.operations == list(Operation)


async def test_each_commit_tells_what_was_before_and_after(memory: MemoryStorage, witness: Storage) -> None:
    commits: list[Commit] = []
    memory.on_commit = commits.append
    before, branch, row = memory.runs[RUN], queued(RUN, 0, input=1), message(RUN)
    ended = replace(before, status=RunStatus.FAILED, error=ERROR)
    failed = step(RUN, "one", StepStatus.FAILED, error=ERROR)
    steps = [block(RUN), branch]
    gate = GateRow(RUN, BLOCK, 2, "witness")
    await write(witness, RUN, changes(*steps, changed=[failed], ended=ended, outbox=[(row, 0.0)], gate=gate))
    async with witness.outbox() as outbox:
        await outbox.delete([row.message_id])
    await witness.delete_gate("witness", RUN, BLOCK)
    await witness.take_leases("nobody")  # changes nothing, so there is nothing to tell
    written, deleted, closed = commits
    assert written.client == "witness"
    assert written.runs == [(before, ended)]
    assert written.steps == [(None, block(RUN)), (None, branch._replace(input=None)), (step(RUN, "one"), failed)]
    assert [(before, after and after.holder) for before, after in written.gates] == [(None, "witness")]
    assert (written.sent, written.forgotten) == ([row], [])
    assert (deleted.sent, deleted.forgotten) == ([], [row])
    assert [after for _, after in closed.gates] == [None]


async def test_an_oracle_that_objects_is_heard_and_nothing_stays_locked(
    memory: MemoryStorage, witness: Storage
) -> None:
    def object_to(commit: Commit) -> None:
        raise AssertionError(f"{commit.client} did it")

    memory.on_commit = object_to
    with pytest.raises(AssertionError, match="witness did it"):
        await queue(witness)
    memory.on_commit = None
    assert await is_queued(witness)


async def test_a_session_begins_with_its_first_look(memory: MemoryStorage) -> None:
    async with memory.client("early").session() as session:
        with pytest.raises(ConnectionError, match="begins with its first look"):
            await session.write(changes())
        with pytest.raises(AssertionError):
            await session.load({RUN: RunState(None)}, {})
