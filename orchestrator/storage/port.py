"""What the services ask of storage. Postgres answers in production, and dictionaries under the simulation.

Errors that pass (`orchestrator.storage.database.is_transient`) leave a transaction undone, or, at its end, in doubt:
whoever applies something must be able to apply it twice.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from orchestrator.engine.decision import TakeOver
from orchestrator.engine.inputs import DueInput
from orchestrator.engine.records import Run
from orchestrator.engine.state import RunState, Wanted
from orchestrator.storage.agent_limits import LetThrough
from orchestrator.storage.changes import Changes, OutboxRow
from orchestrator.storage.dead_letters import NewDeadLetter, Undeliverable
from orchestrator.storage.due import Due
from orchestrator.storage.gates import Lease
from orchestrator.storage.outbox import Postponed
from orchestrator.storage.silent import Silence, SilentAttempt
from orchestrator.storage.strays import Stray
from orchestrator.storage.writes import CancelledStep
from schemas.workflow import Workflow


class Session(Protocol):
    """One transaction on runs. It begins with its first look, which takes the locks."""

    @property
    def gate_holders(self) -> Mapping[tuple[UUID, str], str]:
        """Who holds the gates of the blocks that were seen, by run and block."""

    @property
    def limited_agents(self) -> frozenset[str]:
        """The agents whose tasks are held until their limit lets them through, as the first look found them."""

    async def first_look(self, wanted: Mapping[UUID, Wanted]) -> tuple[datetime, dict[UUID, RunState]]:
        """Lock these runs in the order of their ids; return the storage's time and a state for each.

        The tasks that are wanted are in it, and of blocks with a gate those who are next in line for the slots that are
        free, or will be when the ending attempts have ended; whatever else is wanted `load` brings.

        Raises:
            RunLocked: Somebody keeps one of them locked.
        """

    async def load(self, states: Mapping[UUID, RunState], wanted: Mapping[UUID, Wanted]) -> None:
        """Bring what is wanted, except tasks and plans, into the states."""

    async def load_definition(self, definition_id: str) -> dict[str, Any]:
        """Return the document of a stored definition."""

    async def take_over(self, run: Run, what: TakeOver) -> None:
        """Insert *run*, with the content of an earlier one that has ended, and what that has done.

        Steps are taken over as they ended, without their tasks. Not so where the earlier run stopped, which is left out
        unless it is a block; that waits, and so do its branches that have not completed, at the step that did not, and
        the blocks among those likewise. They have no due time yet; their counters count them as open. An agent step
        that failed for want of an input stays as it is.
        """

    async def wake_branches(self, run_id: UUID, block_id: str, now: datetime) -> None:
        """Let the branches of a block that wait be due, one after the other, a microsecond apart."""

    async def write(self, changes: Changes) -> None:
        """Write what was collected."""

    async def cancel_open_steps(self, run_id: UUID, block_id: str | None, now: datetime) -> Sequence[CancelledStep]:
        """Cancel whatever of the run, or of a block's branches, is not final; return what that was."""

    async def close_line(self, run_id: UUID, block_id: str, first: int, now: datetime) -> Sequence[CancelledStep]:
        """Cancel those who wait at a block's gate, from a position on; return what that was."""


class Outbox(Protocol):
    """The outbox from the sender's side, in one transaction."""

    async def lock_due(self, limit: int) -> Sequence[OutboxRow]:
        """Return up to *limit* messages that are due and that nobody else is sending, the oldest first.

        They stay locked until the transaction ends; should this process die, its locks go with it.
        """

    async def delete(self, ids: Sequence[UUID]) -> None:
        """Forget messages that have been sent, or never can be."""

    async def delete_tasks(self, task_ids: Sequence[UUID]) -> None:
        """Forget the messages of attempts that were given up."""

    async def postpone(self, ids: Sequence[UUID], *, delay: float, returned: bool) -> Sequence[Postponed]:
        """Leave these for another try in *delay* seconds; *returned* when the broker said that no queue takes them."""

    async def put_back(self, undeliverable: Sequence[Undeliverable]) -> None:
        """Make dead letters of replays that the broker does not take."""


class Storage(Protocol):
    """The truth about runs, shared by all replicas."""

    def session(self) -> AbstractAsyncContextManager[Session]:
        """Begin a transaction on runs: committed at the end, rolled back on an exception."""

    def outbox(self) -> AbstractAsyncContextManager[Outbox]:
        """Begin a transaction on the outbox: committed at the end, rolled back on an exception."""

    async def what_is_due(self, replica_id: str) -> frozenset[Due]:
        """Return what a replica should look after, in one round trip. Nothing is locked: others may be at it."""

    async def take_leases(self, replica_id: str) -> Sequence[Lease]:
        """Renew what this replica holds, take over what has lapsed, and return all that it holds now."""

    async def release_leases(self, replica_id: str) -> None:
        """Let the leases of this replica lapse at once, so that others need not wait."""

    async def delete_gate(self, replica_id: str, run_id: UUID, block_id: str) -> None:
        """Forget a gate whose queue is gone, with its unsent tickets, if this replica still holds it."""

    async def agents_with_room(self) -> Sequence[str]:
        """Return the agents of which held tasks may go out now, or are to be dropped. Nothing is locked."""

    async def let_tasks_through(self, agent_name: str, page: int) -> LetThrough:
        """Let the next of an agent's held tasks through, up to *page* of them, as far as its limit has room.

        Of one agent, transactions take turns. The caller sends what comes back; should it die, a sweep does.
        """

    async def block_over(self, run_id: UUID, block_id: str) -> bool:
        """Return whether a block is final; its branch of another block may go on behind it."""

    async def branches_over(self, run_id: UUID, step_ids: Sequence[str]) -> frozenset[str]:
        """Return those of *step_ids* whose branches are over: it is final, and so are those that followed it."""

    async def due_inputs(self, limit: int) -> Sequence[DueInput]:
        """Return attempts and runs that are overdue, and steps whose next attempt starts, the longest first.

        Nothing of it is locked: deciding about it looks again.
        """

    async def count_silent(self, seconds: float) -> Sequence[Silence]:
        """Return the agents that have attempts without a sign of life for *seconds*, by name."""

    async def oldest_silent(self, agent_name: str, seconds: float, limit: int) -> Sequence[SilentAttempt]:
        """Return up to *limit* silent attempts of an agent, those that were sent first."""

    async def find_strays(self, seconds: float, limit: int) -> Sequence[Stray]:
        """Return up to *limit* sub-workflows of each kind whose step and run do not fit together any more.

        *seconds* is for how long a message between the two may travel.
        """

    async def store_definition(self, workflow: Workflow, document: Mapping[str, Any]) -> str:
        """Store a definition unless it is there already; return its id."""

    async def find_definition(self, workflow_id: str, version: str | None) -> tuple[str, str]:
        """Return the id and version of the newest definition registered under *workflow_id* (and *version*).

        Raises:
            UnknownWorkflow: There is none.
        """

    async def store_dead_letters(self, letters: Sequence[NewDeadLetter]) -> None:
        """Store dead letters; those that are stored already stay as they are."""

    async def check(self) -> None:
        """Make sure that storage answers."""
