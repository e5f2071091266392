"""Random workflows whose agents do what is written beside them, and what must come of each.

`sequential` walks a workflow one step after the other, with no queue, no counter and nothing that goes wrong on the
way. Whatever order a distributed run takes, it must arrive at the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol
from zlib import crc32

from hypothesis import strategies as st

from orchestrator.engine import codes
from schemas.codec import dump_json
from schemas.errors import ExpressionFailed, ReferenceBroken
from schemas.expressions import compile_expression
from schemas.references import compile_template
from schemas.scope import Scope, StepOutcome
from schemas.statuses import RunStatus, StepStatus
from schemas.validation import parse_workflow, validate_workflow
from schemas.workflow import AgentStep, ConditionalStep, Workflow

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
    delegated: frozenset[str] = frozenset()  # steps whose agents are called by runs of other workflows

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
    def is_certain(self) -> bool:
        """Whether every order leads to the same; not where a block goes on without some branches."""
        return all(_join(step).get("on_decided") != "cancel" for step in self.steps.values())

    @property
    def document(self) -> dict[str, Any]:
        """The workflow, with sub-workflows for the steps that are delegated."""
        steps = {name: self._delegated(name) if name in self.delegated else step for name, step in self.steps.items()}
        return {"name": "case", "start_step": "n1", "steps": steps}

    def _delegated(self, step_id: str) -> dict[str, Any]:
        kept = {name: value for name, value in self.steps[step_id].items() if name not in _OF_AGENTS}
        return {"type": "sub_workflow", "workflow_id": delegate(step_id), **kept}

    @property
    def workflow(self) -> Workflow:
        return parse_workflow({"name": "case", "start_step": "n1", "steps": self.steps})


_OF_AGENTS = frozenset({"agent_name", "queue_timeout_seconds"})


def delegate(step_id: str) -> str:
    """Return the workflow to which a step is delegated."""
    return f"delegate of {step_id}"


def said(step_id: str, value: Any) -> dict[str, str]:
    """Return the output of a step: short, and another one for every other input."""
    return {"said": f"{step_id} {crc32(dump_json(value).encode()):08x}"}


def lanes(step: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the steps of each branch of a block, by the branch's name; nothing where *step* is no block."""
    branches = _join(step).get("branches", {})
    return {name: [name] for name in step.get("parallel_steps", ())} | {
        name: branch["steps"] for name, branch in branches.items()
    }


