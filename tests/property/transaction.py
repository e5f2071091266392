"""What the service does with decisions, over plain dicts.

The inputs of a run are decided in their order, follow-ups first. Writes are held back until a load must see them or
the transaction ends; a load reads what was flushed. Rows are as the database would return them: large columns only
where they were asked for.
"""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import islice
from json import loads
from typing import Any
from uuid import UUID

from orchestrator.engine.block import DESCRIBED_FAILURES, fork
from orchestrator.engine.decide import apply, decide, first_wanted
from orchestrator.engine.decision import (
    Decision,
    EndedAttempt,
    Fork,
    Join,
    JoinForm,
    Send,
    SendCancelRun,
    TakeOver,
    Verdict,
)
from orchestrator.engine.events import step_changes
from orchestrator.engine.foresight import foreseen
from orchestrator.engine.inputs import (
    BlockForked,
    ExternalInput,
    Input,
    LineClosed,
    RetryRequested,
    RunRequested,
)
from orchestrator.engine.moment import Moment
from orchestrator.engine.plan import Plan
from orchestrator.engine.records import ReplyAddress, Run, StepExecution
from orchestrator.engine.state import EarlierRun, FailedBranch, Line, RunState, RunValues, Wanted, cancelled
from schemas.codec import dump_json
from schemas.scope import StepOutcome
from schemas.statuses import StepStatus
from tests.property.cases import INPUT
from tests.property.taking_over import TakenOver, taken_over

RUN, EARLIER = UUID(int=1), UUID(int=4)


@dataclass
class Rows:
    """What Postgres holds of the run."""

    run: Run | None = None
    steps: dict[str, StepExecution] = field(default_factory=dict)
    items: dict[tuple[str, int], Any] = field(default_factory=dict)

    def copy(self) -> "Rows":
        return Rows(self.run, dict(self.steps), dict(self.items))

    def branches(self, block_id: str) -> list[StepExecution]:
        """Return the steps of a block's branches in definition order."""
        found = (step for step in self.steps.values() if step.parent_step_id == block_id)
        return sorted(found, key=lambda step: (step.position, step.ordinal))


@dataclass
class Effects:
    """What a transaction leaves behind beside rows."""

    sent: list[Send] = field(default_factory=list)
    answers: list[tuple[Input, Decision]] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    taken_over: list[TakenOver] = field(default_factory=list)
    retried: list[str] = field(default_factory=list)
    told: list[tuple[str, StepStatus]] = field(default_factory=list)
    asked_before_the_end: list[ReplyAddress] = field(default_factory=list)
    asked_after_the_end: list[ReplyAddress] = field(default_factory=list)


