"""The working set of one run in one transaction, and what is still missing from it.

A decision never loads anything. When it lacks something it returns a `Wanted`, the caller loads that (for all runs of
the batch at once) and asks again; decisions are pure, so asking again costs nothing. That keeps the number of round
trips constant, and a block's other branches out of memory.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

from orchestrator.engine.plan import Plan
from orchestrator.engine.records import Run, StepExecution
from orchestrator.engine.transitions import Trigger
from schemas.messages import ErrorInfo
from schemas.scope import StepOutcome
from schemas.statuses import StepStatus

_LONGEST_LINE: Final = 100  # asked for at once, unless more are needed

# Of a block, from a position on, so many PENDING branches.
LineKey = tuple[str, int, int]
# Of a block, so many branches that are ready for their next attempt.
ReadyKey = tuple[str, int]
# Of a loop, the item of an iteration.
ItemKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Line:
    """The branches that wait at a gate, from a position on; fewer than asked for means that there are no more."""

    first: int
    asked: int
    steps: tuple[StepExecution, ...]


class Wanted(NamedTuple):
    """What a decision needs to see. Each part is empty where nothing is needed."""

    tasks: frozenset[UUID] = frozenset()  # the steps of these attempts, with their blocks
    ending: frozenset[UUID] = frozenset()  # those of them that end now: with who is next in line for their slots
    steps: frozenset[str] = frozenset()  # these steps, with their inputs
    outcomes: frozenset[str] = frozenset()  # status, output and error of these
    failures: frozenset[str] = frozenset()  # the failed branches of these blocks
    errors: frozenset[str] = frozenset()  # the errors of all failed branches of these blocks
    waiting: frozenset[LineKey] = frozenset()  # the next in line at gates
    ready: frozenset[ReadyKey] = frozenset()  # those whose next attempt waits for a slot
    items: frozenset[ItemKey] = frozenset()
    plan: bool = False
    run_values: bool = False  # the run's input, output and error
    earlier: frozenset[UUID] = frozenset()  # these other runs, which the caller has locked

    @classmethod
    def all_of(cls, many: Sequence["Wanted"]) -> "Wanted":
        """Return what is wanted by any of *many*."""
        return Wanted(
            frozenset().union(*(wanted.tasks for wanted in many)),
            frozenset().union(*(wanted.ending for wanted in many)),
            frozenset().union(*(wanted.steps for wanted in many)),
            frozenset().union(*(wanted.outcomes for wanted in many)),
            frozenset().union(*(wanted.failures for wanted in many)),
            frozenset().union(*(wanted.errors for wanted in many)),
            frozenset().union(*(wanted.waiting for wanted in many)),
            frozenset().union(*(wanted.ready for wanted in many)),
            frozenset().union(*(wanted.items for wanted in many)),
            any(wanted.plan for wanted in many),
            any(wanted.run_values for wanted in many),
            frozenset().union(*(wanted.earlier for wanted in many)),
        )

    def __bool__(self) -> bool:
        return any(self)


@dataclass(frozen=True, slots=True)
class FailedBranch:
    """A failed branch; the errors of a block's first ones are known, of the rest only the ids."""

    step_id: str
    error: ErrorInfo | None


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """Another run of the same definition, with its error, and the step that was open when it was stopped."""

    run: Run
    interrupted: str | None


@dataclass(frozen=True, slots=True)
class RunValues:
    """The large columns of a run."""

    input: Any
    output: Any
    error: ErrorInfo | None


def cancelled(step: StepExecution, now: datetime) -> StepExecution:
    """Return the row as it is once its run, or its block, goes on without it."""
    return step.advanced(Trigger.CANCEL, finished_at=now, due_at=None, ready_at=None)


