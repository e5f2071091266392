"""The control flow of a workflow document: who leads to whom, and what is wrong with that.

A block and all that lies in its branches are one node, because the run enters and leaves them together. Edges are
`next_step`, `on_failure`, the `on_failure` of the steps of branches, which counts when the block itself names none, and
the two paths of a conditional step, whose ends lead to where the run goes on behind it (`schemas.paths`).

An edge that cannot be followed gives one problem where it stands. It is then *guessed*: taken to where its author
probably wanted it, so that nothing behind it is reported as well. Loops are looked for among the sure edges only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from schemas.display import Place, place_text, quoted
from schemas.draft import CONDITIONAL, FORK_JOIN, PARALLEL, Draft
from schemas.errors import Problem
from schemas.graph import find_loops, first_unreached, reached_from
from schemas.paths import Crossing, ways
from schemas.suggestions import NameIndex

MAX_BLOCK_DEPTH: Final = 8  # blocks within blocks
_EDGES: Final = ("next_step", "on_failure", "if_true_step", "if_false_step")
_START: Final = "start_step"
_UNREADABLE: Final = object()


@dataclass(frozen=True, slots=True)
class Edge:
    """One field that leads from a step to another."""

    source: str
    target: str
    place: Place


@dataclass(frozen=True, slots=True)
class Lane:
    """A branch: the block that it is of, where it stands, and the names in it as they are written."""

    block: str
    place: Place
    steps: list[Any]


@dataclass(slots=True)
class Flow:
    """What could be made of the document's edges."""

    steps: Mapping[str, Any]
    names: NameIndex
    problems: list[Problem] = field(default_factory=list)
    lane_of: dict[str, Lane] = field(default_factory=dict)  # by step of a branch
    place_in_lane: dict[str, int] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)  # the sure ones
    edges_from: dict[str, list[Edge]] = field(default_factory=dict)  # the same, by node
    guesses: list[tuple[str, str]] = field(default_factory=list)
    blurred: set[str] = field(default_factory=set)  # nodes with an edge that leads nobody knows where
    start: str | None = None
    reached: set[str] = field(default_factory=set)  # from the start; all nodes where there is no start

    def block_of(self, step_id: str) -> str | None:
        """Return the block of whose branches it is a step, if it is one."""
        lane = self.lane_of.get(step_id)
        return lane.block if lane is not None else None

    def chain(self, step_id: str) -> Iterator[str]:
        """Yield the step, the block of whose branches it is a step, and so on outwards."""
        at: str | None = step_id
        while at is not None:
            yield at
            at = self.block_of(at)

    def node_of(self, step_id: str) -> str:
        """Return the outermost block that the step lies in, or the step itself."""
        *_, outermost = self.chain(step_id)
        return outermost

    def successors(self, *, guessed: bool) -> dict[str, list[str]]:
        """Return the graph, with the *guessed* edges or without them."""
        ends: dict[str, dict[str, None]] = {step_id: {} for step_id in self.steps if step_id not in self.lane_of}
        sure = ((edge.source, edge.target) for edge in self.edges)
        for source, target in chain(sure, self.guesses if guessed else ()):
            ends[self.node_of(source)][self.node_of(target)] = None
        return {node: list(targets) for node, targets in ends.items()}


def read_flow(draft: Draft) -> Flow:
    """Return the control flow of *draft* with all its problems."""
    flow = Flow(draft.steps, NameIndex(draft.steps))
    for step_id, step in draft.steps.items():
        for lane in _lanes(flow, step_id, step):
            _read_lane(flow, lane)
    _find_depths(flow, draft.document.get(_START))
    _read_start(flow, draft.document)
    for step_id, step in draft.steps.items():
        _read_edges(flow, step_id, step)
        _guess_from(flow, step_id, draft.removed.get(step_id, []))
    _find_cycles(flow)
    _read_ways(flow)
    _read_reach(flow)
    return flow


# Blocks and their branches


def block_names(step: Any) -> list[str] | None:
    """Return the names of a block's branches as far as they can be read; None where *step* is no block."""
    match step:
        case {"type": "parallel"}:
            branches = step.get("parallel_steps")
            return [name for name in branches if isinstance(name, str)] if isinstance(branches, list) else []
        case {"type": "fork_join"}:
            config = step.get("fork_join_config")
            branches = config.get("branches") if isinstance(config, dict) else None
            return list(branches) if isinstance(branches, dict) else []
        case _:
            return None


