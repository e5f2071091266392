"""What a session reads: the locked runs, and whatever decisions want to see of them."""

from collections import Counter
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from orchestrator.engine.block import DESCRIBED_FAILURES
from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import EarlierRun, FailedBranch, Line, RunState, RunValues, Wanted
from orchestrator.storage.rows import to_error, to_value
from schemas.references import StepOutcome
from schemas.statuses import StepStatus
from schemas.stored_json import StoredJson
from tests.simulation.storage.rows import StepRow
from tests.simulation.storage.transaction import Transaction

States = Mapping[UUID, RunState]


class Looks:
    """Brings what decisions want into the run states. `holders` tells who holds the gates of the blocks seen."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self.holders: dict[tuple[UUID, str], str] = {}

    def first(self, wanted: Mapping[UUID, Wanted]) -> dict[UUID, RunState]:
        """Return a state for each run with the tasks that are wanted of it, and who is next in line."""
        states = {run_id: self._state(run_id) for run_id in wanted}
        ending: Counter[tuple[UUID, str]] = Counter()
        blocks: dict[tuple[UUID, str], None] = {}
        for task in {task: None for some in wanted.values() for task in some.tasks}:
            row = self._transaction.step_of_task(task)
            if row is None or row.record.run_id not in states:
                continue  # a forged report may name a task of a run that it does not name
            self._put(states, row)
            if row.record.parent_step_id is not None:
                block = (row.record.run_id, row.record.parent_step_id)
                blocks[block] = None
                ending[block] += any(task in some.ending for some in wanted.values())
        for block in blocks:
            self._put_block(states, block, ending[block])
        for run_id, some in wanted.items():
            for task in some.tasks:
                states[run_id].tasks.setdefault(task, None)
        return states

    def load(self, states: States, wanted: Mapping[UUID, Wanted]) -> None:
        """Bring all of *wanted* except plans and tasks."""
        for run_id, some in wanted.items():
            state = states[run_id]
            for step_id in some.steps:
                self._load_step(states, run_id, step_id)
            for step_id in some.outcomes:
                state.outcomes[step_id] = self._outcome(run_id, step_id)
            for block_id in some.failures:
                state.failures[block_id] = self._failures(run_id, block_id)
            for block_id in some.errors:
                state.errors[block_id] = self._errors(run_id, block_id)
            for block_id, first, asked in some.waiting:
                waiting = self._transaction.waiting(run_id, block_id, first, asked)
                state.put_line(block_id, Line(first, asked, tuple(waiting)))
            for block_id, asked in some.ready:
                state.put_ready(block_id, asked, self._transaction.ready(run_id, block_id, asked))
            for key in some.items:
                state.items[key] = to_value(self._transaction.item((run_id, *key)))
            if some.run_values:
                self._load_values(state, run_id)
            for earlier in some.earlier:
                state.earlier[earlier] = self._earlier(earlier)

    def _state(self, run_id: UUID) -> RunState:
        row = self._transaction.run(run_id)
        return RunState(row.record if row is not None else None)

    def _put_block(self, states: States, key: tuple[UUID, str], ending: int) -> None:
        block = self._transaction.step(key)
        assert block is not None, "it has branches"
        self._put(states, block)
        counters = block.record.branches
        if counters is None or counters.max_parallelism is None or not counters.is_gated or not ending:
            return
        if counters.passed < counters.total:
            asked = ending + counters.max_parallelism - counters.dispatched
            waiting = self._transaction.waiting(*key, counters.passed, asked)
            if waiting:
                states[key[0]].put_line(key[1], Line(counters.passed, asked, tuple(waiting)))

    def _load_step(self, states: States, run_id: UUID, step_id: str) -> None:
        row = self._transaction.step((run_id, step_id))
        if row is None:
            states[run_id].steps.setdefault(step_id, None)
            return
        self._put(states, row, with_input=True)
        parent = row.record.parent_step_id
        block = self._transaction.step((run_id, parent)) if parent is not None else None
        if block is not None:
            self._put(states, block, with_input=True)

    def _outcome(self, run_id: UUID, step_id: str) -> StepOutcome | None:
        row = self._transaction.step((run_id, step_id))
        return StepOutcome(row.record.status, StoredJson(row.output), to_value(row.error)) if row is not None else None

    def _failures(self, run_id: UUID, block_id: str) -> tuple[FailedBranch, ...]:
        branches = self._transaction.branches(run_id, block_id)
        failed = (row for row in branches if row.record.status is StepStatus.FAILED)
        return tuple(
            FailedBranch(row.record.step_id, to_error(row.error) if place < DESCRIBED_FAILURES else None)
            for place, row in enumerate(failed)
        )

    def _errors(self, run_id: UUID, block_id: str) -> dict[str, Any]:
        failed = (row for row in self._transaction.branches(run_id, block_id) if row.record.status is StepStatus.FAILED)
        return {str(row.record.branch_name): to_value(row.error) for row in failed}

    def _load_values(self, state: RunState, run_id: UUID) -> None:
        row = self._transaction.run(run_id)
        if row is not None:
            state.run_values = RunValues(to_value(row.input), StoredJson(row.output), to_error(row.error))

    def _earlier(self, run_id: UUID) -> EarlierRun | None:
        row = self._transaction.run(run_id)
        if row is None:
            return None
        cancelled = (step.record for step in self._transaction.steps(run_id))
        interrupted = next(
            (step.step_id for step in cancelled if step.parent_step_id is None and step.status is StepStatus.CANCELLED),
            None,
        )
        return EarlierRun(row.run(), interrupted)

    def _put(self, states: States, row: StepRow, *, with_input: bool = False) -> None:
        step: StepExecution = row.record
        state = states[step.run_id]
        if state.steps.get(step.step_id) is None:
            state.put_step(row.step(with_input=with_input))
        gate = self._transaction.gate(row.key)
        if gate is not None:
            self.holders[row.key] = gate.holder