class Transaction:
    """Inputs on their way through the core."""

    def __init__(self, rows: Rows, plan: Plan, moment: Moment, earlier: Rows | None = None) -> None:
        """Begin it; *earlier* are the rows of another run, which has ended."""
        self.rows = rows.copy()  # as flushed
        self._earlier = earlier
        self.effects = Effects()
        self._plan = plan
        self._moment = moment
        run = rows.run
        self._state = RunState(replace(run, output=None, error=None) if run is not None else None)
        self._run: Run | None = None  # these three are not flushed yet
        self._changed: dict[str, StepExecution] = {}
        self._joins: list[Join] = []

    def decide_all(self, inputs: Sequence[ExternalInput]) -> None:
        queue: deque[Input] = deque(inputs)
        if self._state.run is not None:
            self._load(Wanted.all_of([first_wanted(event) for event in inputs]))
        while queue:
            decision = decide(self._state, queue[0], self._moment)
            if isinstance(decision, Wanted):
                others = Wanted.all_of([foreseen(self._state, event) for event in islice(queue, 1, None)])
                self._load(Wanted.all_of([decision, self._state.missing(others)]))
                continue
            self._note(queue.popleft(), decision)
            queue.extendleft(reversed(decision.then))
            if decision.afterwards is not None and decision.afterwards not in queue:
                queue.append(decision.afterwards)
            self._record(decision)
            if decision.fork is not None:
                queue.appendleft(self._fork(decision.fork))
            if decision.closes_line_of is not None:
                queue.appendleft(self._close_line(decision.closes_line_of))
        self._flush()

    def _note(self, event: Input, decision: Decision) -> None:
        self.effects.answers.append((event, decision))
        if (
            isinstance(event, RunRequested | RetryRequested)
            and event.reply is not None
            and decision.verdict is not Verdict.REJECTED
        ):
            over = self._state.run is not None and self._state.run.status.is_final
            asked = self.effects.asked_after_the_end if over else self.effects.asked_before_the_end
            asked.append(event.reply)

    # Writing

    def _record(self, decision: Decision) -> None:
        if decision.cancels_open_steps or decision.cancels_branches_of is not None:
            self._flush()
            self._cancel_open_steps(decision.cancels_branches_of)
        self._run = decision.run or self._run
        if decision.takes_over is not None:
            self._take_over(decision.takes_over)
        for step in decision.steps:
            self._record_step(self._state.steps.get(step.step_id), step, decision.ended)
        if decision.wakes is not None:
            self._flush()
            self._wake_branches(decision.wakes)
        if decision.ended is not None:
            self.effects.retried.append(decision.ended.step.step_id)
        self.effects.sent += decision.sends
        if decision.join is not None:
            self._joins.append(decision.join)
        if decision.released is not None:
            self.effects.released.append(decision.released.step_id)
        apply(self._state, decision, self._moment)

    def _record_step(
        self, before: StepExecution | None, after: StepExecution, ended: EndedAttempt | None = None
    ) -> None:
        is_new = after.step_id not in self.rows.steps and after.step_id not in self._changed
        assert is_new == (before is None), f"{after.step_id} is written without having been read"
        self._changed[after.step_id] = after
        self.effects.told += [(after.step_id, event.status) for event in step_changes(before, after, ended)]

    def _fork(self, forking: Fork) -> BlockForked:
        failed = 0
        if forking.keeps_items:
            self.rows.items |= {(forking.block_id, index): item for index, item in enumerate(forking.items or ())}
        for step, send in fork(self._state, forking, self._moment.now, self._moment.new_id):
            self._record_step(None, step)
            failed += step.status is StepStatus.FAILED
            self.effects.sent += [send] if send is not None else []
        return BlockForked(RUN, forking.block_id, failed)

    def _close_line(self, block_id: str) -> LineClosed:
        self._flush()
        block = self._state.steps[block_id]
        assert block is not None
        assert block.branches is not None
        waiting = [step for step in self.rows.branches(block_id) if step.status is StepStatus.PENDING]
        waiting = [step for step in waiting if step.position >= block.branches.passed]
        for step in waiting:
            self._cancel(step)
            self.effects.released.append(step.step_id)
        return LineClosed(RUN, block_id, len(waiting))

    def _flush(self) -> None:
        if self._run is not None:
            before = self.rows.run or self._run
            output, error = self._run.output, self._run.error
            self.rows.run = replace(self._run, output=output or before.output, error=error or before.error)
        for step in self._changed.values():
            self.rows.steps[step.step_id] = _written(self.rows.steps.get(step.step_id), step)
        for join in self._joins:
            rows = self.rows.branches(join.block_id)
            last = {step.position: step for step in rows if step.status is not StepStatus.SKIPPED}
            output = _joined(join.form, list(last.values()))
            self.rows.steps[join.block_id] = self.rows.steps[join.block_id]._replace(output=output)
        self._run = None
        self._changed.clear()
        self._joins.clear()

    def _cancel_open_steps(self, block_id: str | None) -> None:
        for step in list(self.rows.steps.values()):
            around = self._plan.all_around(step.step_id)
            if not step.status.is_final and (block_id is None or block_id in around):
                self._cancel(step)

    def _cancel(self, step: StepExecution) -> None:
        self.rows.steps[step.step_id] = cancelled(step, self._moment.now)
        if step.child_run_id is not None and step.is_dispatched:
            self.effects.sent.append(SendCancelRun(step.child_run_id, "cancelled"))
        self.effects.told.append((step.step_id, StepStatus.CANCELLED))

    def _take_over(self, what: TakeOver) -> None:
        self._flush()
        assert self._earlier is not None
        self.rows.items |= self._earlier.items
        found = list(taken_over(self._earlier.steps.values(), what.stopped_at, RUN, self._moment.now))
        self.rows.steps |= {one.after.step_id: one.after for one in found}
        self.effects.taken_over += found

    def _wake_branches(self, block_id: str) -> None:
        for step in self.rows.branches(block_id):
            if step.status is StepStatus.PENDING:
                due_at = self._moment.now + timedelta(microseconds=step.position)
                self.rows.steps[step.step_id] = step._replace(due_at=due_at)

    # Reading

    def _load(self, wanted: Wanted) -> None:
        state = self._state
        if wanted.outcomes or wanted.failures or wanted.errors or wanted.ready:
            self._flush()
        self._load_tasks(wanted)
        for step_id in wanted.steps:
            self._put(self.rows.steps.get(step_id))
            state.steps.setdefault(step_id, None)
        for step_id in wanted.outcomes:
            state.outcomes[step_id] = _outcome(self.rows.steps.get(step_id))
        for block_id in wanted.failures:
            state.failures[block_id] = tuple(self._failures(block_id))
        for block_id in wanted.errors:
            failed = (step for step in self.rows.branches(block_id) if step.status is StepStatus.FAILED)
            state.errors[block_id] = {str(step.branch_name): loads(dump_json(step.error)) for step in failed}
        for block_id, first, asked in wanted.waiting:
            state.put_line(block_id, self._line(block_id, first, asked))
        for block_id, asked in wanted.ready:
            ready = [step for step in self.rows.branches(block_id) if step.ready_at is not None]
            state.put_ready(block_id, asked, sorted(ready, key=lambda step: step.ready_at or step.created_at)[:asked])
        state.items |= {key: self.rows.items[key] for key in wanted.items}
        for run_id in wanted.earlier:
            state.earlier[run_id] = self._earlier_run() if run_id == EARLIER else None
        if wanted.plan:
            state.plan = self._plan
        if wanted.run_values:
            run = self.rows.run
            state.run_values = RunValues(INPUT, run.output if run else None, run.error if run else None)
        assert not state.missing(wanted), "a decision that asks in vain would ask for ever"

    def _earlier_run(self) -> EarlierRun | None:
        if self._earlier is None or self._earlier.run is None:
            return None
        steps = self._earlier.steps.values()
        cancelled = (step for step in steps if step.parent_step_id is None and step.status is StepStatus.CANCELLED)
        return EarlierRun(self._earlier.run, next((step.step_id for step in cancelled), None))

    def _load_tasks(self, wanted: Wanted) -> None:
        found = {step.task_id: step for step in self.rows.steps.values() if step.task_id in wanted.tasks}
        ending = Counter(step.parent_step_id for task, step in found.items() if task in wanted.ending)
        for step in found.values():
            self._put(step._replace(input=None))
        for block_id, ended in ending.items():
            block = self.rows.steps[block_id] if block_id is not None else None
            if block is not None and block.branches is not None and block.branches.is_gated:
                counters = block.branches
                assert counters.max_parallelism is not None
                asked = ended + counters.max_parallelism - counters.dispatched
                line = self._line(block.step_id, counters.passed, asked)
                if line.steps:
                    self._state.put_line(block.step_id, line)
        for task_id in wanted.tasks:
            self._state.tasks.setdefault(task_id, None)

    def _put(self, step: StepExecution | None) -> None:
        for row in (step, self.rows.steps.get(step.parent_step_id) if step and step.parent_step_id else None):
            if row is not None and self._state.steps.get(row.step_id) is None:
                self._state.put_step(row._replace(output=None))

    def _line(self, block_id: str, first: int, asked: int) -> Line:
        waiting = (step for step in self.rows.branches(block_id) if step.status is StepStatus.PENDING)
        return Line(first, asked, tuple(step for step in waiting if step.position >= first)[:asked])

    def _failures(self, block_id: str) -> Iterator[FailedBranch]:
        failed = (step for step in self.rows.branches(block_id) if step.status is StepStatus.FAILED)
        for place, step in enumerate(failed):
            yield FailedBranch(step.step_id, step.error if place < DESCRIBED_FAILURES else None)


