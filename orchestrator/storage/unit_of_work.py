"""One transaction: the runs it locked, what it has read of them, and what it will write.

Writes are collected and flushed together, so that a batch of any number of inputs costs the same few statements. A
flush happens before a load that must see what was decided, and whenever the collection is full (so that a
huge block passes through memory in pieces). Everything is rolled back unless the block ends without an exception.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from orchestrator.engine.inputs import RunRequested
from orchestrator.engine.records import Run, StepExecution
from orchestrator.engine.state import RunState, Wanted
from orchestrator.storage import writes
from orchestrator.storage.database import Connection, Database, Row
from orchestrator.storage.definitions import load_definition
from orchestrator.storage.loading import Loader, begin_and_lock
from orchestrator.storage.writes import GateRow, OutboxRow

FLUSH_ROWS: Final = 1_000  # a block's rows and messages are written in pieces of about this size
HAND_OVER_MESSAGES: Final = 2_000  # more than this stays in the outbox for the sweeper
HAND_OVER_BYTES: Final = 8 * 1024 * 1024
HAND_OVER_SECONDS: Final = 10.0  # for so long a sweeper leaves a message to the process that wrote it
GATE_LEASE_SECONDS: Final = 5.0


class UnitOfWork:
    """One transaction; see `unit_of_work`."""

    def __init__(self, connection: Connection, replica_id: str) -> None:
        self._connection = connection
        self._replica_id = replica_id
        self._loader = Loader(connection)
        self._new_runs: dict[UUID, tuple[Run, RunRequested]] = {}
        self._changed_runs: dict[UUID, Run] = {}
        self._new_steps: dict[tuple[UUID, str], StepExecution] = {}
        self._changed_steps: dict[tuple[UUID, str], StepExecution] = {}
        self._joins: list[tuple[UUID, str]] = []
        self._gates: list[GateRow] = []
        self._outbox: list[OutboxRow] = []
        self._handed_bytes = 0
        self.handed_over: list[OutboxRow] = []
        self.left_in_outbox = False

    @property
    def gate_holders(self) -> Mapping[tuple[UUID, str], str]:
        """Who holds the gates of the blocks that were loaded, by run and block."""
        return self._loader.holders

    @property
    def is_full(self) -> bool:
        """Whether it is time to flush."""
        return len(self._new_steps) + len(self._changed_steps) + len(self._outbox) >= FLUSH_ROWS

    async def first_look(self, wanted: Mapping[UUID, Wanted]) -> tuple[datetime, dict[UUID, RunState]]:
        """Lock these runs in the order of their ids; return the database's time and a state for each.

        The tasks that are wanted are in it; whatever else is wanted `load` brings.
        """
        await begin_and_lock(self._connection, sorted(wanted))
        return await self._loader.first_look(wanted)

    async def load(self, states: Mapping[UUID, RunState], wanted: Mapping[UUID, Wanted]) -> None:
        """Bring what is wanted (except plans) into the states.

        Outcomes and failures may have been decided in this very transaction, so those wants flush it first. Everything
        else is about rows that it has not touched.
        """
        if any(some.outcomes or some.failures for some in wanted.values()):
            await self.flush()
        await self._loader.load(states, wanted)

    async def load_definition(self, definition_id: str) -> dict[str, Any]:
        """Return the document of a stored definition."""
        return await load_definition(self._connection, definition_id)

    def add_run(self, run: Run, request: RunRequested) -> None:
        """Insert a run."""
        self._new_runs[run.id] = (run, request)

    def change_run(self, run: Run) -> None:
        """Write a run's new version."""
        self._changed_runs[run.id] = run

    def add_step(self, step: StepExecution) -> None:
        """Insert a step execution."""
        self._new_steps[step.run_id, step.step_id] = step

    def change_step(self, step: StepExecution) -> None:
        """Write a step execution's new version."""
        key = (step.run_id, step.step_id)
        if key in self._new_steps:
            self._new_steps[key] = step
        else:
            self._changed_steps[key] = step

    def join(self, run_id: UUID, block_id: str) -> None:
        """Store the outputs of the block's completed branches, in definition order, as the block's output."""
        self._joins.append((run_id, block_id))

    def open_gate(self, gate: GateRow) -> None:
        """Create a limited block's gate; this replica holds it first."""
        self._gates.append(gate)

    def send(self, row: OutboxRow) -> None:
        """Put a message into the outbox."""
        self._outbox.append(row)

    async def cancel_open_steps(self, run_id: UUID, now: datetime) -> Sequence[Row]:
        """Cancel whatever of the run is not final; return step, block, branch and attempt of each."""
        await self.flush()
        rows: Sequence[Row] = await self._connection.fetch(writes.CANCEL_OPEN_STEPS, run_id, now)
        return rows

    async def flush(self) -> None:
        """Write what was collected, each kind of change with one statement."""
        execute = self._connection.execute
        if self._new_runs:
            await execute(writes.INSERT_RUNS, *writes.run_inserts(list(self._new_runs.values())))
            self._new_runs.clear()
        if self._new_steps:
            await execute(writes.INSERT_STEPS, *writes.step_inserts(list(self._new_steps.values())))
            self._new_steps.clear()
        if self._changed_runs:
            await execute(writes.UPDATE_RUNS, *writes.run_updates(list(self._changed_runs.values())))
            self._changed_runs.clear()
        if self._changed_steps and self._outbox and not self._joins:
            await self._flush_steps_and_outbox()
        if self._changed_steps:
            await execute(writes.UPDATE_STEPS, *writes.step_updates(list(self._changed_steps.values())))
            self._changed_steps.clear()
        if self._joins:
            await execute(writes.JOIN_BLOCKS, *(list(column) for column in zip(*self._joins, strict=True)))
            self._joins.clear()
        if self._gates:
            await self._flush_gates()
        if self._outbox:
            await self._flush_outbox()

    async def _flush_gates(self) -> None:
        columns = (
            [gate.run_id for gate in self._gates],
            [gate.block_id for gate in self._gates],
            [gate.max_parallelism for gate in self._gates],
        )
        await self._connection.execute(writes.INSERT_GATES, *columns, self._replica_id, GATE_LEASE_SECONDS)
        self._gates.clear()

    async def _flush_steps_and_outbox(self) -> None:
        steps = writes.step_updates(list(self._changed_steps.values()))
        await self._connection.execute(writes.UPDATE_STEPS_AND_INSERT_OUTBOX, *steps, *self._outbox_inserts())
        self._changed_steps.clear()
        self._outbox.clear()

    async def _flush_outbox(self) -> None:
        await self._connection.execute(writes.INSERT_OUTBOX, *self._outbox_inserts())
        self._outbox.clear()

    def _outbox_inserts(self) -> writes.Arguments:
        delays = [HAND_OVER_SECONDS if self._hand_over(row) else 0.0 for row in self._outbox]
        return writes.outbox_inserts(self._outbox, delays)

    def _hand_over(self, row: OutboxRow) -> bool:
        self._handed_bytes += len(row.body)
        fits = len(self.handed_over) < HAND_OVER_MESSAGES and self._handed_bytes <= HAND_OVER_BYTES
        if fits and not self.left_in_outbox:
            self.handed_over.append(row)
            return True
        self.left_in_outbox = True
        return False


@asynccontextmanager
async def unit_of_work(database: Database, replica_id: str) -> AsyncIterator[UnitOfWork]:
    """Yield a transaction; flushed and committed at the end, rolled back on an exception.

    It begins with its first look, which takes the locks.
    """
    async with database.connection() as connection:
        uow = UnitOfWork(connection, replica_id)
        try:
            yield uow
            await uow.flush()
            await connection.execute("COMMIT")
        except BaseException:
            if not connection.is_closed():
                await connection.execute("ROLLBACK")
            raise
