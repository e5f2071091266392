"""A transaction: its changes lie over what is committed, where nobody else sees them, until it ends.

It reads as Postgres does at READ COMMITTED: its own changes, and beneath them whatever is committed at that moment.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from datetime import datetime
from heapq import merge
from typing import Final
from uuid import UUID

import asyncpg

from orchestrator.engine.records import StepExecution
from schemas.statuses import StepStatus
from tests.simulation.storage.locks import Locks, Owner
from tests.simulation.storage.rows import HeldGate, QueuedMessage, RunRow, StepKey, StepRow, StoredLetter
from tests.simulation.storage.tables import Family, ItemKey, Place, Rows, Tables

COMMAND_TIMEOUT: Final = 60.0  # seconds after which the driver gives a statement up, as `Database` does by default


class TransactionOver(ConnectionError):
    """It was undone, so nothing more can be done in it."""


class Transaction:
    """One transaction of one client."""

    def __init__(
        self, tables: Tables, locks: Locks, now: datetime, publish: Callable[[Rows], None], lock_timeout: float
    ) -> None:
        """Begin it.

        Args:
            tables: What is committed.
            locks: Of all transactions.
            now: Its time, as Postgres' `now()` is the time of BEGIN.
            publish: Takes its changes in when it is committed.
            lock_timeout: Seconds to wait for a row.
        """
        self.now = now
        self.tables = tables
        self.changes = Rows()
        self.is_open = True
        self._locks = locks
        self._publish = publish
        self._lock_timeout = lock_timeout
        self._owner = Owner()
        self._tasks: dict[UUID, StepKey] = {}
        self._new_places: defaultdict[Family, list[Place]] = defaultdict(list)

    # Its end

    def commit(self) -> None:
        """Make its changes everybody's, and let its locks go."""
        self.require_open()
        self.is_open = False
        try:
            if self.changes:
                self._publish(self.changes)
        finally:
            self._locks.release(self._owner)

    def rollback(self) -> None:
        """Undo it, unless it is over already."""
        if self.is_open:
            self.is_open = False
            self._locks.release(self._owner)

    def require_open(self) -> None:
        """Make sure that it is not over."""
        if not self.is_open:
            raise TransactionOver("the transaction is over: an error or a lost connection has undone it")

    # Locks

    async def lock(self, *key: Hashable) -> None:
        """Lock a row, named by its table and its primary key, until the end."""
        self.require_open()  # its client may have died when another lock was just granted
        await self._locks.acquire(key, self._owner, self._lock_timeout)

    def is_free(self, *key: Hashable) -> bool:
        """Return whether a row can be locked without waiting."""
        return self._locks.is_free(key, self._owner)

    # What it sees

    def run(self, run_id: UUID) -> RunRow | None:
        """Return a run."""
        return self.changes.runs.get(run_id) or self.tables.runs.get(run_id)

    def step(self, key: StepKey) -> StepRow | None:
        """Return a step execution."""
        return self.changes.steps.get(key) or self.tables.steps.get(key)

    def step_of_task(self, task_id: UUID) -> StepRow | None:
        """Return the step execution whose current attempt this is."""
        key = self._tasks.get(task_id) or self.tables.by_task.get(task_id)
        row = self.step(key) if key is not None else None
        return row if row is not None and row.record.task_id == task_id else None

    def item(self, key: ItemKey) -> str | None:
        """Return an item of a loop."""
        return self.changes.items.get(key) or self.tables.items.get(key)

    def gate(self, key: StepKey) -> HeldGate | None:
        """Return a gate."""
        return self.changes.gates[key] if key in self.changes.gates else self.tables.gates.get(key)

    def slots(self, agent_name: str) -> Iterator[UUID]:
        """Yield the tasks that have slots of an agent."""
        for task_id, owner in (self.tables.slots | self.changes.slots).items():
            if owner == agent_name:
                yield task_id

    def held(self, agent_name: str) -> Sequence[QueuedMessage]:
        """Return the tasks that an agent's limit holds back, the next in line first."""
        line = [
            (entry.held_at, entry)
            for entry in self.messages()
            if entry.held_at is not None and entry.row.routing_key == agent_name
        ]
        return [entry for _, entry in sorted(line, key=lambda place: place[0])]

    def message(self, message_id: UUID) -> QueuedMessage | None:
        """Return a message of the outbox."""
        changes = self.changes.outbox
        return changes[message_id] if message_id in changes else self.tables.outbox.get(message_id)

    def messages(self) -> Iterator[QueuedMessage]:
        """Yield the outbox, as it was written."""
        changes = self.changes.outbox
        yield from (entry for key, entry in self.tables.outbox.items() if key not in changes)
        yield from (entry for entry in changes.values() if entry is not None)

    def branches(self, run_id: UUID, block_id: str, first: int = 0) -> Iterator[StepRow]:
        """Yield a block's branches from a position on, in the order of the definition."""
        places = self._family((run_id, block_id))
        for index in range(bisect_left(places, (first, "")), len(places)):
            yield self._sibling(run_id, places[index])

    def waiting(self, run_id: UUID, block_id: str, first: int, count: int) -> Sequence[StepExecution]:
        """Return those with their inputs who are next in line at a block's gate, from a position on."""
        found: list[StepExecution] = []
        for row in self.branches(run_id, block_id, first):
            if len(found) >= count:
                break
            if row.record.status is StepStatus.PENDING:
                found.append(row.step(with_input=True))
        return found

    def ready(self, run_id: UUID, block_id: str, count: int) -> Sequence[StepExecution]:
        """Return those with their inputs whose next attempt waits for a slot of a block, the longest first."""
        waiting = [
            (row.record.ready_at, row.record.position, row)
            for row in self.branches(run_id, block_id)
            if row.record.ready_at is not None
        ]
        return [row.step(with_input=True) for *_, row in sorted(waiting, key=lambda found: found[:2])[:count]]

    def steps(self, run_id: UUID) -> Iterator[StepRow]:
        """Yield all step executions of a run."""
        blocks: list[str | None] = [None]
        for block_id in blocks:  # it grows while we go
            for place in self._family((run_id, block_id)):
                row = self._sibling(run_id, place)
                yield row
                if row.record.branches is not None:
                    blocks.append(row.record.step_id)

    # What it changes

    def put_step(self, row: StepRow) -> None:
        """Insert or update a step execution."""
        record = row.record
        if self.step(row.key) is None:
            self._new_places[record.run_id, record.parent_step_id].append((record.position, record.step_id))
        if record.task_id is not None:
            owner = self.step_of_task(record.task_id)
            if owner is not None and owner.key != row.key:
                raise violated("uq_step_executions_task_id", record.task_id)
            self._tasks[record.task_id] = row.key
        self.changes.steps[row.key] = row

    async def delete_messages(self, ids: Iterable[UUID]) -> Sequence[QueuedMessage]:
        """Delete messages, waiting for whoever has them locked; return those that were still there."""
        gone = []
        for message_id in await self.lock_messages(ids):
            entry = self.message(message_id)
            assert entry is not None, "it is locked"
            self.changes.outbox[message_id] = None
            gone.append(entry)
        return gone

    async def lock_messages(self, ids: Iterable[UUID]) -> Sequence[UUID]:
        """Lock messages, waiting for whoever has them locked; return those that are still there."""
        found = []
        for message_id in sorted(set(ids)):
            if self.message(message_id) is None:
                continue
            await self.lock("outbox", message_id)
            if self.message(message_id) is not None:
                found.append(message_id)
        return found

    async def insert_letter(self, letter: StoredLetter) -> None:
        """Insert a dead letter unless its key is taken."""
        key = letter.letter.key
        await self.lock("letter", key)  # who inserts the same just now must end first
        if self.changes.letters.get(key) is None and key not in self.tables.letters:
            self.changes.letters[key] = letter

    def _family(self, family: Family) -> Sequence[Place]:
        committed, new = self.tables.families.get(family, ()), self._new_places.get(family)
        return list(merge(committed, sorted(new))) if new else committed

    def _sibling(self, run_id: UUID, place: Place) -> StepRow:
        row = self.step((run_id, place[1]))
        assert row is not None, "rows are never deleted"
        return row


def violated(constraint: str, value: object) -> asyncpg.UniqueViolationError:
    """Return the error of a unique constraint, as the driver raises it."""
    error = asyncpg.UniqueViolationError(f'duplicate key value violates unique constraint "{constraint}": {value}')
    error.constraint_name = constraint
    return error
