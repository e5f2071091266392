"""The control flow of a workflow document: who leads to whom, and what is wrong with that.

A block and its branches are one node, because the run enters and leaves them together. Edges are `next_step`,
`on_failure`, and the `on_failure` of a block's branches, which counts when the block itself names none.

An edge that cannot be followed gives one problem where it stands. It is then *guessed*: taken to where its author
probably wanted it, so that nothing behind it is reported as well. Loops are looked for among the sure edges only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from schemas.display import Place, place_text, quoted
from schemas.draft import PARALLEL, Draft
from schemas.errors import Problem
from schemas.graph import find_loops, first_unreached, reached_from
from schemas.suggestions import NameIndex

_EDGES: Final = ("next_step", "on_failure")
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
    names: NameIndex
    problems: list[Problem] = field(default_factory=list)
    block_of: dict[str, str] = field(default_factory=dict)  # by branch
    edges: list[Edge] = field(default_factory=list)  # the sure ones
    guesses: list[tuple[str, str]] = field(default_factory=list)
    blurred: set[str] = field(default_factory=set)  # nodes with an edge that leads nobody knows where
    start: str | None = None
    reached: set[str] = field(default_factory=set)  # from the start; all nodes where there is no start

    def node_of(self, step_id: str) -> str:
        """Return the block of a branch, or the step itself."""
        return self.block_of.get(step_id, step_id)

    def successors(self, *, guessed: bool) -> dict[str, list[str]]:
        """Return the graph, with the *guessed* edges or without them."""
        ends: dict[str, dict[str, None]] = {step_id: {} for step_id in self.steps if step_id not in self.block_of}
        sure = ((edge.source, edge.target) for edge in self.edges)
        for source, target in chain(sure, self.guesses if guessed else ()):
            ends[self.node_of(source)][self.node_of(target)] = None
        return {node: list(targets) for node, targets in ends.items()}


def read_flow(draft: Draft) -> Flow:
    """Return the control flow of *draft* with all its problems."""
    flow = Flow(draft.steps, NameIndex(draft.steps))
    for step_id, step in draft.steps.items():
        if _is_block(step):
            _read_branches(flow, step_id, step.get("parallel_steps"))
    _read_start(flow, draft.document)
    for step_id, step in draft.steps.items():
        _read_edges(flow, step_id, step)
        _guess_from(flow, step_id, draft.removed.get(step_id, []))
    _find_cycles(flow)
    _read_reach(flow)
    return flow


def _is_block(step: Any) -> bool:
    return isinstance(step, dict) and step.get("type") == PARALLEL


# Blocks and their branches


def _read_branches(flow: Flow, block: str, branches: Any) -> None:
    if not isinstance(branches, list | tuple):
        flow.blurred.add(block)
        return
    seen: set[str] = set()
    for index, branch in enumerate(branches):
        if not isinstance(branch, str):
            flow.blurred.add(block)
            continue
        place = ("steps", block, "parallel_steps", index)
        problem = _branch_problem(flow, block, branch, place, repeated=branch in seen)
        if problem is None:
            flow.block_of[branch] = block
        else:
            flow.problems.append(problem)
            _guess_branch(flow, block, branch if branch in flow.steps else problem.suggestion)
        seen.add(branch)


def _branch_problem(flow: Flow, block: str, branch: str, place: Place, *, repeated: bool) -> Problem | None:
    if branch not in flow.steps:
        return _unknown_step(flow, branch, place)
    name = quoted(branch)
    if repeated:
        return Problem(place_text(place), "duplicate_branch", f"{name} is in this block already; a branch runs once")
    if branch == block:
        return Problem(place_text(place), "nested_block", "a block cannot be its own branch")
    if _is_block(flow.steps[branch]):
        message = f"{name} is a parallel step; blocks within blocks are not supported, so branches are agent steps"
        return Problem(place_text(place), "nested_block", message)
    if branch in flow.block_of:
        message = f"{name} is a branch of block {quoted(flow.block_of[branch])} already; a step is in one block at most"
        return Problem(place_text(place), "step_in_two_blocks", message)
    return None


def _guess_branch(flow: Flow, block: str, branch: str | None) -> None:
    if branch is not None and branch not in flow.block_of:
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
        elif target is not None and step_id not in flow.block_of:
            flow.blurred.add(step_id)


def _read_edge(flow: Flow, source: str, target: str, name: str) -> None:
    place: Place = ("steps", source, name)
    problem = _forbidden_edge(flow, source, place) or _target_problem(flow, target, place)
    if problem is None:
        flow.edges.append(Edge(source, target, place))
        return
    flow.problems.append(problem)
    meant = target if target in flow.steps else problem.suggestion
    if meant is not None:
        flow.guesses.append((source, meant))


def _forbidden_edge(flow: Flow, source: str, place: Place) -> Problem | None:
    if place[-1] != "next_step" or source not in flow.block_of:
        return None
    message = f"a branch has no next step: when all are done, block {quoted(flow.block_of[source])} leads on"
    return Problem(place_text(place), "branch_with_next_step", message)


def _target_problem(flow: Flow, target: str, place: Place) -> Problem | None:
    if target not in flow.steps:
        return _unknown_step(flow, target, place)
    block = flow.block_of.get(target)
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
