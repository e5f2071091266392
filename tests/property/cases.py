"""Random workflows whose agents do what is written beside them, and what must come of each.

`sequential` walks a workflow one step after the other, with no queue, no counter and nothing that goes wrong on the
way. Whatever order a distributed run takes, it must arrive at the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol
from zlib import crc32

from hypothesis import strategies as st

from orchestrator.engine import codes
from schemas.codec import dump_json
from schemas.errors import ReferenceBroken
from schemas.references import compile_template
from schemas.scope import Scope, StepOutcome
from schemas.statuses import RunStatus, StepStatus
from schemas.validation import parse_workflow
from schemas.workflow import AgentStep, ParallelStep, Workflow

INPUT = {"topic": "rain"}
BROKEN = "${workflow.input.missing}"
SHORT, LONG = 5.0, 1_000_000.0  # timeouts in seconds


class Behaviour(StrEnum):
    """What the agent of a step does with its task."""

    COMPLETES = "completes"
    FAILS = "fails"
    HANGS = "hangs"  # starts, and is never heard of again
    IS_MISSING = "is missing"  # no worker offers it
    IS_IGNORED = "is ignored"  # no worker takes its tasks

    def __repr__(self) -> str:
        return f"Behaviour.{self.name}"


ERROR_CODES = {
    Behaviour.FAILS: codes.AGENT_ERROR,
    Behaviour.HANGS: codes.TIMEOUT,
    Behaviour.IS_MISSING: codes.UNKNOWN_AGENT,
    Behaviour.IS_IGNORED: codes.QUEUE_TIMEOUT,
}


@dataclass(frozen=True)
class Case:
    """A workflow and its agents. Those that are not in `behaviours` complete their tasks."""

    steps: Mapping[str, Mapping[str, Any]]
    behaviours: Mapping[str, Behaviour]
    failing_first: Mapping[str, int] = field(default_factory=dict)  # so many attempts fail before that

    def behaviour(self, step_id: str) -> Behaviour:
        return self.behaviours.get(step_id, Behaviour.COMPLETES)

    def behaviour_of(self, step_id: str, attempt: int) -> Behaviour:
        """Return what the agent does with an attempt, counted from 1."""
        return Behaviour.FAILS if attempt <= self.failing_first.get(step_id, 0) else self.behaviour(step_id)

    def last_behaviour(self, step_id: str) -> Behaviour:
        """Return what the agent does with the last attempt that the step's `retry` allows and needs."""
        retry = self.steps[step_id].get("retry")
        return self.behaviour_of(step_id, retry["max_attempts"] if retry is not None else 1)

    @property
    def workflow(self) -> Workflow:
        return parse_workflow({"name": "case", "start_step": "n1", "steps": self.steps})


def said(step_id: str, value: Any) -> dict[str, str]:
    """Return the output of a step: short, and another one for every other input."""
    return {"said": f"{step_id} {crc32(dump_json(value).encode()):08x}"}


# What must come of a case


@dataclass
class Expected:
    """How a run ends when nothing goes wrong on the way."""

    status: RunStatus = RunStatus.RUNNING
    output: Any = None
    steps: dict[str, StepOutcome] = field(default_factory=dict)


def sequential(case: Case) -> Expected:
    """Carry the workflow out, one step after the other."""
    steps = case.workflow.steps
    expected, step_id = Expected(), "n1"
    while True:
        step = steps[step_id]
        expected.steps[step_id] = outcome = _outcome(case, steps, step, expected.steps)
        completed = outcome.status is StepStatus.COMPLETED
        following = step.next_step if completed else _handler(steps, step, expected.steps)
        if following is None:
            expected.status = RunStatus.COMPLETED if completed else RunStatus.FAILED
            expected.output = outcome.output if completed else None
            return expected
        step_id = following


def _outcome(case: Case, steps: Mapping[str, Any], step: Any, before: dict[str, StepOutcome]) -> StepOutcome:
    if isinstance(step, AgentStep):
        return _agent_outcome(case, step, Scope(INPUT, before))
    assert isinstance(step, ParallelStep)
    seen = Scope(INPUT, dict(before))
    branches = {branch: _agent_outcome(case, steps[branch], seen) for branch in step.parallel_steps}
    before.update(branches)
    output = {key: it.output for key, it in branches.items() if it.status is StepStatus.COMPLETED}
    if len(output) == len(branches):
        return StepOutcome(StepStatus.COMPLETED, output, None)
    return StepOutcome(StepStatus.FAILED, output, {"code": codes.BRANCHES_FAILED})


def _agent_outcome(case: Case, step: AgentStep, scope: Scope) -> StepOutcome:
    try:
        value = compile_template(step.input_mapping).resolve(scope)
    except ReferenceBroken:
        return StepOutcome(StepStatus.FAILED, None, {"code": codes.REFERENCE_BROKEN})
    behaviour = case.last_behaviour(step.id)
    if behaviour is Behaviour.COMPLETES:
        return StepOutcome(StepStatus.COMPLETED, said(step.id, value), None)
    return StepOutcome(StepStatus.FAILED, None, {"code": ERROR_CODES[behaviour]})


