"""The storage that clients share: what was committed, its locks, and its clock."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import count
from typing import Any
from uuid import UUID, uuid4

from orchestrator.engine.agent_limit import AgentLimit
from orchestrator.engine.records import Run, StepExecution
from orchestrator.storage.changes import OutboxRow
from orchestrator.storage.definitions import definition_id
from orchestrator.storage.rows import to_value
from schemas.workflow import Workflow
from tests.simulation.storage import agents, definitions, letters
from tests.simulation.storage.client import MemoryClient
from tests.simulation.storage.locks import Locks
from tests.simulation.storage.operations import Scheduler
from tests.simulation.storage.rows import HeldGate, StepKey, StoredLetter
from tests.simulation.storage.tables import Commit, Rows, Tables
from tests.simulation.storage.transaction import COMMAND_TIMEOUT, Transaction

OnCommit = Callable[[Commit], None]


class MemoryStorage:
    """Storage in memory; its clients are what the port asks for."""

    def __init__(self, clock: Callable[[], datetime], *, on_commit: OnCommit | None = None) -> None:
        """Make an empty one.

        Args:
            clock: Returns its time, in UTC.
            on_commit: Called with each commit that changed something, once it has.
        """
        self.clock = clock
        self.on_commit = on_commit
        self._tables = Tables()
        self._locks = Locks()
        self._numbers = count(1)

    def client(self, name: str, scheduler: Scheduler | None = None) -> MemoryClient:
        """Return the storage as one process sees it; *scheduler* decides what befalls its operations."""
        return MemoryClient(self, name, scheduler)

    # For clients

    def begin(self, client: str, lock_timeout: float) -> Transaction:
        """Begin a transaction; it waits up to *lock_timeout* seconds for a lock."""
        return Transaction(
            self._tables, self._locks, self.clock(), lambda changes: self._publish(client, changes), lock_timeout
        )

    def number(self) -> int:
        """Draw the id of a new dead letter."""
        return next(self._numbers)

    # What operators do

    def register_workflow(self, workflow: Workflow, document: Mapping[str, Any]) -> str:
        """Make a definition that is stored available by its workflow id; return its own id."""
        identity = definition_id(document)
        begun = self.begin("operator", COMMAND_TIMEOUT)
        definitions.register(begun, identity)
        begun.commit()
        return identity

    def replay(self, ids: Sequence[int]) -> frozenset[int]:
        """Put the original messages of dead letters into the outbox; return whose."""
        begun = self.begin("operator", COMMAND_TIMEOUT)
        replayed = letters.replay(begun, ids, uuid4)
        begun.commit()
        return replayed

    async def limit_agent(self, agent_name: str, limit: AgentLimit) -> None:
        """Limit an agent from now on; wait for whoever lets its tasks through just now."""
        begun = self.begin("operator", COMMAND_TIMEOUT)
        await agents.lock(begun, agent_name)
        agents.set_limit(begun, agent_name, limit)
        begun.commit()

    # What oracles look at

    @property
    def runs(self) -> Mapping[UUID, Run]:
        """The runs, with their errors."""
        return {run_id: row.run() for run_id, row in self._tables.runs.items()}

    @property
    def steps(self) -> Mapping[StepKey, StepExecution]:
        """The step executions, with their errors."""
        return {key: row.step() for key, row in self._tables.steps.items()}

    @property
    def outbox_rows(self) -> Sequence[OutboxRow]:
        """The messages that are still to be sent."""
        return [entry.row for entry in self._tables.outbox.values()]

    @property
    def gate_rows(self) -> Sequence[HeldGate]:
        """The gates that are not deleted."""
        return list(self._tables.gates.values())

    @property
    def dead_letter_rows(self) -> Sequence[StoredLetter]:
        """The dead letters, the oldest first."""
        return sorted(self._tables.letters.values(), key=lambda stored: stored.id)

    @property
    def waiting(self) -> int:
        """How many transactions wait for a lock."""
        return self._locks.waiting

    def output_of(self, run_id: UUID, step_id: str | None = None) -> Any:
        """Return the output of a step, or of the run itself; null where there is none."""
        row = self._tables.steps[run_id, step_id] if step_id is not None else self._tables.runs[run_id]
        return to_value(row.output)

    def _publish(self, client: str, changes: Rows) -> None:
        commit = self._tables.apply(client, changes)
        if self.on_commit is not None:
            self.on_commit(commit)
