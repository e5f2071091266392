"""The two kinds of transaction that the port has: a session on runs, and the outbox from the sender's side."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar
from uuid import UUID

from orchestrator.engine.decision import TakeOver
from orchestrator.engine.records import Run
from orchestrator.engine.state import RunState, Wanted
from orchestrator.errors import RunLocked
from orchestrator.storage.changes import Changes, OutboxRow
from orchestrator.storage.dead_letters import Undeliverable
from orchestrator.storage.outbox import Postponed
from orchestrator.storage.writes import CancelledStep
from tests.simulation.storage import definitions, letters, taking_over, writes
from tests.simulation.storage.locks import LockTimeout
from tests.simulation.storage.looks import Looks
from tests.simulation.storage.operations import Operation
from tests.simulation.storage.transaction import Transaction

T = TypeVar("T")


class Connection(Protocol):
    """A client's way to the storage, with one transaction at a time."""

    @property
    def transaction(self) -> Transaction:
        """The transaction that was begun."""

    async def perform(self, operation: Operation, work: Callable[[], Awaitable[T]]) -> T:
        """Do one thing, with whatever befalls it on the way; an error undoes the transaction."""

    def begin(self, lock_timeout: float) -> Transaction:
        """Begin the transaction; it waits up to *lock_timeout* seconds for a lock."""

    def clock(self) -> datetime:
        """Return the storage's time."""

    def number(self) -> int:
        """Draw the id of a new dead letter."""


LOCK_TIMEOUT = 1.0


