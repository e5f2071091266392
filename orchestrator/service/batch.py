"""A batch: many inputs for many runs, decided and stored in one transaction.

The inputs of each run are decided in their order, follow-ups first. A run whose decision wants to see more stops
there; what all stopped runs want is loaded together, with what their other inputs are foreseen to want, and they go on.
So the number of round trips depends on how deep the decisions look, not on how many inputs or runs there are.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Final
from uuid import UUID

from messaging.crash_points import reach
from orchestrator.engine import codes
from orchestrator.engine.agent_limit import held
from orchestrator.engine.block import fork
from orchestrator.engine.decide import apply, decide, first_wanted
from orchestrator.engine.decision import (
    Decision,
    EndedAttempt,
    Fork,
    Send,
    SendCancellation,
    SendCancelRun,
    SendTask,
    Verdict,
)
from orchestrator.engine.events import StatusChange, run_change, step_changes
from orchestrator.engine.foresight import foreseen
from orchestrator.engine.inputs import (
    BlockForked,
    ExternalInput,
    Input,
    LineClosed,
    RetryRequested,
    RunRequested,
    SlotsFree,
    TaskMissing,
    TaskReported,
)
from orchestrator.engine.moment import Moment
from orchestrator.engine.plan import BlockPlan, LoopPlan
from orchestrator.engine.records import Branches, Run, StepExecution
from orchestrator.engine.state import RunState, Wanted
from orchestrator.service.outgoing import event_rows, outbox_row
from orchestrator.service.plans import PlanCache
from orchestrator.service.traces import RunTraces
from orchestrator.storage.changes import GateRow, KeptItem, OutboxRow
from orchestrator.storage.unit_of_work import UnitOfWork
from orchestrator.storage.writes import CancelledStep
from schemas.statuses import StepStatus

# So many of the inputs that wait behind one that stops are looked at for what they will want.
FORESEEN: Final = 1_000

# So often a transaction fills slots that it has freed itself. In a loop whose iterations need no worker each one makes
# room for the next, and all of a large collection would pass in one transaction, with the run locked all the while.
MAX_FILLED: Final = 1_000


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one input."""

    verdict: Verdict
    code: str


@dataclass(slots=True)
class GateChange:
    """What the holder of a block's gate should hear: whose tickets to ack, and whose to hold without asking."""

    run_id: UUID
    block_id: str
    holder: str = ""
    ended: list[str] = field(default_factory=list)
    dispatched: list[str] = field(default_factory=list)
    block_over: bool = False


@dataclass(slots=True)
class Committed:
    """What a committed batch leaves to do: messages to send, gates to open and to tell; what to log and to count."""

    answers: list[Answer]
    begun: float = 0.0  # when its transaction began, by the event loop's clock
    seconds: float = 0.0  # how long that took
    messages: Sequence[OutboxRow] = ()
    left_in_outbox: bool = False
    gates: list[GateRow] = field(default_factory=list)
    gate_changes: list[GateChange] = field(default_factory=list)
    limited_agents: set[str] = field(default_factory=set)  # whose tasks are held now, or whose attempts have ended
    ended_runs: list[Run] = field(default_factory=list)
    ended_steps: list[StepExecution] = field(default_factory=list)  # but for those that were cancelled with others
    cancelled_steps: list[CancelledStep] = field(default_factory=list)
    ended_attempts: list[StepExecution] = field(default_factory=list)  # of steps that go on with another
    interrupted_steps: list[StepExecution] = field(default_factory=list)  # cancelled ones of traced runs that had begun
    traceparents: dict[UUID, str] = field(default_factory=dict)  # of traced runs
    left: list[SlotsFree] = field(default_factory=list)  # to be decided next, in another transaction


@dataclass(frozen=True, slots=True)
class _Queued:
    event: Input
    index: int | None  # the place of its answer; follow-ups have none


