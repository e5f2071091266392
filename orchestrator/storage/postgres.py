"""Storage on Postgres: each call a statement, or a transaction of a few."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg

from messaging.crash_points import reach
from orchestrator.engine.decision import TakeOver
from orchestrator.engine.inputs import DueInput
from orchestrator.engine.records import Run
from orchestrator.engine.state import RunState, Wanted
from orchestrator.errors import RunLocked
from orchestrator.storage import (
    agent_limits,
    dead_letters,
    definitions,
    due,
    gates,
    silent,
    strays,
    taking_over,
    timers,
    writes,
)
from orchestrator.storage.agent_limits import LetThrough
from orchestrator.storage.changes import Changes
from orchestrator.storage.database import Connection, Database, is_locked_out
from orchestrator.storage.dead_letters import NewDeadLetter, Selection
from orchestrator.storage.due import Due
from orchestrator.storage.gates import Lease
from orchestrator.storage.loading import Loader, begin_and_lock, lock
from orchestrator.storage.outbox import PostgresOutbox
from orchestrator.storage.silent import Silence, SilentAttempt
from orchestrator.storage.strays import Stray
from orchestrator.storage.writes import CancelledStep
from schemas.workflow import Workflow

WARM_CONNECTIONS: Final = 3  # results, the outbox, and one of the loops that look after the rest


class PostgresSession:
    """One transaction on runs; see `orchestrator.storage.port.Session`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loader = Loader(connection)

    @property
    def gate_holders(self) -> Mapping[tuple[UUID, str], str]:
        """Who holds the gates of the blocks that were seen, by run and block."""
        return self._loader.holders

    @property
    def limited_agents(self) -> frozenset[str]:
        """The agents whose tasks are held until their limit lets them through, as the first look found them."""
        return self._loader.limited_agents

    async def first_look(self, wanted: Mapping[UUID, Wanted]) -> tuple[datetime, dict[UUID, RunState]]:
        """Lock these runs in the order of their ids; return the database's time and a state for each."""
        locked = await begin_and_lock(self._connection, sorted(wanted))
        while True:
            now, states = await self._loader.first_look(wanted)
            if sum(state.run is not None for state in states.values()) == locked:
                return now, states
            # What is seen and not locked may have changed by the time it is written.
            locked = await lock(self._connection, sorted(wanted))

    async def load(self, states: Mapping[UUID, RunState], wanted: Mapping[UUID, Wanted]) -> None:
        """Bring what is wanted, except tasks and plans, into the states."""
        await self._loader.load(states, wanted)

    async def load_definition(self, definition_id: str) -> dict[str, Any]:
        """Return the document of a stored definition."""
        return await definitions.load_definition(self._connection, definition_id)

    async def take_over(self, run: Run, what: TakeOver) -> None:
        """Insert *run*, with the content of an earlier one that has ended, and what that has done."""
        await taking_over.take_over(self._connection, run, what)

    async def wake_branches(self, run_id: UUID, block_id: str, now: datetime) -> None:
        """Let the branches of a block that wait be due, one after the other, a microsecond apart."""
        await taking_over.wake_branches(self._connection, run_id, block_id, now)

    async def write(self, changes: Changes) -> None:
        """Write what was collected, each kind of change with one statement."""
        await writes.write(self._connection, changes)

    async def write_nothing(self) -> None:
        """Execute the statement with which most transactions end, without a row."""
        await writes.write_nothing(self._connection)

    async def cancel_open_steps(self, run_id: UUID, block_id: str | None, now: datetime) -> Sequence[CancelledStep]:
        """Cancel whatever of the run, or of a block's branches, is not final; return what that was."""
        return await writes.cancel_open_steps(self._connection, run_id, block_id, now)

    async def close_line(self, run_id: UUID, block_id: str, first: int, now: datetime) -> Sequence[CancelledStep]:
        """Cancel those who wait at a block's gate, from a position on; return what that was."""
        return await writes.close_line(self._connection, run_id, block_id, first, now)


