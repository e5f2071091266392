"""Random workflows whose agents do what is written beside them."""

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol
from zlib import crc32

from hypothesis import strategies as st

from orchestrator.engine import codes
from orchestrator.engine.executions import execution_id, iterations_of, step_of
from schemas.codec import dump_json
from schemas.statuses import StepStatus
from schemas.validation import parse_workflow, validate_workflow
from schemas.workflow import Workflow

INPUT = {"topic": "rain", "items": ["a", 2, {"b": [3]}]}
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

    def step(self, execution: str) -> Mapping[str, Any]:
        """Return the step that an execution is of."""
        return self.steps[step_of(execution)]

    def behaviour(self, step_id: str) -> Behaviour:
        return self.behaviours.get(step_id, Behaviour.COMPLETES)

    def behaviour_of(self, execution: str, attempt: int) -> Behaviour:
        """Return what the agent does with an attempt, counted from 1."""
        step_id = step_of(execution)
        fails_first = attempt <= self.failing_first.get(step_id, 0)
        return Behaviour.FAILS if fails_first else self.behaviour(step_id)

    def members(self, lane: Sequence[str]) -> list[str]:
        """Return the steps of a branch, those on the paths of its conditionals too."""
        found = list(lane)
        for step_id in found:  # it grows while we go
            names = ("if_true_step", "if_false_step", *(("next_step",) if step_id not in lane else ()))
            targets = (self.steps[step_id].get(name) for name in names)
            found += [target for target in targets if target is not None and target not in found]
        return found

    def last_behaviour(self, step_id: str) -> Behaviour:
        """Return what the agent does with the last attempt that the step's `retry` allows and needs."""
        retry = self.steps[step_id].get("retry")
        return self.behaviour_of(step_id, retry["max_attempts"] if retry is not None else 1)

    @property
    def is_certain(self) -> bool:
        """Whether every order leads to the same; not where a block goes on without some branches."""
        return all(
            _join(step).get("on_decided") != "cancel" and not _stops_anywhere(step) for step in self.steps.values()
        )

    def once_more(self, kept: Collection[str]) -> "Case":
        """Return the case of a run that is retried: agents succeed now, but for the steps that stay as they ended."""
        steps = {step_of(execution) for execution in kept}
        return replace(
            self,
            behaviours={step_id: behaviour for step_id, behaviour in self.behaviours.items() if step_id in steps},
            failing_first={step_id: times for step_id, times in self.failing_first.items() if step_id in steps},
        )

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
    return {"said": f"{step_of(step_id)} {crc32(dump_json(bare(value)).encode()):08x}"}