@dataclass(slots=True)
class RunState:
    """What is known of one run. An absent row is known as None, an unknown one is not in the mapping."""

    run: Run | None
    plan: Plan | None = None
    steps: dict[str, StepExecution | None] = field(default_factory=dict)
    tasks: dict[UUID, str | None] = field(default_factory=dict)
    outcomes: dict[str, StepOutcome | None] = field(default_factory=dict)
    failures: dict[str, tuple[FailedBranch, ...]] = field(default_factory=dict)
    errors: dict[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)  # by block and branch
    waiting: dict[str, Line] = field(default_factory=dict)
    ready: dict[str, tuple[int, tuple[StepExecution, ...]]] = field(default_factory=dict)  # asked for, and found
    items: dict[ItemKey, Any] = field(default_factory=dict)
    collections: dict[str, Sequence[Any]] = field(default_factory=dict)  # of loops that were entered just now
    run_values: RunValues | None = None
    earlier: dict[UUID, EarlierRun | None] = field(default_factory=dict)
    parent: "RunState | None" = None  # of a run that is asked for by a step of another one

    def missing(self, wanted: Wanted) -> Wanted:
        """Return the part of *wanted* that is not known yet."""
        return Wanted(
            tasks=frozenset(task for task in wanted.tasks if task not in self.tasks),
            steps=frozenset(step for step in wanted.steps if step not in self.steps),
            outcomes=frozenset(step for step in wanted.outcomes if step not in self.outcomes),
            failures=frozenset(block for block in wanted.failures if block not in self.failures),
            errors=frozenset(block for block in wanted.errors if block not in self.errors),
            waiting=frozenset(key for key in wanted.waiting if self.next_in_line(*key) is None),
            ready=frozenset(key for key in wanted.ready if self.ready_again(*key) is None),
            items=frozenset(key for key in wanted.items if key not in self.items and key[0] not in self.collections),
            plan=wanted.plan and self.plan is None,
            run_values=wanted.run_values and self.run_values is None,
            earlier=frozenset(run_id for run_id in wanted.earlier if run_id not in self.earlier),
        )

    def outcome(self, execution: str) -> StepOutcome | None:
        """Return what became of a step execution, with the errors of its branches where those are known."""
        outcome, errors = self.outcomes[execution], self.errors.get(execution)
        return replace(outcome, errors=errors) if outcome is not None and errors is not None else outcome

    def item(self, loop: str, index: int) -> Any:
        """Return the item of one of a loop's iterations."""
        return self.collections[loop][index] if loop in self.collections else self.items[loop, index]

    def put_run(self, run: Run) -> None:
        """Remember a new version of the run."""
        self.run = run

    def put_step(self, step: StepExecution) -> None:
        """Remember a new or changed row; what was known of its outcome is out of date."""
        self.steps[step.step_id] = step
        if step.task_id is not None:
            self.tasks[step.task_id] = step.step_id
        self.outcomes.pop(step.step_id, None)
        self.ready.pop(step.step_id, None)  # where it is a block, whose counters tell who is ready

    def next_in_line(self, block_id: str, first: int, count: int) -> tuple[StepExecution, ...] | None:
        """Return up to *count* branches that wait at a block's gate from a position on; None where that is unknown."""
        line = self.waiting.get(block_id)
        if line is None or line.first > first:
            return None
        left = line.steps[bisect_left(line.steps, first, key=attrgetter("position")) :]
        is_whole = len(line.steps) < line.asked
        return left[:count] if is_whole or len(left) >= count else None

    def asked_in_line(self, block_id: str, count: int) -> int:
        """Return how many of a line to ask for where *count* are needed.

        A transaction that comes back to a line lets through steps that need no worker, and will come back again: it
        asks for twice as many each time, so that the steps do not cost a trip to the database each.
        """
        line = self.waiting.get(block_id)
        return max(count, min(2 * line.asked, _LONGEST_LINE)) if line is not None else count

    def ready_again(self, block_id: str, count: int) -> tuple[StepExecution, ...] | None:
        """Return up to *count* branches of a block that are ready for their next attempt; None: unknown."""
        if count <= 0:
            return ()
        asked, steps = self.ready.get(block_id, (0, ()))
        return steps[:count] if asked >= count else None

    def put_line(self, block_id: str, line: Line) -> None:
        """Remember which branches are next in line at a block's gate."""
        self.waiting[block_id] = line
        for step in line.steps:
            self.put_step(step)

    def put_ready(self, block_id: str, asked: int, steps: Sequence[StepExecution]) -> None:
        """Remember which branches of a block are ready for their next attempt."""
        for step in steps:
            self.put_step(step)
        self.ready[block_id] = (asked, tuple(steps))

    def cancel_open_steps(self, now: datetime, *, of_block: str | None = None) -> None:
        """Remember that every row that was not final is CANCELLED now, or of a block those in its branches."""
        for step in list(self.steps.values()):
            if step is not None and not step.status.is_final and (of_block is None or self._lies_in(of_block, step)):
                self.put_step(cancelled(step, now))

    def _lies_in(self, block_id: str, step: StepExecution) -> bool:
        assert self.plan is not None, "whoever cancels branches knows the plan"
        return block_id in self.plan.all_around(step.step_id)

    def cancel_line(self, block_id: str, first: int, now: datetime) -> None:
        """Remember that the branches which waited at a block's gate, from a position on, are CANCELLED now."""
        self.waiting.pop(block_id, None)
        for step in list(self.steps.values()):
            if step is None or step.parent_step_id != block_id or step.status is not StepStatus.PENDING:
                continue
            if step.position >= first:
                self.put_step(cancelled(step, now))
