"""One transaction: the runs it locked, what it has read of them, and what it will write.

Writes are collected and flushed together, so that a batch of any number of inputs costs the same few statements. A
flush happens before a load that must see what was decided, and whenever the collection is full (so that a
huge block passes through memory in pieces). Everything is rolled back unless the block ends without an exception.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from orchestrator.engine.decision import EndedAttempt, Join, TakeOver
from orchestrator.engine.inputs import RunRequested
from orchestrator.engine.records import Run, StepExecution
from orchestrator.engine.state import RunState, Wanted
from orchestrator.storage.changes import Changes, GateRow, KeptItem, OutboxRow
from orchestrator.storage.outbox import HAND_OVER_SECONDS
from orchestrator.storage.port import Session, Storage
from orchestrator.storage.writes import CancelledStep

FLUSH_ROWS: Final = 1_000  # a block's rows and messages are written in pieces of about this size
HAND_OVER_MESSAGES: Final = 2_000  # more than this stays in the outbox for the sweeper
HAND_OVER_BYTES: Final = 8 * 1024 * 1024
PLACE_SECONDS: Final = 1e-6  # between two messages that are left to the sweep, so that they go out in their order


class UnitOfWork:
    """One transaction; see `unit_of_work`."""

    def __init__(self, session: Session, replica_id: str) -> None:
        self._session = session
        self._replica_id = replica_id
        self._changes = Changes()
        self._writing: asyncio.Task[None] | None = None
        self._handed_bytes = 0
        self._places = 0
        self.handed_over: list[OutboxRow] = []
        self.left_in_outbox = False

    @property
    def gate_holders(self) -> Mapping[tuple[UUID, str], str]:
        """Who holds the gates of the blocks that were loaded, by run and block."""
        return self._session.gate_holders

    @property
    def limited_agents(self) -> frozenset[str]:
        """The agents whose tasks are held until their limit lets them through."""
        return self._session.limited_agents

    @property
    def is_full(self) -> bool:
        """Whether it is time to flush."""
        return len(self._changes) >= FLUSH_ROWS

    async def first_look(self, wanted: Mapping[UUID, Wanted]) -> tuple[datetime, dict[UUID, RunState]]:
        """Lock these runs; return the storage's time and a state for each, with the tasks that are wanted."""
        return await self._session.first_look(wanted)

    async def load(self, states: Mapping[UUID, RunState], wanted: Mapping[UUID, Wanted]) -> None:
        """Bring what is wanted (except tasks and plans) into the states.

        Outcomes, failures, errors, who is ready and how another run ended may have been decided in this very
        transaction, so those wants flush it first. Everything else is about rows that it has not touched.
        """
        if any(some.outcomes or some.failures or some.errors or some.ready or some.earlier for some in wanted.values()):
            await self.flush()
        await self._written()
        await self._session.load(states, wanted)

    async def load_definition(self, definition_id: str) -> dict[str, Any]:
        """Return the document of a stored definition."""
        await self._written()
        return await self._session.load_definition(definition_id)

    def add_run(self, run: Run, request: RunRequested) -> None:
        """Insert a run."""
        self._changes.new_runs[run.id] = (run, request)

    def change_run(self, run: Run) -> None:
        """Write a run's new version."""
        self._changes.changed_runs[run.id] = run

    def add_step(self, step: StepExecution) -> None:
        """Insert a step execution."""
        self._changes.new_steps[step.run_id, step.step_id] = step

    def change_step(self, step: StepExecution) -> None:
        """Write a step execution's new version."""
        key = (step.run_id, step.step_id)
        if key in self._changes.new_steps:
            self._changes.new_steps[key] = step
        else:
            self._changes.changed_steps[key] = step

    def add_ended_attempt(self, ended: EndedAttempt) -> None:
        """Keep an attempt that is followed by another."""
        self._changes.ended_attempts.append(ended)

    def join(self, run_id: UUID, join: Join) -> None:
        """Store what the block's branches came to, in definition order, as the block's output."""
        self._changes.joins.append((run_id, join))

    def keep_item(self, item: KeptItem) -> None:
        """Keep an item of a loop, for steps that ask for it later."""
        self._changes.items.append(item)

    def open_gate(self, run_id: UUID, block_id: str, max_parallelism: int) -> GateRow:
        """Create a limited block's gate; this replica holds it first."""
        gate = GateRow(run_id, block_id, max_parallelism, self._replica_id)
        self._changes.gates.append(gate)
        return gate

    def send(self, row: OutboxRow) -> None:
        """Put a message into the outbox."""
        self._changes.outbox.append((row, HAND_OVER_SECONDS if self._hand_over(row) else self._next_place()))

    def hold(self, row: OutboxRow) -> None:
        """Put a task into the outbox that stays there until the limit of its agent lets it through."""
        self._changes.held.append((row, self._next_place()))

    async def cancel_open_steps(self, run_id: UUID, block_id: str | None, now: datetime) -> Sequence[CancelledStep]:
        """Cancel whatever of the run, or of a block's branches, is not final; return what that was."""
        await self.flush()
        return await self._session.cancel_open_steps(run_id, block_id, now)

    async def close_line(self, run_id: UUID, block_id: str, first: int, now: datetime) -> Sequence[CancelledStep]:
        """Cancel those who wait at a block's gate, from a position on; return what that was."""
        await self.flush()
        return await self._session.close_line(run_id, block_id, first, now)

    async def take_over(self, run: Run, what: TakeOver) -> None:
        """Insert *run* with what an earlier one has done; what was decided before about that one is seen."""
        await self.flush()
        await self._session.take_over(run, what)

    async def wake_branches(self, run_id: UUID, block_id: str, now: datetime) -> None:
        """Let the branches of a block that wait be due now."""
        await self.flush()
        await self._session.wake_branches(run_id, block_id, now)

    async def flush(self) -> None:
        """Write what was collected."""
        await self._written()
        await self._session.write(self._taken())

    async def begin_flush(self) -> None:
        """Write what was collected while the caller collects more; whatever asks the session next waits for it."""
        await self._written()
        self._writing = asyncio.create_task(self._session.write(self._taken()))
        await asyncio.sleep(0)  # one turn for it: the statement leaves before the caller goes on

    async def abandon(self) -> None:
        """Stop what is being written; the transaction is about to be rolled back."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _written(self) -> None:
        if self._writing is not None:
            await self._writing
            self._writing = None

    def _taken(self) -> Changes:
        changes, self._changes = self._changes, Changes()
        return changes

    def _next_place(self) -> float:
        # Rows that are due at one moment would be one long entry of the index, which each page of the sweep reads anew.
        self._places += 1
        return self._places * PLACE_SECONDS

    def _hand_over(self, row: OutboxRow) -> bool:
        self._handed_bytes += len(row.body)
        fits = len(self.handed_over) < HAND_OVER_MESSAGES and self._handed_bytes <= HAND_OVER_BYTES
        if fits and not self.left_in_outbox:
            self.handed_over.append(row)
            return True
        self.left_in_outbox = True
        return False


@asynccontextmanager
async def unit_of_work(storage: Storage, replica_id: str) -> AsyncIterator[UnitOfWork]:
    """Yield a transaction; flushed and committed at the end, rolled back on an exception."""
    async with storage.session() as session:
        uow = UnitOfWork(session, replica_id)
        try:
            yield uow
            await uow.flush()
        except BaseException:
            await uow.abandon()
            raise
