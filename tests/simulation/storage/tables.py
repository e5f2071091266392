"""What was committed: rows by their keys, the indexes that reads need, and what a commit adds to them."""

from bisect import insort
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from orchestrator.engine.records import Run, StepExecution
from orchestrator.storage.changes import OutboxRow
from schemas.statuses import RunStatus
from tests.simulation.storage.rows import (
    EndedRow,
    HeldGate,
    LimitRow,
    QueuedMessage,
    RunRow,
    StepKey,
    StepRow,
    StoredDefinition,
    StoredLetter,
)

K = TypeVar("K")
V = TypeVar("V")

Place = tuple[int, str]  # of a step among its siblings: position and id
ItemKey = tuple[UUID, str, int]  # of a loop, the item of an iteration
Family = tuple[UUID, str | None]  # the branches of a block of a run, or the steps that are nobody's branch


@dataclass(slots=True)
class Rows:
    """Rows by their primary keys. Among the changes of a transaction, None stands for a row that it deletes."""

    runs: dict[UUID, RunRow] = field(default_factory=dict)
    steps: dict[StepKey, StepRow] = field(default_factory=dict)
    ended: dict[tuple[UUID, str, int], EndedRow] = field(default_factory=dict)  # by step and attempt
    items: dict[ItemKey, str] = field(default_factory=dict)
    outbox: dict[UUID, QueuedMessage | None] = field(default_factory=dict)
    gates: dict[StepKey, HeldGate | None] = field(default_factory=dict)
    letters: dict[str, StoredLetter | None] = field(default_factory=dict)  # by their key, which is unique too
    definitions: dict[str, StoredDefinition] = field(default_factory=dict)
    limits: dict[str, LimitRow] = field(default_factory=dict)  # by agent
    slots: dict[UUID, str | None] = field(default_factory=dict)  # agents by task

    def __bool__(self) -> bool:
        rows = (self.runs, self.steps, self.ended, self.items, self.outbox, self.gates, self.letters, self.definitions)
        return any((*rows, self.limits, self.slots))


@dataclass(frozen=True, slots=True)
class Commit:
    """What a commit changed: pairs of what was before (None: nothing) and after. Inputs and outputs are not in it."""

    client: str
    runs: Sequence[tuple[Run | None, Run]]
    steps: Sequence[tuple[StepExecution | None, StepExecution]]
    gates: Sequence[tuple[HeldGate | None, HeldGate | None]]  # after is None: deleted
    sent: Sequence[OutboxRow]  # new in the outbox, and not held
    let_through: Sequence[OutboxRow]  # held before
    forgotten: Sequence[OutboxRow]  # deleted from it


class Tables:
    """All that was committed."""

    def __init__(self) -> None:
        self.runs: dict[UUID, RunRow] = {}
        self.steps: dict[StepKey, StepRow] = {}
        self.ended: dict[tuple[UUID, str, int], EndedRow] = {}
        self.items: dict[ItemKey, str] = {}
        self.outbox: dict[UUID, QueuedMessage] = {}
        self.gates: dict[StepKey, HeldGate] = {}
        self.letters: dict[str, StoredLetter] = {}
        self.definitions: dict[str, StoredDefinition] = {}
        self.limits: dict[str, LimitRow] = {}
        self.slots: dict[UUID, str] = {}
        self.by_task: dict[UUID, StepKey] = {}
        self.due: dict[StepKey, datetime] = {}
        self.due_runs: dict[UUID, datetime] = {}
        self.families: defaultdict[Family, list[Place]] = defaultdict(list)
        self._open: dict[StepKey, None] = {}

    def open_attempts(self) -> Iterator[StepExecution]:
        """Yield the open attempts of running runs."""
        for key in self._open:
            if self.runs[key[0]].record.status is RunStatus.RUNNING:
                yield self.steps[key].record

    def open_sub_workflows(self) -> Iterator[StepExecution]:
        """Yield the steps with an open attempt that a run of another workflow carries out."""
        for row in self.steps.values():
            if row.record.sub_workflow_id is not None and row.record.is_dispatched:
                yield row.record

    def apply(self, client: str, changes: Rows) -> Commit:
        """Take a transaction's changes in, all at once."""
        commit = self._describe(client, changes)
        for key, step in changes.steps.items():
            self._index(key, self.steps.get(key), step)
        self.steps |= changes.steps
        self.ended |= changes.ended
        self.items |= changes.items
        self.runs |= changes.runs
        for run_id, run in changes.runs.items():
            _note(self.due_runs, run_id, run.record.due_at)
        self.definitions |= changes.definitions
        self.limits |= changes.limits
        _merge(self.slots, changes.slots)
        _merge(self.outbox, changes.outbox)
        _merge(self.gates, changes.gates)
        _merge(self.letters, changes.letters)
        return commit

    def _describe(self, client: str, changes: Rows) -> Commit:
        runs, steps, outbox = self.runs, self.steps, self.outbox
        return Commit(
            client=client,
            runs=[(runs[key].run() if key in runs else None, after.run()) for key, after in changes.runs.items()],
            steps=[(steps[key].step() if key in steps else None, row.step()) for key, row in changes.steps.items()],
            gates=[(self.gates.get(key), after) for key, after in changes.gates.items()],
            sent=[
                after.row
                for key, after in changes.outbox.items()
                if after is not None and key not in outbox and after.held_at is None
            ],
            let_through=[
                after.row
                for key, after in changes.outbox.items()
                if after is not None and key in outbox and outbox[key].held_at is not None and after.held_at is None
            ],
            forgotten=[outbox[key].row for key, after in changes.outbox.items() if after is None and key in outbox],
        )

    def _index(self, key: StepKey, before: StepRow | None, after: StepRow) -> None:
        new = after.record
        if before is None:
            insort(self.families[new.run_id, new.parent_step_id], (new.position, new.step_id))
        elif before.record.task_id is not None and before.record.task_id != new.task_id:
            del self.by_task[before.record.task_id]
        if new.task_id is not None:
            self.by_task[new.task_id] = key
        _note(self.due, key, new.due_at)
        if after.has_open_attempt:
            self._open[key] = None
        else:
            self._open.pop(key, None)


def _note(times: dict[K, datetime], key: K, time: datetime | None) -> None:
    if time is None:
        times.pop(key, None)
    else:
        times[key] = time


def _merge(rows: dict[K, V], changes: Mapping[K, V | None]) -> None:
    for key, row in changes.items():
        if row is None:
            rows.pop(key, None)
        else:
            rows[key] = row
