"""What must hold: at every commit, and when everything is quiet again. The letters are those of the fault catalogue.

- complete (O1): every run ends; checked by the world, which waits for it
- one effect (O2): statuses, outputs and errors are those of the fault-free run; the client is told
- bounded repeats (O3): an agent works on an attempt once, and once more at most for each fault
- limit (O4): never more than max_parallelism branches of a block hold slots
- quiet (O5): afterwards the queues, the outbox and the gates are empty, and there are no dead letters
- final (O7): what has ended never changes
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from orchestrator.engine.records import Run, StepExecution
from schemas.messages import RunResult
from schemas.statuses import ResultStatus, RunStatus, StepStatus
from tests.property.cases import Case, bare, decided_wrongly
from tests.property.oracle import sequential

StepKey = tuple[UUID, str]


class Violation(AssertionError):
    """An oracle says no."""


def require(holds: bool, oracle: str, *what: object) -> None:
    """Raise Violation unless something holds."""
    if not holds:
        raise Violation(f"{oracle}: {' '.join(map(str, what))}")


@dataclass(frozen=True)
class Execution:
    """An agent that began to work on a task."""

    run_id: UUID
    step_id: str
    attempt: int
    process: str
    at: float


class History:
    """All that was ever committed, checked as it comes."""

    def __init__(self) -> None:
        self.runs: dict[UUID, Run] = {}
        self.steps: dict[StepKey, StepExecution] = {}
        self._slots: Counter[StepKey] = Counter()  # by block

    def run_changed(self, before: Run | None, after: Run) -> None:
        """Take in what a commit did to a run."""
        if before is not None and before.status.is_final:
            require(after.status is before.status, "O7 final", "run", after.id, before.status, "became", after.status)
        if before is None and after.parent is not None:
            step = self.steps.get((after.parent.run_id, after.parent.step_id))
            is_awaited = step is not None and step.is_dispatched and step.task_id == after.id
            require(is_awaited, "O2 effect", "run", after.id, "starts, and nobody waits for it:", step)
        self.runs[after.id] = after

    def steps_changed(self, changes: Iterable[tuple[StepExecution | None, StepExecution]]) -> None:
        """Take in what one commit did to steps."""
        touched = set()
        for before, after in changes:
            self.steps[after.run_id, after.step_id] = after
            _check_final(before, after)
            if after.parent_step_id is not None:
                block = (after.run_id, after.parent_step_id)
                self._slots[block] += after.is_dispatched - (before is not None and before.is_dispatched)
                touched.add(block)
        for block in touched:
            self._check_limit(block)

    def steps_of(self, run_id: UUID) -> dict[str, StepExecution]:
        """Return the steps of a run, by their ids."""
        return {step_id: step for (run, step_id), step in self.steps.items() if run == run_id}

    def _check_limit(self, key: StepKey) -> None:
        block = self.steps[key].branches
        assert block is not None, "it has branches"
        if block.is_gated and block.max_parallelism is not None:
            taken = self._slots[key]
            require(taken <= block.max_parallelism, "O4 limit", key[1], "has", taken, "branches under way:", block)


def _check_final(before: StepExecution | None, after: StepExecution) -> None:
    if before is not None and before.status.is_final:
        same = (after.status, after.error, after.finished_at) == (before.status, before.error, before.finished_at)
        require(same, "O7 final", "step", after.step_id, before, "became", after)


def check_outcome(
    case: Case, run: Run, steps: Mapping[str, StepExecution], outputs: Mapping[str, Any], *, may_be_cancelled: bool
) -> None:
    """Compare how a run ended with the run that one step after the other would have been."""
    if may_be_cancelled and run.status is RunStatus.CANCELLED:
        return
    wrong = decided_wrongly(case, {step_id: step.status for step_id, step in steps.items()})
    require(not wrong, "O2 effect", "blocks did not end as their policy says:", wrong)
    if not case.is_certain:
        return
    expected = sequential(case)
    require(run.status is expected.status, "O2 effect", "the run is", run.status, "not", expected.status, run.error)
    for step_id, outcome in expected.steps.items():
        step = steps.get(step_id)
        require(step is not None, "O2 effect", step_id, "never ran")
        assert step is not None
        require(
            step.status is outcome.status, "O2 effect", step_id, "is", step.status, "not", outcome.status, step.error
        )
        if outcome.status is StepStatus.COMPLETED:
            require(
                bare(outputs[step_id]) == outcome.output, "O2 effect", step_id, "said", outputs[step_id], outcome.output
            )
        elif outcome.error is not None:
            code = step.error.code if step.error is not None else None
            require(code == outcome.error["code"], "O2 effect", step_id, "failed with", code, "not", outcome.error)
    ran = {step_id for step_id, step in steps.items() if step.status is not StepStatus.SKIPPED}
    require(ran <= expected.steps.keys(), "O2 effect", ran - expected.steps.keys(), "should not have run")


def check_taken_over(
    earlier: Mapping[str, StepExecution], steps: Mapping[str, StepExecution], executed: Collection[str]
) -> set[str]:
    """Make sure that a run does nothing again that an earlier one has completed; return what it has taken over."""
    kept = {
        step_id
        for step_id, before in earlier.items()
        if step_id in steps and before._replace(run_id=steps[step_id].run_id, task_id=None) == steps[step_id]
    }
    completed = {step_id for step_id, before in earlier.items() if before.status is StepStatus.COMPLETED}
    require(completed <= kept, "O2 effect", completed - kept, "completed, and the retry has not taken it over")
    require(not kept & set(executed), "O2 effect", kept & set(executed), "ran again in the retry")
    return kept


def check_told(run: Run, results: Iterable[RunResult]) -> None:
    """Make sure that the client heard how its run ended, and nothing else."""
    told = {result.status for result in results}
    require(told == {ResultStatus(run.status.value)}, "O2 effect", "the run is", run.status, "the client heard", told)


def check_children(history: History) -> None:
    """Make sure that each run of a sub-workflow belongs to an attempt, and that its step came to what it came to."""
    for step in history.steps.values():
        if step.child_run_id is None:
            continue  # no attempt yet, or taken over from an earlier run
        child = history.runs.get(step.child_run_id)
        if child is not None:
            require(child.parent is not None, "O2 effect", step.step_id, "has a run that does not know it")
        if step.status is StepStatus.COMPLETED:
            became = child.status if child is not None else None
            require(became is RunStatus.COMPLETED, "O2 effect", step.step_id, "completed, and its run is", became)


def check_repeats(executions: Iterable[Execution], faults: int) -> None:
    """Make sure that work was repeated for faults only."""
    times: defaultdict[tuple[UUID, str, int], list[Execution]] = defaultdict(list)
    for execution in executions:
        times[execution.run_id, execution.step_id, execution.attempt].append(execution)
    for (_, step_id, _), some in times.items():
        require(
            len(some) <= 1 + faults, "O3 repeats", step_id, "ran", len(some), "times after", faults, "faults:", some
        )
