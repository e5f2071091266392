"""What must come of a case: its workflow, carried out one step after the other.

There is no queue here, no counter and nothing that goes wrong on the way. Whatever order a distributed run takes, it
must arrive at the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from orchestrator.engine import codes
from orchestrator.engine.executions import execution_id
from schemas.errors import ExpressionFailed, ReferenceBroken
from schemas.expressions import compile_expression
from schemas.references import compile_template
from schemas.scope import Iteration, Scope, StepOutcome
from schemas.statuses import RunStatus, StepStatus
from schemas.workflow import AgentStep, ConditionalStep, LoopStep, Step
from tests.property.cases import ERROR_CODES, INPUT, Behaviour, Case, branches_of, lanes, limit, needed, said


@dataclass
class Expected:
    """How a run ends when nothing goes wrong on the way."""

    status: RunStatus = RunStatus.RUNNING
    output: Any = None
    steps: dict[str, StepOutcome] = field(default_factory=dict)  # by execution


class At(NamedTuple):
    """Where in loops a step runs."""

    numbers: tuple[int, ...] = ()
    iteration: Iteration | None = None


Seen = dict[str, StepOutcome]  # by step


def sequential(case: Case) -> Expected:
    """Carry the workflow out."""
    walk = _Walk(case)
    seen: Seen = {}
    step_id: str | None = "n1"
    while step_id is not None:
        step_id, last = walk.row(step_id, {}, seen, At())
        if last.status is StepStatus.COMPLETED:
            return Expected(RunStatus.COMPLETED, last.output, walk.ran)
        step_id = walk.handler(step_id)
    return Expected(RunStatus.FAILED, None, walk.ran)


class _Walk:
    """One way through a workflow."""

    def __init__(self, case: Case) -> None:
        self.ran: dict[str, StepOutcome] = {}
        self._case = case
        self._steps = case.workflow.steps

    def row(self, start: str, following: Mapping[str, str], seen: Seen, at: At) -> tuple[str, StepOutcome]:
        """Carry steps out from *start* on, until none follows or one fails; return the last one.

        Args:
            start: The first step.
            following: What comes next in a branch's list.
            seen: What steps that ran before came to; those that run are added.
            at: The loops around.
        """
        step_id: str | None = start
        behind: list[str] = []  # where it goes on when the paths end on which it is
        while step_id is not None:
            while behind and behind[-1] == step_id:
                behind.pop()
            step, last = self._steps[step_id], self._outcome(self._steps[step_id], seen, at)
            seen[step_id] = last
            if last.status is not StepStatus.COMPLETED:
                break
            natural = following.get(step_id) or step.next_step
            following_path = last.output["step"] if isinstance(step, ConditionalStep) else None
            if following_path is not None and natural is not None:
                behind.append(natural)
            step_id = following_path or natural or (behind[-1] if behind else None)
        return step.id, last

    def handler(self, execution: str) -> str | None:
        """Return the handler of a failed step; where a block names none, that of its first failed branch with one."""
        step = self._case.step(execution)
        if step.get("on_failure") is not None:
            return str(step["on_failure"])
        for lane, numbers in branches_of(execution, step, self.ran):
            for inner in (execution_id(member, numbers) for member in self._case.members(lane)):
                if inner in self.ran and self.ran[inner].status is StepStatus.FAILED:
                    handler = self.handler(inner)
                    if handler is not None:
                        return handler
        return None

    def _outcome(self, step: Step, seen: Seen, at: At) -> StepOutcome:
        scope = Scope(INPUT, seen, at.iteration)
        match step:
            case AgentStep():
                outcome = self._agent_outcome(step, scope)
            case ConditionalStep():
                outcome = _answer(step, scope)
            case LoopStep():
                outcome = self._loop_outcome(step, seen, at, scope)
            case _:
                outcome = self._block_outcome(step.id, seen, at)
        self.ran[execution_id(step.id, at.numbers)] = outcome
        return outcome

    def _agent_outcome(self, step: AgentStep, scope: Scope) -> StepOutcome:
        try:
            value = compile_template(step.input_mapping).resolve(scope)
        except ReferenceBroken:
            return _failed(codes.REFERENCE_BROKEN)
        behaviour = self._case.last_behaviour(step.id)
        if behaviour is Behaviour.COMPLETES:
            return StepOutcome(StepStatus.COMPLETED, said(step.id, value), None)
        if behaviour is Behaviour.HANGS and step.timeout_seconds is None:
            return _failed(codes.BRANCH_TIMEOUT)
        is_told = step.id in self._case.delegated and behaviour is not Behaviour.HANGS  # by a run that failed
        return _failed(codes.SUB_WORKFLOW_FAILED if is_told else ERROR_CODES[behaviour])

    def _block_outcome(self, block_id: str, seen: Seen, at: At) -> StepOutcome:
        written, before = self._case.steps[block_id], dict(seen)
        output, failures = {}, 0
        for name, lane in lanes(written).items():
            last = self._lane(lane, dict(before), at, into=seen)
            if last.status is StepStatus.COMPLETED or "fork_join_config" in written:
                output[name] = last.output if last.status is StepStatus.COMPLETED else None
            failures += last.status is StepStatus.FAILED
        if len(lanes(written)) - failures >= needed(written):
            return StepOutcome(StepStatus.COMPLETED, output, None)
        return StepOutcome(StepStatus.FAILED, output, {"code": codes.BRANCHES_FAILED})

    def _lane(self, lane: Sequence[str], seen: Seen, at: At, into: Seen) -> StepOutcome:
        before = set(seen)
        _, last = self.row(lane[0], dict(pairwise(lane)), seen, at)
        into.update({step_id: outcome for step_id, outcome in seen.items() if step_id not in before})
        return last

    def _loop_outcome(self, step: LoopStep, seen: Seen, at: At, scope: Scope) -> StepOutcome:
        config = step.loop_config
        try:
            items = compile_template(config.collection).resolve(scope)
        except ReferenceBroken:
            return _failed(codes.REFERENCE_BROKEN)
        if not isinstance(items, list):
            return _failed(codes.NOT_A_COLLECTION)
        if config.max_iterations is not None and len(items) > config.max_iterations:
            return _failed(codes.TOO_MANY_ITERATIONS)
        outcomes: list[StepOutcome] = []
        for index, item in enumerate(items):
            failed = any(outcome.status is StepStatus.FAILED for outcome in outcomes)
            inner = At((*at.numbers, index), Iteration(index, len(items), item))
            if failed and config.on_error == "stop" and limit(self._case.steps[step.id]) < len(items):
                outcomes.append(StepOutcome(StepStatus.CANCELLED, None, None))
                self.ran[execution_id(config.loop_body[0], inner.numbers)] = outcomes[-1]
            else:
                outcomes.append(self._lane(config.loop_body, dict(seen), inner, into={}))
        output = _loop_output(outcomes)
        if output["failed_count"] and config.on_error != "continue":
            return StepOutcome(StepStatus.FAILED, output, {"code": codes.ITERATIONS_FAILED})
        return StepOutcome(StepStatus.COMPLETED, output, None)


def _loop_output(outcomes: Sequence[StepOutcome]) -> dict[str, Any]:
    statuses = [outcome.status for outcome in outcomes]
    iterations = [
        {
            "index": index,
            "status": str(outcome.status),
            "output": outcome.output if outcome.status is StepStatus.COMPLETED else None,
            "error": {"code": outcome.error["code"]} if outcome.error is not None else None,
        }
        for index, outcome in enumerate(outcomes)
    ]
    completed, failed = statuses.count(StepStatus.COMPLETED), statuses.count(StepStatus.FAILED)
    return {
        "iterations": iterations,
        "total_count": len(outcomes),
        "completed_count": completed,
        "failed_count": failed,
    }


def _answer(step: ConditionalStep, scope: Scope) -> StepOutcome:
    try:
        holds = compile_expression(step.condition.expression).evaluate(scope)
    except ReferenceBroken:
        return _failed(codes.REFERENCE_BROKEN)
    except ExpressionFailed:
        return _failed(codes.CONDITION_FAILED)
    taken = step.if_true_step if holds else step.if_false_step
    return StepOutcome(StepStatus.COMPLETED, {"result": holds, "step": taken}, None)


def _failed(code: str) -> StepOutcome:
    return StepOutcome(StepStatus.FAILED, None, {"code": code})
