"""The control flow of a workflow document: who leads to whom, and what is wrong with that.

A block and all that lies in its branches are one node, because the run enters and leaves them together. Edges are
`next_step`, `on_failure`, the `on_failure` of the steps of branches, which counts when the block itself names none, and
the two paths of a conditional step, whose ends lead to where the run goes on behind it (`schemas.paths`). A branch with
conditionals (`schemas.lanes`) has such a graph of its own.

An edge that cannot be followed gives one problem where it stands. It is then *guessed*: taken to where its author
probably wanted it, so that nothing behind it is reported as well. Loops are looked for among the sure edges only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, Final

from schemas.display import Place, place_text, quoted
from schemas.draft import Draft
from schemas.errors import Problem
from schemas.graph import Loop, find_loops, first_unreached, reached_from
from schemas.lanes import Lane, Lanes, read_lanes
from schemas.paths import Crossing, Ways, ways

_CHOICES: Final = ("if_true_step", "if_false_step")
_EDGES: Final = ("next_step", "on_failure", *_CHOICES)
_START: Final = "start_step"
_UNREADABLE: Final = object()


@dataclass(frozen=True, slots=True)
class Edge:
    """One field that leads from a step to another."""

    source: str
    target: str
    place: Place


@dataclass(slots=True)
class Flow:
    """What could be made of the document's edges."""

    steps: Mapping[str, Any]
    lanes: Lanes
    problems: list[Problem] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)  # the sure ones, without those within a lane
    edges_from: dict[str, list[Edge]] = field(default_factory=dict)  # the same, by node
    inner_edges: dict[str, list[Edge]] = field(default_factory=dict)  # those within a lane, by step
    guesses: list[tuple[str, str]] = field(default_factory=list)
    blurred: set[str] = field(default_factory=set)  # nodes with an edge that leads nobody knows where
    start: str | None = None
    reached: set[str] = field(default_factory=set)  # from the start; all nodes where there is no start

    def successors(self, *, guessed: bool) -> dict[str, list[str]]:
        """Return the graph, with the *guessed* edges or without them."""
        node_of, lane_of = self.lanes.node_of, self.lanes.lane_of
        ends: dict[str, dict[str, None]] = {step_id: {} for step_id in self.steps if step_id not in lane_of}
        sure = ((edge.source, edge.target) for edge in self.edges)
        for source, target in chain(sure, self.guesses if guessed else ()):
            ends[node_of(source)][node_of(target)] = None
        return {node: list(targets) for node, targets in ends.items()}

    def runs_before(self, one: str, other: str) -> bool:
        """Whether one step of a lane may have run when another one of it is reached."""
        lane, index_of = self.lanes.lane_of[one], self.lanes.index_of
        if not lane.paths:
            return index_of[one] < index_of[other]
        crossings = lane_crossings(self, lane)
        following = ways(next(iter(crossings)), crossings).following
        successors = {step_id: _ends(crossing, following.get(step_id)) for step_id, crossing in crossings.items()}
        return one != other and other in reached_from(one, successors)


def read_flow(draft: Draft) -> Flow:
    """Return the control flow of *draft* with all its problems."""
    lanes = read_lanes(draft.steps, draft.document.get(_START))
    flow = Flow(draft.steps, lanes, list(lanes.problems), guesses=list(lanes.guesses), blurred=set(lanes.blurred))
    _read_start(flow, draft.document)
    for step_id, step in draft.steps.items():
        _read_edges(flow, step_id, step)
        _guess_from(flow, step_id, draft.removed.get(step_id, []))
    _find_cycles(flow)
    for lane in lanes.with_paths.values():
        _read_lane(flow, lane)
    _read_ways(flow)
    _read_reach(flow)
    return flow


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
        flow.start = flow.lanes.node_of(problem.suggestion)


def _read_edges(flow: Flow, step_id: str, step: Any) -> None:
    for name in _EDGES:
        target = step.get(name) if isinstance(step, dict) else _UNREADABLE
        if isinstance(target, str):
            _read_edge(flow, step_id, target, name)
        elif target is not None and step_id not in flow.lanes.lane_of:
            flow.blurred.add(step_id)


def _read_edge(flow: Flow, source: str, target: str, name: str) -> None:
    place: Place = ("steps", source, name)
    lane = flow.lanes.lane_of.get(source)
    if source in flow.lanes.torn_out and target in flow.steps:
        flow.guesses.append((source, target))  # where it leads was right in the branch that it was taken out of
        return
    if lane is not None and name != "on_failure":
        _read_inner_edge(flow, lane, Edge(source, target, place))
        return
    problem = _target_problem(flow, target, place)
    if problem is not None and lane is not None and target in flow.lanes.lane_of:
        problem = _handler_problem(flow, source, target, place) or problem
    if problem is None:
        edge = Edge(source, target, place)
        flow.edges.append(edge)
        flow.edges_from.setdefault(flow.lanes.node_of(source), []).append(edge)
        return
    _note(flow, problem, source, target)