def _lanes(flow: Flow, block: str, step: Any) -> Iterator[Lane]:
    kind_of = step.get("type") if isinstance(step, dict) else None
    if kind_of == PARALLEL:
        branches = step.get("parallel_steps")
        place: Place = ("steps", block, "parallel_steps")
        if isinstance(branches, list | tuple):
            for number, branch in enumerate(branches):
                yield Lane(block, (*place, number), [branch])
            return
    elif kind_of == FORK_JOIN:
        config = step.get("fork_join_config")
        branches = config.get("branches") if isinstance(config, dict) else None
        if isinstance(branches, dict):
            for name, branch in branches.items():
                steps = branch.get("steps") if isinstance(branch, dict) else None
                place = ("steps", block, "fork_join_config", "branches", name, "steps")
                if isinstance(steps, list | tuple):
                    yield Lane(block, place, list(steps))
                else:
                    flow.blurred.add(block)
            return
    else:
        return
    flow.blurred.add(block)


def _read_lane(flow: Flow, lane: Lane) -> None:
    for index, step in enumerate(lane.steps):
        if not isinstance(step, str):
            flow.blurred.add(lane.block)
            continue
        place = (*lane.place, index) if lane.place[-1] == "steps" else lane.place
        problem = _branch_problem(flow, lane, step, place)
        if problem is None:
            flow.lane_of[step] = lane
            flow.place_in_lane[step] = index
        else:
            flow.problems.append(problem)
            _guess_branch(flow, lane.block, step if step in flow.steps else problem.suggestion)


def _branch_problem(flow: Flow, lane: Lane, step: str, place: Place) -> Problem | None:
    if step not in flow.steps:
        return _unknown_step(flow, step, place)
    name, there = quoted(step), flow.block_of(step)
    if there == lane.block:
        return Problem(place_text(place), "duplicate_branch", f"{name} is in this block already; a branch runs once")
    if _is(CONDITIONAL, flow.steps[step]):
        message = f"{name} is a conditional step; branches consist of agent steps and blocks"
        return Problem(place_text(place), "nested_conditional", message)
    if there is not None:
        message = f"{name} is a branch of block {quoted(there)} already; a step is in one block at most"
        return Problem(place_text(place), "step_in_two_blocks", message)
    return None


def _find_depths(flow: Flow, start: object) -> None:
    """See that no block lies within itself, or too deep; where one does, take it for a block of its own."""
    blocks = [step_id for step_id, step in flow.steps.items() if block_names(step) is not None]
    # That of the start first, so that loops close against the order of the run.
    within: dict[str, list[str]] = {step_id: [] for step_id in sorted(blocks, key=lambda step_id: step_id != start)}
    for step_id in within:
        if step_id in flow.lane_of:
            within[flow.lane_of[step_id].block].append(step_id)
    for loop in find_loops(within):
        message = f"a block cannot lie within itself: {loop}"
        flow.problems.append(Problem(place_text(_place(flow, loop.target)), "nested_block", message))
        _take_out(flow, loop.target)
    ahead = [(step_id, 1) for step_id in within if step_id not in flow.lane_of]
    while ahead:
        block, depth = ahead.pop()
        for inner in within[block]:
            if inner not in flow.lane_of:
                continue
            if depth == MAX_BLOCK_DEPTH:
                message = f"this block lies within {depth} others; blocks nest {MAX_BLOCK_DEPTH} deep at most"
                flow.problems.append(Problem(place_text(_place(flow, inner)), "nested_too_deep", message))
            if depth % MAX_BLOCK_DEPTH == 0:
                _take_out(flow, inner)
            ahead.append((inner, depth + 1))


def _place(flow: Flow, step_id: str) -> Place:
    lane = flow.lane_of[step_id]
    return (*lane.place, flow.place_in_lane[step_id]) if lane.place[-1] == "steps" else lane.place


def _take_out(flow: Flow, block: str) -> None:
    lane = flow.lane_of.pop(block)
    _guess_branch(flow, lane.block, block)


def _guess_branch(flow: Flow, block: str, branch: str | None) -> None:
    if branch is not None and branch not in flow.lane_of:
        # Both ways, so that whatever comes before or behind the block does so for the branch.
        flow.guesses += [(block, branch), (branch, block)]


# Edges


def _read_start(flow: Flow, document: Mapping[str, Any]) -> None:
    start = document.get(_START)
    if not isinstance(start, str):
        return
    problem = _target_problem(flow, start, (_START,))
    if problem is None:
        flow.start = start
        return
    flow.problems.append(problem)
    if problem.suggestion is not None:
        flow.start = flow.node_of(problem.suggestion)


def _read_edges(flow: Flow, step_id: str, step: Any) -> None:
    for name in _EDGES:
        target = step.get(name) if isinstance(step, dict) else _UNREADABLE
        if isinstance(target, str):
            _read_edge(flow, step_id, target, name)
        elif target is not None and step_id not in flow.lane_of:
            flow.blurred.add(step_id)