def _handler(steps: Mapping[str, Any], step: Any, outcomes: Mapping[str, StepOutcome]) -> str | None:
    candidates = [step.on_failure]
    if isinstance(step, ParallelStep):
        failed = [branch for branch in step.parallel_steps if outcomes[branch].status is StepStatus.FAILED]
        candidates += [steps[branch].on_failure for branch in failed]
    return next((handler for handler in candidates if handler is not None), None)


# Drawing a case


class Choices(Protocol):
    """Where the choices come from: hypothesis, or a seeded generator."""

    def pick(self, options: Sequence[Any]) -> Any:
        """Return one of *options*."""

    def shuffled(self, items: Sequence[Any]) -> list[Any]:
        """Return *items* in some order."""


class _Drawn:
    """Choices of hypothesis."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def pick(self, options: Sequence[Any]) -> Any:
        return self._draw(st.sampled_from(options))

    def shuffled(self, items: Sequence[Any]) -> list[Any]:
        return self._draw(st.permutations(items))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw a workflow of up to four steps and blocks, in which every step can be reached."""
    return make_case(_Drawn(draw), [*_BEHAVIOURS, Behaviour.IS_IGNORED])


def make_case(choices: Choices, possible: Sequence[Behaviour] = ()) -> Case:
    """Make a workflow of up to four steps and blocks, in which every step can be reached.

    Where queues may be lost as well, nobody can tell tasks that are ignored from those that are missing; so those are
    among the behaviours only where *possible* says so.
    """
    names = [f"n{number}" for number in range(1, choices.pick([1, 2, 3, 4]) + 1)]
    steps: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(names):
        later = names[index + 1 :]
        branches = choices.pick([0, 2, 3, 4, 5, 5, 1])
        if branches:
            ids = [f"{name}{letter}" for letter in "abcde"[:branches]]
            steps |= {branch: {"agent_name": "x", **_edges(choices, ("on_failure",), later)} for branch in ids}
            steps[name] = _block(choices, ids) | _edges(choices, ("next_step", "on_failure"), later)
        else:
            steps[name] = {"agent_name": "x", **_edges(choices, ("next_step", "on_failure"), later)}
    steps = _reachable(steps)
    behaviours = {name: choices.pick(possible or _BEHAVIOURS) for name, step in steps.items() if "agent_name" in step}
    for name, behaviour in behaviours.items():
        _complete(choices, steps, name, behaviour)
    special = {name: behaviour for name, behaviour in behaviours.items() if behaviour is not Behaviour.COMPLETES}
    failing = {name: _retried(choices, steps[name]) for name in behaviours}
    return Case(steps, special, {name: failing[name] for name in failing if behaviours[name] in _ANSWERING})


def _retried(choices: Choices, step: dict[str, Any]) -> int:
    """Let some steps be tried again, and return how many of their attempts fail before the others."""
    attempts = choices.pick([1, 1, 1, 2, 3])
    if attempts > 1:
        step["retry"] = {"max_attempts": attempts, "initial_interval_seconds": choices.pick([0, 3])}
    return int(choices.pick([0, 0, 1, attempts - 1, attempts]))


_ANSWERING = frozenset({Behaviour.COMPLETES, Behaviour.FAILS})


_BEHAVIOURS = [Behaviour.COMPLETES] * 9 + [Behaviour.FAILS, Behaviour.HANGS, Behaviour.IS_MISSING]


def _edges(choices: Choices, fields: Sequence[str], later: Sequence[str]) -> dict[str, str]:
    edges = {name: choices.pick([None, *later, *later[:2]]) for name in fields}
    return {name: target for name, target in edges.items() if target is not None}


def _block(choices: Choices, branches: list[str]) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "parallel", "parallel_steps": choices.shuffled(branches)}
    limit = choices.pick([2, 1, 3, len(branches), 6, None])
    if limit is not None:
        block["max_parallelism"] = limit
    if choices.pick([False, True]):
        block["timeout_seconds"] = LONG
    return block


def _complete(choices: Choices, steps: Mapping[str, Any], name: str, behaviour: Behaviour) -> None:
    if behaviour is Behaviour.HANGS:
        steps[name]["timeout_seconds"] = SHORT
    if behaviour is Behaviour.IS_IGNORED:
        steps[name]["queue_timeout_seconds"] = SHORT
    before = [other for other in steps if _node(name) in _successors(steps, _node(other))]
    references = [
        "${workflow.input.topic}",
        *(f"${{{other}.{part}}}" for other in before for part in ("output", "status", "error.code")),
        *(f"about ${{{other}.output.said}}" for other in before if "agent_name" in steps[other]),
    ]
    mapping = {key: choices.pick(references) for key in choices.pick(["", "x", "y", "xy"])}
    if choices.pick([False] * 9 + [True]):
        mapping["z"] = BROKEN
    if mapping:
        steps[name]["input_mapping"] = mapping


def _node(name: str) -> str:
    return name.rstrip("abcde")


def _successors(steps: Mapping[str, Any], node: str) -> set[str]:
    """Return the steps and blocks that come after *node* on some path."""
    found: set[str] = set()
    new = {node}
    while new:
        fields = (steps[name].get(key) for name in steps if _node(name) in new for key in ("next_step", "on_failure"))
        new = {target for target in fields if target is not None} - found
        found |= new
    return found


def _reachable(steps: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    reached = {"n1"} | _successors(steps, "n1")
    return {name: step for name, step in steps.items() if _node(name) in reached}