def _read_inner_edge(flow: Flow, lane: Lane, edge: Edge) -> None:
    lanes, name = flow.lanes, edge.place[-1]
    if edge.target in lanes.torn_out:
        return  # said already
    is_listed = edge.source in lanes.index_of
    if name == "next_step" and is_listed:
        if not _is_next_in_list(flow, lane, edge):
            message = f"a branch has no next step: when all are done, block {quoted(lane.block)} leads on"
            _note(flow, Problem(place_text(edge.place), "branch_with_next_step", message), edge.source, edge.target)
        return
    problem = _target_problem(flow, edge.target, edge.place, within=lane)
    if problem is None and name in _CHOICES and edge.target in lanes.index_of:
        message = (
            f"{quoted(edge.target)} stands in the list of this branch, and so runs whatever the condition says; take "
            "it out of the list, for the conditional step leads to it"
        )
        problem = Problem(place_text(edge.place), "path_step_in_branch", message)
    if problem is not None:
        _note(flow, problem, edge.source, edge.target)
        return
    flow.inner_edges.setdefault(edge.source, []).append(edge)


def _handler_problem(flow: Flow, source: str, target: str, place: Place) -> Problem | None:
    """Return what is wrong with a handler that lies in the very block that it is to follow, if it does."""
    outermost = flow.lanes.node_of(source)
    if flow.lanes.node_of(target) != outermost:
        return None
    message = (
        f"{quoted(target)} lies in block {quoted(outermost)}, as this step does; the run goes on at the handler when "
        "that block has failed, so it lies outside"
    )
    return Problem(place_text(place), "branch_reached_directly", message)


def _is_next_in_list(flow: Flow, lane: Lane, edge: Edge) -> bool:
    """Whether a step of a branch says itself which step of the branch comes next."""
    index_of = flow.lanes.index_of
    in_lane = flow.lanes.lane_of.get(edge.target) is lane
    return in_lane and index_of.get(edge.target) == index_of[edge.source] + 1


def _note(flow: Flow, problem: Problem, source: str, target: str) -> None:
    flow.problems.append(problem)
    meant = target if target in flow.steps else problem.suggestion
    if meant is not None:
        flow.guesses.append((source, meant))


def _target_problem(flow: Flow, target: str, place: Place, within: Lane | None = None) -> Problem | None:
    if target not in flow.steps:
        return flow.lanes.unknown_step(target, place)
    lane = flow.lanes.lane_of.get(target)
    if lane is within:
        return None
    if lane is None or (within is not None and within not in map(flow.lanes.lane_of.get, flow.lanes.chain(target))):
        message = f"{quoted(target)} does not lie in this branch; a path within a branch stays in it"
        return Problem(place_text(place), "leads_out_of_branch", message)
    block = lane.block
    message = f"{quoted(target)} is a branch of block {quoted(block)} and runs only as part of it; lead to the block"
    return Problem(place_text(place), "branch_reached_directly", message, block)


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
        loop = loops.get((flow.lanes.node_of(edge.source), flow.lanes.node_of(edge.target)))
        if loop is not None:
            flow.problems.append(_cycle(edge.place, loop))


def _cycle(place: Place, loop: Loop) -> Problem:
    return Problem(place_text(place), "cycle", f"this closes a cycle, and the run might never end: {loop}")


def _read_lane(flow: Flow, lane: Lane) -> None:
    """See that the paths within a branch come to an end, and where they go on."""
    crossings = lane_crossings(flow, lane)
    if not crossings:
        return
    loops = {(loop.source, loop.target): loop for loop in find_loops({one: _ends(c) for one, c in crossings.items()})}
    for edge in chain.from_iterable(flow.inner_edges.get(step_id, ()) for step_id in crossings):
        loop = loops.get((edge.source, edge.target))
        if loop is not None:
            flow.problems.append(_cycle(edge.place, loop))
    if not loops:
        _note_uncertain(flow, ways(next(iter(crossings)), crossings))


def lane_crossings(flow: Flow, lane: Lane) -> dict[str, Crossing]:
    """Return how the steps of a lane lead to each other, the first one first."""
    lane_of = flow.lanes.lane_of
    listed = [step for step in lane.listed if isinstance(step, str) and lane_of.get(step) is lane]
    following = dict(pairwise(listed))
    found: dict[str, Crossing] = {}
    for step_id in (*listed, *(step for step in lane.paths if lane_of.get(step) is lane)):
        targets = {edge.place[-1]: edge.target for edge in flow.inner_edges.get(step_id, ())}
        next_step = following.get(step_id, targets.get("next_step"))
        found[step_id] = Crossing(next_step, (), tuple(targets[name] for name in _CHOICES if name in targets))
    return found


def _ends(crossing: Crossing, following: str | None = None) -> list[str]:
    next_step = crossing.next_step or following
    return [*([next_step] if next_step is not None else ()), *crossing.choices]


def _read_ways(flow: Flow) -> None:
    """Lead the ends of a conditional's paths to where the run goes on behind it."""
    if flow.start is None:
        return
    nodes = [step_id for step_id in flow.steps if step_id not in flow.lanes.lane_of]
    found = ways(flow.start, {step_id: _crossing(flow, step_id) for step_id in nodes})
    for step_id, target in found.following.items():
        if target is not None:
            flow.guesses.append((step_id, target))
    _note_uncertain(flow, found)


def _note_uncertain(flow: Flow, found: Ways) -> None:
    for step_id, ends in found.uncertain.items():
        end_of = "the end of the branch" if step_id in flow.lanes.lane_of else "the end of the run"
        there = " or ".join(quoted(end) if end is not None else end_of for end in ends)
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