def _read_edge(flow: Flow, source: str, target: str, name: str) -> None:
    place: Place = ("steps", source, name)
    if name == "next_step" and _leads_along_its_lane(flow, source, target):
        return
    problem = _forbidden_edge(flow, source, place) or _target_problem(flow, target, place)
    if problem is None:
        edge = Edge(source, target, place)
        flow.edges.append(edge)
        flow.edges_from.setdefault(flow.node_of(source), []).append(edge)
        return
    flow.problems.append(problem)
    meant = target if target in flow.steps else problem.suggestion
    if meant is not None:
        flow.guesses.append((source, meant))


def _leads_along_its_lane(flow: Flow, source: str, target: str) -> bool:
    """Whether a step of a branch says itself which step of the branch comes next."""
    lane, there = flow.lane_of.get(source), flow.lane_of.get(target)
    return lane is not None and lane is there and flow.place_in_lane[target] == flow.place_in_lane[source] + 1


def _forbidden_edge(flow: Flow, source: str, place: Place) -> Problem | None:
    block = flow.block_of(source)
    if place[-1] != "next_step" or block is None:
        return None
    message = f"a branch has no next step: when all are done, block {quoted(block)} leads on"
    return Problem(place_text(place), "branch_with_next_step", message)


def _target_problem(flow: Flow, target: str, place: Place) -> Problem | None:
    if target not in flow.steps:
        return _unknown_step(flow, target, place)
    block = flow.block_of(target)
    if block is None:
        return None
    message = f"{quoted(target)} is a branch of block {quoted(block)} and runs only as part of it; lead to the block"
    return Problem(place_text(place), "branch_reached_directly", message, block)


def _unknown_step(flow: Flow, name: str, place: Place) -> Problem:
    return Problem(place_text(place), "unknown_step", f"there is no step {quoted(name)}", flow.names.nearest(name))


def _guess_from(flow: Flow, step_id: str, removed: list[Any]) -> None:
    """Take the steps that a removed field names for some that the author wanted to lead to."""
    names = chain.from_iterable(value if isinstance(value, list) else [value] for value in removed)
    flow.guesses.extend((step_id, name) for name in names if isinstance(name, str) and name in flow.steps)


# The graph as a whole


def _find_cycles(flow: Flow) -> None:
    successors = flow.successors(guessed=False)
    if flow.start is not None:
        successors = {flow.start: successors[flow.start], **successors}  # walked first, so loops close against the flow
    loops = {(loop.source, loop.target): loop for loop in find_loops(successors)}
    for edge in flow.edges:
        loop = loops.get((flow.node_of(edge.source), flow.node_of(edge.target)))
        if loop is not None:
            message = f"this closes a cycle, and the run might never end: {loop}"
            flow.problems.append(Problem(place_text(edge.place), "cycle", message))


def _read_ways(flow: Flow) -> None:
    """Lead the ends of a conditional's paths to where the run goes on behind it."""
    if flow.start is None:
        return
    found = ways(
        flow.start, {step_id: _crossing(flow, step_id) for step_id in flow.steps if step_id not in flow.lane_of}
    )
    for step_id, target in found.following.items():
        if target is not None:
            flow.guesses.append((step_id, target))
    for step_id, ends in found.uncertain.items():
        there = " or ".join(quoted(end) if end is not None else "the end of the run" for end in ends)
        message = (
            f"this step lies on paths that go on at different steps, {there}; give it a next_step, or let each path "
            "have a step of its own"
        )
        flow.problems.append(Problem(place_text(("steps", step_id)), "uncertain_next_step", message))


def _crossing(flow: Flow, step_id: str) -> Crossing:
    targets: dict[str, list[str]] = {name: [] for name in _EDGES}
    for edge in flow.edges_from.get(step_id, ()):
        targets[str(edge.place[-1])].append(edge.target)
    choices = (*targets["if_true_step"], *targets["if_false_step"])
    return Crossing(next(iter(targets["next_step"]), None), tuple(targets["on_failure"]), choices)


def _is(kind_of: str, step: Any) -> bool:
    return isinstance(step, dict) and step.get("type") == kind_of


def _read_reach(flow: Flow) -> None:
    successors = flow.successors(guessed=True)
    if flow.start is None:
        flow.reached = set(successors)
        return
    flow.reached = reached_from(flow.start, successors)
    if flow.reached & flow.blurred:
        return  # what is not reached may hang on an edge that could not be read
    for step_id in first_unreached(flow.reached, successors):
        message = "the run never gets here: nothing leads from the start step to it"
        flow.problems.append(Problem(place_text(("steps", step_id)), "unreachable_step", message))