def _joined(form: JoinForm, rows: Sequence[StepExecution]) -> Any:
    statuses = [step.status for step in rows]
    if form is JoinForm.ITERATIONS:
        iterations = [
            {
                "index": step.position,
                "status": str(step.status),
                "output": step.output if step.status is StepStatus.COMPLETED else None,
                "error": loads(dump_json(step.error)) if step.status is StepStatus.FAILED else None,
            }
            for step in rows
        ]
        completed, failed = statuses.count(StepStatus.COMPLETED), statuses.count(StepStatus.FAILED)
        counts = {"total_count": len(rows), "completed_count": completed, "failed_count": failed}
        return {"iterations": iterations, **counts}
    return {
        step.branch_name: step.output if step.status is StepStatus.COMPLETED else None
        for step in rows
        if form is JoinForm.ALL or step.status is StepStatus.COMPLETED
    }


def _written(before: StepExecution | None, after: StepExecution) -> StepExecution:
    """Return the stored row after an update, which leaves the input alone, and where they are null output and error."""
    if before is None:
        return after
    return after._replace(
        input=before.input,
        output=after.output if after.output is not None else before.output,
        error=after.error if after.error is not None else before.error,
    )


def _outcome(step: StepExecution | None) -> StepOutcome | None:
    if step is None:
        return None
    error = loads(dump_json(step.error)) if step.error is not None else None
    return StepOutcome(step.status, step.output, error)