class MemorySession:
    """One transaction on runs; see `orchestrator.storage.port.Session`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._looks: Looks | None = None
        self.limited_agents: frozenset[str] = frozenset()

    @property
    def gate_holders(self) -> Mapping[tuple[UUID, str], str]:
        """Who holds the gates of the blocks that were seen, by run and block."""
        return self._looks.holders if self._looks is not None else {}

    async def first_look(self, wanted: Mapping[UUID, Wanted]) -> tuple[datetime, dict[UUID, RunState]]:
        """Lock these runs in the order of their ids; return the storage's time and a state for each."""

        async def work() -> tuple[datetime, dict[UUID, RunState]]:
            transaction = self._connection.begin(LOCK_TIMEOUT)
            self._looks = looks = Looks(transaction)
            # What a SELECT … FOR UPDATE does not find when it begins it does not lock.
            locked: set[UUID] = set()
            while new := sorted({run_id for run_id in wanted if transaction.run(run_id) is not None} - locked):
                for run_id in new:
                    await transaction.lock("run", run_id)
                locked.update(new)
            limits = transaction.tables.limits.items()
            self.limited_agents = frozenset(agent_name for agent_name, row in limits if row.limit.holds)
            return self._connection.clock(), looks.first(wanted)

        return await self._perform(Operation.FIRST_LOOK, work)

    async def load(self, states: Mapping[UUID, RunState], wanted: Mapping[UUID, Wanted]) -> None:
        """Bring what is wanted, except tasks and plans, into the states."""

        async def work() -> None:
            assert self._looks is not None, "a session begins with its first look"
            self._connection.transaction.require_open()  # a connection that was lost answers nothing any more
            self._looks.load(states, wanted)

        await self._perform(Operation.LOAD, work)

    async def load_definition(self, definition_id: str) -> dict[str, Any]:
        """Return the document of a stored definition."""

        async def work() -> dict[str, Any]:
            return definitions.load_definition(self._connection.transaction, definition_id)

        return await self._perform(Operation.LOAD_DEFINITION, work)

    async def write(self, changes: Changes) -> None:
        """Write what was collected."""
        await self._perform(Operation.WRITE, lambda: writes.write(self._connection.transaction, changes))

    async def cancel_open_steps(self, run_id: UUID, block_id: str | None, now: datetime) -> Sequence[CancelledStep]:
        """Cancel whatever of the run, or of a block's branches, is not final; return what that was."""

        async def work() -> Sequence[CancelledStep]:
            return await writes.cancel_open_steps(self._connection.transaction, run_id, block_id, now)

        return await self._perform(Operation.CANCEL_OPEN_STEPS, work)

    async def close_line(self, run_id: UUID, block_id: str, first: int, now: datetime) -> Sequence[CancelledStep]:
        """Cancel those who wait at a block's gate, from a position on; return what that was."""

        async def work() -> Sequence[CancelledStep]:
            return writes.close_line(self._connection.transaction, run_id, block_id, first, now)

        return await self._perform(Operation.CLOSE_LINE, work)

    async def take_over(self, run: Run, what: TakeOver) -> None:
        """Insert *run*, with the content of an earlier one that has ended, and what that has done."""
        await self._perform(Operation.TAKE_OVER, lambda: taking_over.take_over(self._connection.transaction, run, what))

    async def wake_branches(self, run_id: UUID, block_id: str, now: datetime) -> None:
        """Let the branches of a block that wait be due, one after the other, a microsecond apart."""

        async def work() -> None:
            taking_over.wake_branches(self._connection.transaction, run_id, block_id, now)

        await self._perform(Operation.WAKE_BRANCHES, work)

    async def _perform(self, operation: Operation, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await self._connection.perform(operation, work)
        except LockTimeout as error:
            raise RunLocked("somebody keeps a run locked") from error


class MemoryOutbox:
    """The outbox in one transaction; see `orchestrator.storage.port.Outbox`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def lock_due(self, limit: int) -> Sequence[OutboxRow]:
        """Return up to *limit* messages that are due and that nobody else is sending, the oldest first."""
        return await self._connection.perform(Operation.LOCK_DUE, lambda: self._lock_due(limit))

    async def delete(self, ids: Sequence[UUID]) -> None:
        """Forget messages that have been sent, or never can be."""
        await self._connection.perform(Operation.DELETE, lambda: self._delete(ids))

    async def delete_tasks(self, task_ids: Sequence[UUID]) -> None:
        """Forget the messages of attempts that were given up."""

        async def work() -> None:
            rows = [entry.row for entry in self._connection.transaction.messages()]
            await self._delete(row.message_id for row in rows if row.task_id in task_ids)

        await self._connection.perform(Operation.DELETE_TASKS, work)

    async def postpone(self, ids: Sequence[UUID], *, delay: float, returned: bool) -> Sequence[Postponed]:
        """Leave these for another try in *delay* seconds; *returned* when the broker said that no queue takes them."""
        return await self._connection.perform(Operation.POSTPONE, lambda: self._postpone(ids, delay, returned))

    async def put_back(self, undeliverable: Sequence[Undeliverable]) -> None:
        """Make dead letters of replays that the broker does not take."""

        async def work() -> None:
            await letters.put_back(self._connection.transaction, undeliverable, self._connection.number)

        await self._connection.perform(Operation.PUT_BACK, work)

    async def _lock_due(self, limit: int) -> Sequence[OutboxRow]:
        transaction = self._connection.transaction
        due = [
            entry
            for entry in transaction.messages()
            if entry.due_at <= transaction.now and transaction.is_free("outbox", entry.row.message_id)
        ]
        due.sort(key=lambda entry: (entry.due_at, entry.created_at))
        for entry in due[:limit]:
            await transaction.lock("outbox", entry.row.message_id)  # free, so nothing is waited for
        return [entry.row for entry in due[:limit]]

    async def _delete(self, ids: Iterable[UUID]) -> None:
        await self._connection.transaction.delete_messages(ids)

    async def _postpone(self, ids: Iterable[UUID], delay: float, returned: bool) -> Sequence[Postponed]:
        transaction = self._connection.transaction
        now = transaction.now
        postponed = []
        for message_id in await transaction.lock_messages(ids):
            entry = transaction.message(message_id)
            assert entry is not None, "it is locked"
            returned_at = (entry.returned_at or now) if returned else entry.returned_at
            due_at = now + timedelta(seconds=delay)
            transaction.changes.outbox[message_id] = replace(entry, due_at=due_at, returned_at=returned_at)
            postponed.append(Postponed(message_id, now - (returned_at or now)))
        return postponed