class PostgresStorage:
    """The truth about runs, in a migrated database; see `orchestrator.storage.port.Storage`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def session(self) -> AsyncIterator[PostgresSession]:
        """Begin a transaction on runs: committed at the end, rolled back on an exception."""
        async with self._database.connection() as connection:
            try:
                yield PostgresSession(connection)  # its first statement begins the transaction
                reach("transaction.written")
                await connection.execute("COMMIT")
            except BaseException as error:
                if _is_open(connection):
                    await connection.execute("ROLLBACK")
                if is_locked_out(error):
                    raise RunLocked("somebody keeps a run locked") from error
                raise

    @asynccontextmanager
    async def outbox(self) -> AsyncIterator[PostgresOutbox]:
        """Begin a transaction on the outbox: committed at the end, rolled back on an exception."""
        async with self._database.transaction() as connection:
            yield PostgresOutbox(connection)

    async def warm_up(self) -> None:
        """Open some connections, and have Postgres plan what nearly every transaction does.

        A connection's first transaction takes 25 ms and its next ones 2: that is not for the first runs to wait for.
        Of what goes wrong hears whoever needs a connection next.
        """
        await asyncio.gather(*(self._change_nothing() for _ in range(WARM_CONNECTIONS)), return_exceptions=True)

    async def what_is_due(self, replica_id: str) -> frozenset[Due]:
        """Return what a replica should look after."""
        return await due.what_is_due(self._database, replica_id)

    async def take_leases(self, replica_id: str) -> Sequence[Lease]:
        """Renew what this replica holds, take over what has lapsed, and return all that it holds now."""
        return await gates.take_leases(self._database, replica_id)

    async def release_leases(self, replica_id: str) -> None:
        """Let the leases of this replica lapse at once, so that others need not wait."""
        await gates.release_leases(self._database, replica_id)

    async def delete_gate(self, replica_id: str, run_id: UUID, block_id: str) -> None:
        """Forget a gate whose queue is gone, with its unsent tickets, if this replica still holds it."""
        await gates.delete_gate(self._database, replica_id, run_id, block_id)

    async def agents_with_room(self) -> Sequence[str]:
        """Return the agents of which held tasks may go out now, or are to be dropped."""
        return await agent_limits.agents_with_room(self._database)

    async def let_tasks_through(self, agent_name: str, page: int) -> LetThrough:
        """Let the next of an agent's held tasks through, as far as its limit has room."""
        return await agent_limits.let_tasks_through(self._database, agent_name, page)

    async def block_over(self, run_id: UUID, block_id: str) -> bool:
        """Return whether a block is final."""
        return await gates.block_over(self._database, run_id, block_id)

    async def branches_over(self, run_id: UUID, step_ids: Sequence[str]) -> frozenset[str]:
        """Return those of *step_ids* that are final."""
        return await gates.branches_over(self._database, run_id, step_ids)

    async def due_inputs(self, limit: int) -> Sequence[DueInput]:
        """Return what is due, the longest first."""
        return await timers.due_inputs(self._database, limit)

    async def count_silent(self, seconds: float) -> Sequence[Silence]:
        """Return the agents that have attempts without a sign of life for *seconds*, by name."""
        return await silent.count_silent(self._database, seconds)

    async def oldest_silent(self, agent_name: str, seconds: float, limit: int) -> Sequence[SilentAttempt]:
        """Return up to *limit* silent attempts of an agent, those that were sent first."""
        return await silent.oldest_silent(self._database, agent_name, seconds, limit)

    async def find_strays(self, seconds: float, limit: int) -> Sequence[Stray]:
        """Return up to *limit* sub-workflows of each kind whose step and run do not fit together any more."""
        return await strays.find_strays(self._database, seconds, limit)

    async def store_definition(self, workflow: Workflow, document: Mapping[str, Any]) -> str:
        """Store a definition unless it is there already; return its id."""
        return await definitions.store_definition(self._database, workflow, document)

    async def find_definition(self, workflow_id: str, version: str | None) -> tuple[str, str]:
        """Return the id and version of the newest definition of a workflow. Raises UnknownWorkflow."""
        return await definitions.find_definition(self._database, workflow_id, version)

    async def store_dead_letters(self, letters: Sequence[NewDeadLetter]) -> None:
        """Store dead letters; those that are stored already stay as they are."""
        await dead_letters.store(self._database, letters)

    async def _change_nothing(self) -> None:
        async with self.session() as session:
            await session.first_look({uuid4(): Wanted()})
            await session.write_nothing()

    async def check(self) -> None:
        """Make sure that storage answers."""
        await dead_letters.list_dead_letters(self._database, Selection(), 1)


def _is_open(connection: Connection) -> bool:
    """Whether there is a transaction left to roll back."""
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:  # asyncpg's pool takes a connection from us the moment that its backend goes
        return False