def needed(step: Mapping[str, Any]) -> int:
    """Return how many branches of a block must complete."""
    join, total = _join(step), len(lanes(step))
    by_policy = {"all": total, "any": 1, "majority": total // 2 + 1, "n_of_m": join.get("n_required", 0)}
    return by_policy[join.get("join_policy", "all")]


def limit(step: Mapping[str, Any]) -> int:
    """Return how many branches of a block may run at once."""
    return int(_join(step).get("max_parallelism", len(lanes(step))))


def _join(step: Mapping[str, Any]) -> Mapping[str, Any]:
    config: Mapping[str, Any] = step.get("fork_join_config", step)
    return config


def decided_wrongly(case: Case, statuses: Mapping[str, StepStatus]) -> list[str]:
    """Return the blocks that did not end as their policy says of the branches that have ended."""
    wrong = []
    for step_id, step in case.steps.items():
        status, branches = statuses.get(step_id), lanes(step)
        if branches and status in {StepStatus.COMPLETED, StepStatus.FAILED}:
            completed = sum(statuses.get(steps[-1]) is StepStatus.COMPLETED for steps in branches.values())
            if (completed >= needed(step)) != (status is StepStatus.COMPLETED):
                wrong.append(step_id)
    return wrong


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
    behind: list[str] = []  # where the run goes on when the paths end on which it is
    while True:
        while behind and behind[-1] == step_id:
            behind.pop()
        step = steps[step_id]
        expected.steps[step_id] = outcome = _outcome(case, steps, step, expected.steps)
        completed = outcome.status is StepStatus.COMPLETED
        following = step.next_step if completed else _handler(case, step_id, expected.steps)
        if completed and isinstance(step, ConditionalStep) and outcome.output["step"] is not None:
            if step.next_step is not None:
                behind.append(step.next_step)
            following = outcome.output["step"]
        if following is None and completed and behind:
            following = behind[-1]
        if following is None:
            expected.status = RunStatus.COMPLETED if completed else RunStatus.FAILED
            expected.output = outcome.output if completed else None
            return expected
        step_id = following


def _outcome(case: Case, steps: Mapping[str, Any], step: Any, before: dict[str, StepOutcome]) -> StepOutcome:
    if isinstance(step, AgentStep):
        return _agent_outcome(case, step, Scope(INPUT, before))
    if isinstance(step, ConditionalStep):
        return _answer(step, Scope(INPUT, before))
    written = case.steps[step.id]
    seen, output, errors = dict(before), {}, {}
    for name, lane in lanes(written).items():
        last = _lane_outcome(case, steps, lane, seen, before)
        if last.status is StepStatus.COMPLETED or "fork_join_config" in written:
            output[name] = last.output if last.status is StepStatus.COMPLETED else None
        if last.error is not None:
            errors[name] = last.error
    completed = len(lanes(written)) - len(errors)
    if completed >= needed(written):
        return StepOutcome(StepStatus.COMPLETED, output, None)
    return StepOutcome(StepStatus.FAILED, output, {"code": codes.BRANCHES_FAILED})


def _answer(step: ConditionalStep, scope: Scope) -> StepOutcome:
    try:
        holds = compile_expression(step.condition.expression).evaluate(scope)
    except ReferenceBroken:
        return StepOutcome(StepStatus.FAILED, None, {"code": codes.REFERENCE_BROKEN})
    except ExpressionFailed:
        return StepOutcome(StepStatus.FAILED, None, {"code": codes.CONDITION_FAILED})
    taken = step.if_true_step if holds else step.if_false_step
    return StepOutcome(StepStatus.COMPLETED, {"result": holds, "step": taken}, None)


def _lane_outcome(
    case: Case,
    steps: Mapping[str, Any],
    lane: Sequence[str],
    before: Mapping[str, StepOutcome],
    ran: dict[str, StepOutcome],
) -> StepOutcome:
    seen = dict(before)
    for step_id in lane:
        seen[step_id] = last = _outcome(case, steps, steps[step_id], seen)
        if last.status is not StepStatus.COMPLETED:
            break
    ran.update({step_id: outcome for step_id, outcome in seen.items() if step_id not in before})
    return last


def _agent_outcome(case: Case, step: AgentStep, scope: Scope) -> StepOutcome:
    try:
        value = compile_template(step.input_mapping).resolve(scope)
    except ReferenceBroken:
        return StepOutcome(StepStatus.FAILED, None, {"code": codes.REFERENCE_BROKEN})
    behaviour = case.last_behaviour(step.id)
    if behaviour is Behaviour.COMPLETES:
        return StepOutcome(StepStatus.COMPLETED, said(step.id, value), None)
    is_told = step.id in case.delegated and behaviour is not Behaviour.HANGS  # by a run that failed
    code = codes.SUB_WORKFLOW_FAILED if is_told else ERROR_CODES[behaviour]
    return StepOutcome(StepStatus.FAILED, None, {"code": code})


def _handler(case: Case, step_id: str, outcomes: Mapping[str, StepOutcome]) -> str | None:
    """Return the handler of a failed step; where a block names none, that of its first failed branch that has one."""
    step = case.steps[step_id]
    failed = [
        inner
        for lane in lanes(step).values()
        for inner in lane
        if inner in outcomes and outcomes[inner].status is StepStatus.FAILED
    ]
    candidates = (step.get("on_failure"), *(_handler(case, inner, outcomes) for inner in failed))
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
    case = make_case(_Drawn(draw), [*_BEHAVIOURS, Behaviour.IS_IGNORED])
    # No worker has to take a sub-workflow.
    agents = [name for name, step in case.steps.items() if "agent_name" in step]
    able = [name for name in agents if case.behaviour(name) is not Behaviour.IS_IGNORED]
    return replace(case, delegated=frozenset(draw(st.sets(st.sampled_from(able)) if able else st.just(set()))))


def make_case(choices: Choices, possible: Sequence[Behaviour] = ()) -> Case:
    """Make a workflow of up to four steps and blocks, in which every step can be reached.

    Where queues may be lost as well, nobody can tell tasks that are ignored from those that are missing; so those are
    among the behaviours only where *possible* says so.
    """
    names = [f"n{number}" for number in range(1, choices.pick([1, 2, 3, 4]) + 1)]
    steps: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(names):
        later = names[index + 1 :]
        branches = choices.pick([0, 2, 3, 4, 5, 5, 1, -1])
        if branches < 0:
            steps[name] = _conditional(choices, names[:index], later)
        elif branches:
            ids = [f"{name}{letter}" for letter in "abcde"[:branches]]
            steps |= {branch: {"agent_name": "x", **_edges(choices, ("on_failure",), later)} for branch in ids}
            if branches >= 4 and choices.pick([False, True]):
                inner = f"{name}x"
                steps[inner] = _block(choices, ids[-2:])
                ids = [*ids[:-3], inner, ids[-3]]
            steps[name] = _block(choices, ids) | _edges(choices, ("next_step", "on_failure"), later)
        else:
            steps[name] = {"agent_name": "x", **_edges(choices, ("next_step", "on_failure"), later)}
    steps = _certain(_reachable(steps))
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
    join: dict[str, Any] = {}
    limit = choices.pick([2, 1, 3, len(branches), 6, None])
    if limit is not None:
        join["max_parallelism"] = limit
    block: dict[str, Any] = {}
    if choices.pick([True, False]):
        block |= {"type": "parallel", "parallel_steps": choices.shuffled(branches)}
        into, total = block, len(branches)
    else:
        cut = choices.pick([1, 2, 3])  # so many steps has the first branch; the others have one or two
        rest = branches[cut:]
        rows = [branches[:cut], *(rest[start : start + 2] for start in range(0, len(rest), 2))]
        join["branches"] = {f"branch-{number}": {"steps": row} for number, row in enumerate(rows)}
        block |= {"type": "fork_join", "fork_join_config": join}
        into, total = join, len(rows)
    join["join_policy"] = choices.pick(["all", "all", "any", "majority", "n_of_m"])
    if join["join_policy"] == "n_of_m":
        join["n_required"] = choices.pick(range(1, total + 1))
    if choices.pick([False, False, True]):
        join["on_decided"] = "cancel"
    into |= join
    if choices.pick([False, True]):
        block["timeout_seconds"] = LONG
    return block


def _complete(choices: Choices, steps: Mapping[str, Any], name: str, behaviour: Behaviour) -> None:
    if behaviour is Behaviour.HANGS:
        steps[name]["timeout_seconds"] = SHORT
    if behaviour is Behaviour.IS_IGNORED:
        steps[name]["queue_timeout_seconds"] = SHORT
    before = [other for other in steps if _node(name) in _successors(steps, _node(other))]
    lane = next((lane for step in steps.values() for lane in lanes(step).values() if name in lane), [])
    before += lane[: lane.index(name)] if lane else []
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
    return name.rstrip("abcdex")


def _successors(steps: Mapping[str, Any], node: str) -> set[str]:
    """Return the steps and blocks that come after *node* on some path."""
    found: set[str] = set()
    new = {node}
    while new:
        fields = (steps[name].get(key) for name in steps if _node(name) in new for key in _EDGES)
        new = {target for target in fields if target is not None} - found
        found |= new
    return found


_EDGES = ("next_step", "on_failure", "if_true_step", "if_false_step")


def _conditional(choices: Choices, earlier: Sequence[str], later: Sequence[str]) -> dict[str, Any]:
    conditions = ["${workflow.input.topic} == 'rain'", "'x' in ${workflow.input.topic}", "${workflow.input.topic} > 1"]
    conditions += [f"${{{name}.status}} != 'FAILED'" for name in earlier]
    step = {"type": "conditional", "condition": {"expression": choices.pick(conditions)}}
    return step | _edges(choices, _EDGES, later)


def _certain(steps: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return *steps*, with agents instead of conditionals where one of those is not as a document's should be."""
    if not validate_workflow({"name": "case", "start_step": "n1", "steps": steps}):
        return steps
    plain = {name: dict(step) for name, step in steps.items()}
    for step in plain.values():
        if step.get("type") == "conditional":
            edges = {name: step[name] for name in ("next_step", "on_failure") if name in step}
            edges.setdefault("next_step", step.get("if_true_step") or step.get("if_false_step"))
            step.clear()
            step |= {"agent_name": "x", **{name: target for name, target in edges.items() if target is not None}}
    return _reachable(plain)


def _reachable(steps: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    reached = {"n1"} | _successors(steps, "n1")
    return {name: step for name, step in steps.items() if _node(name) in reached}