class Batch:
    """The inputs of one transaction on their way through the core."""

    def __init__(
        self,
        uow: UnitOfWork,
        plans: PlanCache,
        new_id: Callable[[], UUID],
        draw: Callable[[], float],
        traces: RunTraces,
    ) -> None:
        self._uow = uow
        self._plans = plans
        self._new_id = new_id
        self._draw = draw
        self._traces = traces
        self._states: dict[UUID, RunState] = {}
        self._moment: Moment
        self._queues: dict[UUID, deque[_Queued]] = defaultdict(deque)
        self._events: dict[UUID, list[StatusChange]] = defaultdict(list)
        self._answers: dict[int, Answer] = {}
        self._gate_changes: dict[tuple[UUID, str], GateChange] = {}
        self._filled = 0
        self._result = Committed(answers=[])

    async def run(self, inputs: Sequence[ExternalInput]) -> Committed:
        """Decide everything, and return what is left to do once the transaction is committed."""
        wanted: dict[UUID, list[Wanted]] = defaultdict(list)
        turns: list[list[_Queued]] = [[]]
        spoken_of = {event.report.task_id for event in inputs if isinstance(event, TaskReported)}
        for index, event in enumerate(inputs):
            if isinstance(event, TaskMissing) and event.task_id in spoken_of:
                # Its step comes with the report, and without the input that sending it again takes.
                self._answers[index] = Answer(Verdict.STALE, codes.HEARD_FROM)
                continue
            if isinstance(event, RetryRequested):
                # It looks at another run, which is locked too, and must find what came before it decided.
                wanted[event.retry_of].append(Wanted())
                turns.append([])
            turns[-1].append(_Queued(event, index))
            wanted[event.run_id].append(first_wanted(event))
            if isinstance(event, RunRequested) and event.parent_run_id is not None:
                wanted[event.parent_run_id].append(Wanted(tasks=frozenset({event.run_id})))
        await self._first_look({run_id: Wanted.all_of(many) for run_id, many in wanted.items()})
        self._introduce_parents(inputs)
        reach("transaction.locked", inputs)
        for turn in turns:
            await self._decide_all(turn)
        self._flush_events()
        return self._finish(len(inputs))

    async def _decide_all(self, turn: Sequence[_Queued]) -> None:
        for item in turn:
            self._queues[item.event.run_id].append(item)
        while self._queues:
            stopped: dict[UUID, Wanted] = {}
            for run_id in list(self._queues):
                lacking = await self._advance(run_id)
                if lacking is not None:
                    stopped[run_id] = lacking
            await self._load(stopped)

    async def _first_look(self, wanted: Mapping[UUID, Wanted]) -> None:
        now, self._states = await self._uow.first_look(wanted)
        self._moment = Moment(now, self._new_id, self._draw)
        missing = {run: self._states[run].missing(some) for run, some in wanted.items()}
        await self._load({run: some for run, some in missing.items() if some and self._states[run].run is not None})

    def _introduce_parents(self, inputs: Sequence[ExternalInput]) -> None:
        """Let the state of a requested child know that of its parent, which is locked as well."""
        for event in inputs:
            if isinstance(event, RunRequested) and event.parent_run_id is not None:
                self._states[event.run_id].parent = self._states[event.parent_run_id]

    async def _advance(self, run_id: UUID) -> Wanted | None:
        """Decide the run's inputs until none is left (None), or until one wants to see more."""
        state, queue = self._states[run_id], self._queues[run_id]
        while queue:
            item = queue[0]
            answer = decide(state, item.event, self._moment)
            if isinstance(answer, Wanted):
                return _with_foreseen(state, queue, answer)
            queue.popleft()
            if item.index is not None:
                self._answers[item.index] = Answer(answer.verdict, answer.code)
            queue.extendleft(_Queued(event, None) for event in reversed(answer.then))
            if answer.afterwards is not None and all(item.event != answer.afterwards for item in reversed(queue)):
                self._fill_slots(queue, answer.afterwards)
            if answer.tells_parent is not None:
                self._queues[answer.tells_parent.run_id].append(_Queued(answer.tells_parent, None))
            await self._record(state, run_id, self._with_held(state, answer))
            await self._flush_if_full()
            if answer.fork is not None:
                queue.appendleft(_Queued(await self._fork(state, run_id, answer.fork), None))
            if answer.closes_line_of is not None:
                queue.appendleft(_Queued(await self._close_line(state, run_id, answer.closes_line_of), None))
        del self._queues[run_id]
        return None

    def _fill_slots(self, queue: deque[_Queued], free: SlotsFree) -> None:
        if self._filled < MAX_FILLED:
            self._filled += 1
            queue.append(_Queued(free, None))
        elif free not in self._result.left:
            self._result.left.append(free)

    async def _load(self, wanted: Mapping[UUID, Wanted]) -> None:
        if not wanted:
            return
        await self._uow.load(self._states, wanted)
        for run_id, some in wanted.items():
            if some.plan:
                definition_id = self._definition_id(run_id)
                self._states[run_id].plan = await self._plans.get(definition_id, self._uow.load_definition)
            assert not self._states[run_id].missing(some), "a decision that asks in vain would ask for ever"

    def _definition_id(self, run_id: UUID) -> str:
        run = self._states[run_id].run
        if run is not None:
            return run.definition_id
        request = self._queues[run_id][0].event
        if isinstance(request, RetryRequested):
            earlier = self._states[run_id].earlier[request.retry_of]
            assert earlier is not None, "what does not exist is not retried"
            return earlier.run.definition_id
        assert isinstance(request, RunRequested), "only a request is about a run that does not exist"
        return request.definition_id

    async def _record(self, state: RunState, run_id: UUID, decision: Decision) -> None:
        if decision.cancels_open_steps or decision.cancels_branches_of is not None:
            await self._cancel_open_steps(run_id, decision.cancels_branches_of)
        if decision.takes_over is not None:
            assert decision.run is not None, "there is one that takes over"
            await self._uow.take_over(decision.run, decision.takes_over)
            self._events[run_id].append(run_change(decision.run))
        elif decision.run is not None:
            self._record_run(state, decision)
        for step in decision.steps:
            self._record_step(state.steps.get(step.step_id), step, decision.ended)
        if decision.wakes is not None:
            await self._uow.wake_branches(run_id, decision.wakes, self._moment.now)
        if decision.opens_gate is not None:
            self._open_gate(next(step for step in decision.steps if step.step_id == decision.opens_gate))
        if decision.ended is not None:
            self._uow.add_ended_attempt(decision.ended)
            self._result.ended_attempts.append(decision.ended.step._replace(error=decision.ended.error))
        for send in decision.sends:
            self._send(run_id, send, state.steps)
            # A branch has one ticket, with the id of its first step.
            if isinstance(send, SendTask) and send.step.parent_step_id is not None and send.step.ordinal == 0:
                self._gate_change(run_id, send.step.parent_step_id).dispatched.append(send.step.step_id)
        if decision.join is not None:
            self._uow.join(run_id, decision.join)
        if decision.released is not None:
            self._gate_change(run_id, decision.released.block_id).ended.append(decision.released.step_id)
        apply(state, decision, self._moment)

    def _with_held(self, state: RunState, decision: Decision) -> Decision:
        """Return the decision with the rows as they are of steps whose tasks are held."""
        if not self._uow.limited_agents:
            return decision
        held_or_not = (
            held(step) if self._is_held(state.steps.get(step.step_id), step) else step for step in decision.steps
        )
        return decision._replace(steps=tuple(held_or_not))

    def _is_held(self, before: StepExecution | None, step: StepExecution) -> bool:
        """Whether an attempt that begins waits for the limit of its agent; one that is sent again was let through."""
        begins = step.status is StepStatus.QUEUED and (before is None or before.task_id != step.task_id)
        return begins and step.agent_name in self._uow.limited_agents

    def _send(self, run_id: UUID, send: Send, steps: Mapping[str, StepExecution | None]) -> None:
        row = outbox_row(run_id, send, self._new_id)
        run = self._states[run_id].run
        if run is not None and run.traceparent is not None:
            row = row._replace(traceparent=self._traces.of(run, send))
        if isinstance(send, SendTask) and self._is_held(steps.get(send.step.step_id), send.step):
            self._uow.hold(row)
            self._result.limited_agents.add(row.routing_key)
        else:
            self._uow.send(row)

    def _record_run(self, state: RunState, decision: Decision) -> None:
        run = decision.run
        assert run is not None
        if decision.created_run is not None:
            self._uow.add_run(run, decision.created_run)
        else:
            self._uow.change_run(run)
        if state.run is None or state.run.status is not run.status:
            self._events[run.id].append(run_change(run))
            if run.status.is_final:
                self._result.ended_runs.append(run)

    def _record_step(
        self, before: StepExecution | None, after: StepExecution, ended: EndedAttempt | None = None
    ) -> None:
        if before is None:
            self._uow.add_step(after)
        else:
            self._uow.change_step(after)
        self._events[after.run_id].extend(step_changes(before, after, ended))
        if after.status.is_final and (before is None or before.status is not after.status):
            self._result.ended_steps.append(after)
        agent_name = after.agent_name
        frees_slot = before is not None and before.is_dispatched and not after.is_dispatched
        if frees_slot and agent_name in self._uow.limited_agents:
            assert agent_name is not None, "it is among those with a limit"
            self._result.limited_agents.add(agent_name)

    async def _fork(self, state: RunState, run_id: UUID, forking: Fork) -> BlockForked:
        """Write the branches, a piece at a time; they are not kept, for no decision looks at siblings."""
        block = state.steps[forking.block_id]
        assert block is not None, "it has just been entered"
        assert block.branches is not None, "it is a block"
        if block.branches.is_gated:
            self._open_gate(block)
        if forking.keeps_items:
            for position, item in enumerate(forking.items or ()):
                self._uow.keep_item(KeptItem(run_id, block.step_id, position, item))
                await self._flush_if_full()
        failed = 0
        for step, send in fork(state, forking, self._moment.now, self._moment.new_id):
            self._record_step(None, held(step) if self._is_held(None, step) else step)
            failed += step.status is StepStatus.FAILED
            if send is not None:
                self._send(run_id, send, {})
            await self._flush_if_full()
        return BlockForked(run_id, block.step_id, failed)

    def _open_gate(self, block: StepExecution) -> None:
        assert block.branches is not None, "it is a block"
        assert block.branches.max_parallelism is not None, "it has a limit"
        gate = self._uow.open_gate(block.run_id, block.step_id, block.branches.max_parallelism)
        self._result.gates.append(gate)

    async def _flush_if_full(self) -> None:
        if self._uow.is_full:
            self._flush_events()
            await self._uow.begin_flush()

    async def _close_line(self, state: RunState, run_id: UUID, block_id: str) -> LineClosed:
        block = state.steps[block_id]
        assert block is not None, "one of its branches has just ended"
        assert block.branches is not None, "it is a block"
        cancelled = await self._uow.close_line(run_id, block_id, block.branches.passed, self._moment.now)
        self._result.cancelled_steps.extend(cancelled)
        self._events[run_id].extend(self._cancelled(step) for step in cancelled)
        self._gate_change(run_id, block_id).ended.extend(step.step_id for step in cancelled)
        return LineClosed(run_id, block_id, len(cancelled))

    async def _cancel_open_steps(self, run_id: UUID, block_id: str | None) -> None:
        plan = self._states[run_id].plan
        self._result.limited_agents |= self._uow.limited_agents  # attempts of any of them may be among the cancelled
        cancelled = await self._uow.cancel_open_steps(run_id, block_id, self._moment.now)
        self._result.cancelled_steps.extend(cancelled)
        for step in cancelled:
            if block_id is not None and plan is not None and isinstance(plan.step(step.step_id), BlockPlan | LoopPlan):
                self._uow.send(outbox_row(run_id, SendCancellation(run_id, step.step_id), self._new_id))
            if step.child_run_id is not None:
                reason = f'step "{step.step_id}" of run {run_id}, which it belongs to, was cancelled'
                self._uow.send(outbox_row(run_id, SendCancelRun(step.child_run_id, reason), self._new_id))
            self._events[run_id].append(self._cancelled(step))
        if self._traceparent(run_id) is not None:
            self._result.interrupted_steps.extend(
                _interrupted(run_id, step, self._moment.now)
                for step in cancelled
                if step.attempt or step.branches_total is not None
            )

    def _traceparent(self, run_id: UUID) -> str | None:
        run = self._states[run_id].run
        return run.traceparent if run is not None else None

    def _cancelled(self, step: CancelledStep) -> StatusChange:
        return StatusChange(
            step.step_id,
            step.parent_step_id,
            step.branch_name,
            StepStatus.CANCELLED,
            step.attempt,
            at=self._moment.now,
            error=None,
        )

    def _flush_events(self) -> None:
        for run_id, events in self._events.items():
            for row in event_rows(run_id, events, self._new_id):
                self._uow.send(row)
        self._events.clear()

    def _finish(self, inputs: int) -> Committed:
        result = self._result
        result.answers = [self._answers[index] for index in range(inputs)]
        traceparents = {run_id: self._traceparent(run_id) for run_id in self._states}
        result.traceparents = {run_id: given for run_id, given in traceparents.items() if given is not None}
        for (run_id, block_id), change in self._gate_changes.items():
            holder = self._uow.gate_holders.get((run_id, block_id))
            if holder is None:
                continue  # its block has no gate
            block = self._states[run_id].steps.get(block_id)
            change.holder, change.block_over = holder, block is None or block.status.is_final
            result.gate_changes.append(change)
        return result

    def _gate_change(self, run_id: UUID, block_id: str) -> GateChange:
        return self._gate_changes.setdefault((run_id, block_id), GateChange(run_id, block_id))


def _interrupted(run_id: UUID, step: CancelledStep, now: datetime) -> StepExecution:
    total, failed = step.branches_total, step.branches_failed or 0
    branches = None if total is None else Branches(total, 0, failed, dispatched=0, passed=total, max_parallelism=None)
    return StepExecution(
        run_id=run_id,
        step_id=step.step_id,
        status=StepStatus.CANCELLED,
        parent_step_id=step.parent_step_id,
        branch_name=step.branch_name,
        agent_name=step.agent_name,
        sub_workflow_id=step.sub_workflow_id,
        attempt=step.attempt,
        task_id=step.task_id,
        worker_id=step.worker_id,
        branches=branches,
        created_at=step.created_at,
        queued_at=step.queued_at,
        finished_at=now,
    )


def _with_foreseen(state: RunState, queue: Sequence[_Queued], wanted: Wanted) -> Wanted:
    """Return what the first of *queue* wants, with what the others probably will."""
    others = [foreseen(state, item.event) for item in islice(queue, 1, FORESEEN)]
    return Wanted.all_of([wanted, state.missing(Wanted.all_of(others))]) if others else wanted