def bare(value: Any) -> Any:
    """Return *value*, in which errors are no more than their codes: their words are not foretold."""
    if isinstance(value, list):
        return [bare(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() >= {"code", "message"}:
        return {"code": value["code"]}
    return {key: bare(item) for key, item in value.items()}


def lanes(step: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the steps of each branch of a block, by the branch's name; nothing where *step* is no block."""
    if "loop_config" in step:
        return {"body": step["loop_config"]["loop_body"]}
    branches = _join(step).get("branches", {})
    return {name: [name] for name in step.get("parallel_steps", ())} | {
        name: branch["steps"] for name, branch in branches.items()
    }


def needed(step: Mapping[str, Any]) -> int:
    """Return how many branches of a block must complete."""
    join, total = _join(step), len(lanes(step))
    by_policy = {"all": total, "any": 1, "majority": total // 2 + 1, "n_of_m": join.get("n_required", 0)}
    return by_policy[join.get("join_policy", "all")]


def limit(step: Mapping[str, Any]) -> float:
    """Return how many branches of a block may run at once."""
    if is_sequential(step):
        return 1
    return float(_join(step).get("max_parallelism", "inf"))


def is_sequential(step: Mapping[str, Any]) -> bool:
    """Whether it is a loop whose iterations run one after the other."""
    return "loop_config" in step and step["loop_config"].get("execution_mode") != "parallel"


def _join(step: Mapping[str, Any]) -> Mapping[str, Any]:
    config: Mapping[str, Any] = step.get("fork_join_config") or step.get("loop_config") or step
    return config


def _stops_anywhere(step: Mapping[str, Any]) -> bool:
    """Whether it is a loop of which nobody can tell how many iterations start before one has failed."""
    stops = "loop_config" in step and step["loop_config"].get("on_error", "stop") == "stop"
    return stops and not is_sequential(step) and "max_parallelism" in step["loop_config"]


def decided_wrongly(case: Case, statuses: Mapping[str, StepStatus]) -> list[str]:
    """Return the blocks that did not end as their policy says of the branches that have ended; by execution."""
    wrong = []
    for block_id, status in statuses.items():
        step = case.step(block_id)
        if not lanes(step) or status not in {StepStatus.COMPLETED, StepStatus.FAILED}:
            continue
        branches = [_has_completed(case, *branch, statuses) for branch in branches_of(block_id, step, statuses)]
        if "loop_config" in step:
            tolerates = step["loop_config"].get("on_error") == "continue"
            if status is StepStatus.COMPLETED and not (tolerates or all(branches)):
                wrong.append(block_id)
        elif (sum(branches) >= needed(step)) != (status is StepStatus.COMPLETED):
            wrong.append(block_id)
    return wrong


def branches_of(
    block_id: str, step: Mapping[str, Any], known: Container[str]
) -> Iterator[tuple[Sequence[str], tuple[int, ...]]]:
    """Yield the branches of a block, and of a loop its iterations as far as they are *known*, by execution."""
    numbers = iterations_of(block_id)
    for lane in lanes(step).values():
        if "loop_config" not in step:
            yield lane, numbers
            continue
        index = 0
        while execution_id(lane[0], (*numbers, index)) in known:
            yield lane, (*numbers, index)
            index += 1


def _has_completed(
    case: Case, lane: Sequence[str], numbers: tuple[int, ...], statuses: Mapping[str, StepStatus]
) -> bool:
    reached = [statuses.get(execution_id(step_id, numbers)) for step_id in case.members(lane)]
    ended = {StepStatus.COMPLETED, StepStatus.SKIPPED, None}
    last = statuses.get(execution_id(lane[-1], numbers))
    return last is StepStatus.COMPLETED and all(one in ended for one in reached)


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
            if branches >= 4:
                ids = _with_blocks(choices, name, steps, ids)
            ids = _with_choice(choices, steps, name, ids)
            steps[name] = _block(choices, ids) | _edges(choices, ("next_step", "on_failure"), later)
        else:
            steps[name] = {"agent_name": "x", **_edges(choices, ("next_step", "on_failure"), later)}
    steps = _certain(_reachable(steps))
    behaviours = {name: choices.pick(possible or _BEHAVIOURS) for name, step in steps.items() if "agent_name" in step}
    for name, behaviour in behaviours.items():
        _complete(choices, steps, name, behaviour)
    _hurry(choices, steps, behaviours)
    special = {name: behaviour for name, behaviour in behaviours.items() if behaviour is not Behaviour.COMPLETES}
    failing = {name: _retried(choices, steps[name]) for name in behaviours}
    return Case(steps, special, {name: failing[name] for name in failing if behaviours[name] in _ANSWERING})


def _retried(choices: Choices, step: dict[str, Any]) -> int:
    """Let some steps be tried again, and return how many of their attempts fail before the others."""
    attempts = choices.pick([1, 1, 1, 2, 3])
    if attempts > 1:
        step["retry"] = {"max_attempts": attempts, "initial_interval_seconds": choices.pick([0, 3])}
    return int(choices.pick([0, 0, 1, attempts - 1, attempts]))


def _with_blocks(choices: Choices, name: str, steps: dict[str, dict[str, Any]], ids: list[str]) -> list[str]:
    """Put some of the branches into blocks of two, and return what the branches are then."""
    inner = [f"{name}{letter}" for letter in "xy"[: choices.pick([0, 1, 1, 2])]]
    for block in inner:
        steps[block] = _block(choices, ids[-2:])
        ids = ids[:-2]
    return choices.shuffled([*ids, *inner])


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
    shape = choices.pick(["parallel", "fork_join", "loop"])
    if shape == "loop":
        return _loop(choices, branches)
    if shape == "parallel":
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


def _loop(choices: Choices, body: list[str]) -> dict[str, Any]:
    collections = [["a", "b"], "${workflow.input.items}", [1], [], ["a", "b", "c", "d"], "${workflow.input.topic}"]
    config: dict[str, Any] = {"collection": choices.pick(collections), "loop_body": body}
    config["execution_mode"] = choices.pick(["sequential", "parallel"])
    config["on_error"] = choices.pick(["stop", "continue", "collect"])
    if config["execution_mode"] == "parallel":
        limit = choices.pick([None, 1, 2, 5])
        config |= {"max_parallelism": limit} if limit is not None else {}
    if choices.pick([False, False, False, True]):
        config["max_iterations"] = 3
    return {"type": "loop", "loop_config": config}


def _with_choice(choices: Choices, steps: dict[str, Any], name: str, ids: list[str]) -> list[str]:
    """Let one or two steps of a branch lie on the paths of a conditional instead of in its list."""
    plain = [step_id for step_id in ids if steps[step_id].get("agent_name") is not None]
    if len(plain) < 2 or choices.pick([True, True, False]):
        return ids
    choice, paths = f"{name}xc", plain[-2:] if len(plain) > 3 else plain[-1:]
    conditions = [
        "${workflow.input.topic} == 'rain'",
        "${workflow.input.topic} == 'sun'",
        "${workflow.input.topic} > 1",
    ]
    step: dict[str, Any] = {"type": "conditional", "condition": {"expression": choices.pick(conditions)}}
    fields = choices.shuffled(["if_true_step", "if_false_step"])
    step |= dict(zip(fields, paths, strict=False))
    if len(paths) > 1 and choices.pick([False, True]):
        del step[fields[1]]
        steps[paths[0]]["next_step"] = paths[1]
    for path in paths:
        steps[path].pop("on_failure", None)
    steps[choice] = step
    rest = [step_id for step_id in ids if step_id not in paths]
    at = choices.pick(range(len(rest) + 1))
    return [*rest[:at], choice, *rest[at:]]


def _complete(choices: Choices, steps: Mapping[str, Any], name: str, behaviour: Behaviour) -> None:
    if behaviour is Behaviour.HANGS:
        steps[name]["timeout_seconds"] = SHORT
    if behaviour is Behaviour.IS_IGNORED:
        steps[name]["queue_timeout_seconds"] = SHORT
    in_loops = _in_loops(steps)
    before = [other for other in steps if _node(name) in _successors(steps, _node(other)) and other not in in_loops]
    lane = next((lane for step in steps.values() for lane in lanes(step).values() if name in lane), [])
    before += [other for other in lane[: lane.index(name)] if "condition" not in steps[other]] if lane else []
    references = [
        "${workflow.input.topic}",
        *(("${loop.item}", "${loop.index}", "of ${loop.total}", "${loop.is_last}") if name in in_loops else ()),
        *(f"${{{other}.{part}}}" for other in before for part in ("output", "status", "error.code")),
        *(f"about ${{{other}.output.said}}" for other in before if "agent_name" in steps[other]),
    ]
    mapping = {key: choices.pick(references) for key in choices.pick(["", "x", "y", "xy"])}
    if choices.pick([False] * 9 + [True]):
        mapping["z"] = BROKEN
    if mapping:
        steps[name]["input_mapping"] = mapping


def _hurry(choices: Choices, steps: Mapping[str, Any], behaviours: Mapping[str, Behaviour]) -> None:
    """Let the time limit of its branch end a step that hangs, in place of its own."""
    for branch in (branch for step in steps.values() for branch in _join(step).get("branches", {}).values()):
        first = branch["steps"][0]
        if behaviours.get(first) is Behaviour.HANGS and choices.pick([True, False]):
            branch["timeout_seconds"] = SHORT
            del steps[first]["timeout_seconds"]


def _in_loops(steps: Mapping[str, Any]) -> set[str]:
    """Return the steps that lie in loops: all of a node, as loops lie in blocks, or blocks in loops."""
    outer = {name for name, step in steps.items() if "loop_config" in step and name == _node(name)}
    inner = {member for step in steps.values() if "loop_config" in step for member in step["loop_config"]["loop_body"]}
    return inner | {name for name in steps if _node(name) in outer and name not in outer}


def _node(name: str) -> str:
    return name.rstrip("abcdexy")


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
    plain = {name: {"id": name, **step} for name, step in steps.items()}
    for step in plain.values():
        if step.get("type") == "conditional" and step["id"] == _node(step["id"]):
            edges = {name: step[name] for name in ("next_step", "on_failure") if name in step}
            edges.setdefault("next_step", step.get("if_true_step") or step.get("if_false_step"))
            name = step["id"]
            step.clear()
            step |= {
                "id": name,
                "agent_name": "x",
                **{name: target for name, target in edges.items() if target is not None},
            }
    return _reachable(plain)


def _reachable(steps: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    reached = {"n1"} | _successors(steps, "n1")
    return {name: step for name, step in steps.items() if _node(name) in reached}
