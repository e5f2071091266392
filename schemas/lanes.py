"""The branches of blocks and loops, as the document has them: which step lies in which, and what is wrong with that.

A lane is a branch of a block, or the body of a loop. It lists its steps in their order. A conditional step among them
leads into paths, and the steps on those lie in the lane as well, without being listed.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from schemas.display import Place, place_text, quoted
from schemas.draft import CONDITIONAL, FORK_JOIN, LOOP, PARALLEL
from schemas.errors import Problem
from schemas.graph import find_loops
from schemas.suggestions import NameIndex

MAX_BLOCK_DEPTH: Final = 8  # blocks within blocks
_CHOICES: Final = ("if_true_step", "if_false_step")


@dataclass(slots=True, eq=False)
class Lane:
    """A branch or a body: whose it is, where its list stands, and the names in that as they are written."""

    block: str
    place: Place
    listed: Sequence[Any]
    is_alone: bool  # the name at `place` is all that there is
    paths: dict[str, Place] = field(
        default_factory=dict
    )  # steps on the paths of its conditionals, where they are named

    def place_of(self, index: int) -> Place:
        """Return where a name of the list stands."""
        return self.place if self.is_alone else (*self.place, index)


@dataclass(slots=True)
class Lanes:
    """What could be made of all blocks of a document."""

    steps: Mapping[str, Any]
    names: NameIndex
    problems: list[Problem] = field(default_factory=list)
    lane_of: dict[str, Lane] = field(default_factory=dict)  # by step
    index_of: dict[str, int] = field(default_factory=dict)  # of steps that are listed in their lane
    with_paths: dict[int, Lane] = field(default_factory=dict)  # those that hold conditionals, by identity
    guesses: list[tuple[str, str]] = field(default_factory=list)  # edges that the author probably meant
    blurred: set[str] = field(default_factory=set)  # blocks that could not be read as a whole
    torn_out: set[str] = field(default_factory=set)  # blocks that lay too deep, and are taken for blocks of their own

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

    def loops_around(self, step_id: str) -> Iterator[str]:
        """Yield the loops in whose bodies the step lies, the innermost first."""
        _, *around = self.chain(step_id)
        return (block for block in around if is_kind(LOOP, self.steps[block]))

    def is_torn_out(self, step_id: str) -> bool:
        """Whether the step lay too deep, so that nothing is known of what lies around it."""
        return bool(self.torn_out) and self.node_of(step_id) in self.torn_out

    def place_of(self, step_id: str) -> Place:
        """Return where the lane of a step names it."""
        lane = self.lane_of[step_id]
        return lane.paths.get(step_id) or lane.place_of(self.index_of[step_id])

    def unknown_step(self, name: str, place: Place) -> Problem:
        """Return the problem of a name that no step has."""
        return Problem(place_text(place), "unknown_step", f"there is no step {quoted(name)}", self.names.nearest(name))


def is_kind(kind_of: str, step: Any) -> bool:
    """Whether *step* is of this type, as far as it can be read."""
    return isinstance(step, dict) and step.get("type") == kind_of


def block_names(step: Any) -> list[str] | None:
    """Return the names of a block's branches as far as they can be read; None where *step* has no named branches."""
    if is_kind(PARALLEL, step):
        branches = step.get("parallel_steps")
        return [name for name in branches if isinstance(name, str)] if isinstance(branches, list | tuple) else []
    if is_kind(FORK_JOIN, step):
        branches = _within(step, "fork_join_config", "branches")
        return list(branches) if isinstance(branches, dict) else []
    return None


def read_lanes(steps: Mapping[str, Any], start: object) -> Lanes:
    """Return the lanes of a document's *steps*, of which the run begins with *start*."""
    lanes = Lanes(steps, NameIndex(steps))
    for step_id, step in steps.items():
        for lane in _lanes_of(lanes, step_id, step):
            _read_listed(lanes, lane)
    outside = _reached_outside(lanes, start) if lanes.with_paths else frozenset()
    for lane in lanes.with_paths.values():
        _read_paths(lanes, lane, outside)
    _find_depths(lanes, start)
    return lanes


def _within(step: Mapping[str, Any], *names: str) -> Any:
    value: Any = step
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _lanes_of(lanes: Lanes, block: str, step: Any) -> Iterator[Lane]:
    place: Place = ("steps", block)
    if is_kind(PARALLEL, step):
        place = (*place, "parallel_steps")
        for number, branch in enumerate(_listed(lanes, block, step.get("parallel_steps"))):
            yield Lane(block, (*place, number), [branch], is_alone=True)
    elif is_kind(FORK_JOIN, step):
        place = (*place, "fork_join_config", "branches")
        branches = _within(step, "fork_join_config", "branches")
        if not isinstance(branches, dict):
            lanes.blurred.add(block)
            return
        for name, branch in branches.items():
            listed = branch.get("steps") if isinstance(branch, dict) else None
            yield Lane(block, (*place, name, "steps"), _listed(lanes, block, listed), is_alone=False)
    elif is_kind(LOOP, step):
        listed = _within(step, "loop_config", "loop_body")
        yield Lane(block, (*place, "loop_config", "loop_body"), _listed(lanes, block, listed), is_alone=False)


def _listed(lanes: Lanes, block: str, names: Any) -> Sequence[Any]:
    if isinstance(names, list | tuple) and names:
        return names
    lanes.blurred.add(block)
    return ()


def _read_listed(lanes: Lanes, lane: Lane) -> None:
    for index, step in enumerate(lane.listed):
        if not isinstance(step, str):
            lanes.blurred.add(lane.block)
            continue
        problem = _branch_problem(lanes, lane, step, lane.place_of(index))
        if problem is None:
            lanes.lane_of[step] = lane
            lanes.index_of[step] = index
            if is_kind(CONDITIONAL, lanes.steps[step]):
                lanes.with_paths[id(lane)] = lane
        else:
            lanes.problems.append(problem)
            _guess_branch(lanes, lane.block, step if step in lanes.steps else problem.suggestion)


def _branch_problem(lanes: Lanes, lane: Lane, step: str, place: Place) -> Problem | None:
    if step not in lanes.steps:
        return lanes.unknown_step(step, place)
    name, there = quoted(step), lanes.block_of(step)
    if there == lane.block:
        return Problem(place_text(place), "duplicate_branch", f"{name} is in this block already; a branch runs once")
    if there is not None:
        message = f"{name} is a branch of block {quoted(there)} already; a step is in one block at most"
        return Problem(place_text(place), "step_in_two_blocks", message)
    return None


def _reached_outside(lanes: Lanes, start: object) -> Set[str]:
    """Return the steps that the run comes to outside of all branches; a path that leads there leads out of its own."""
    handlers = (_names(lanes, step_id, ("on_failure",)) for step_id in lanes.lane_of)
    reached = set(chain.from_iterable(handlers))
    if isinstance(start, str) and start in lanes.steps:
        reached.add(start)
    ahead = list(reached)
    while ahead:
        for target in _names(lanes, ahead.pop(), ("next_step", "on_failure", *_CHOICES)):
            if target not in reached and target not in lanes.lane_of:
                reached.add(target)
                ahead.append(target)
    return reached


def _names(lanes: Lanes, step_id: str, fields: Sequence[str]) -> Iterator[str]:
    """Yield the steps that these fields of a step name."""
    step = lanes.steps[step_id]
    targets = (step.get(name) if isinstance(step, dict) else None for name in fields)
    return (target for target in targets if isinstance(target, str) and target in lanes.steps)


def _read_paths(lanes: Lanes, lane: Lane, outside: Set[str]) -> None:
    """Take the steps into the lane that its conditionals lead to; whoever leads elsewhere is told so with the edges."""
    ahead = [step for step in lane.listed if lanes.lane_of.get(step) is lane]
    while ahead:
        step_id = ahead.pop()
        step = lanes.steps[step_id]
        names = _CHOICES if is_kind(CONDITIONAL, step) else ()
        for name in (*names, "next_step") if step_id in lane.paths else names:
            target = step.get(name) if isinstance(step, dict) else None
            if not isinstance(target, str) or target not in lanes.steps or target in outside:
                continue
            if target not in lanes.lane_of:
                lanes.lane_of[target] = lane
                lane.paths[target] = ("steps", step_id, name)
                ahead.append(target)


def _find_depths(lanes: Lanes, start: object) -> None:
    """See that no block lies within itself, or too deep; where one does, take it for a block of its own."""
    blocks = [step_id for step_id, step in lanes.steps.items() if _is_block(step)]
    # That of the start first, so that loops close against the order of the run.
    within: dict[str, list[str]] = {step_id: [] for step_id in sorted(blocks, key=lambda step_id: step_id != start)}
    for step_id in within:
        if step_id in lanes.lane_of:
            within[lanes.lane_of[step_id].block].append(step_id)
    for loop in find_loops(within):
        message = f"a block cannot lie within itself: {loop}"
        lanes.problems.append(Problem(place_text(lanes.place_of(loop.target)), "nested_block", message))
        _take_out(lanes, loop.target)
    ahead = [(step_id, 1) for step_id in within if step_id not in lanes.lane_of]
    while ahead:
        block, depth = ahead.pop()
        for inner in within[block]:
            if inner not in lanes.lane_of:
                continue
            if depth == MAX_BLOCK_DEPTH:
                message = f"this block lies within {depth} others; blocks nest {MAX_BLOCK_DEPTH} deep at most"
                lanes.problems.append(Problem(place_text(lanes.place_of(inner)), "nested_too_deep", message))
            if depth % MAX_BLOCK_DEPTH == 0:
                _take_out(lanes, inner)
                lanes.torn_out.add(inner)
            ahead.append((inner, depth + 1))


def _is_block(step: Any) -> bool:
    return isinstance(step, dict) and step.get("type") in {PARALLEL, FORK_JOIN, LOOP}


def _take_out(lanes: Lanes, block: str) -> None:
    lane = lanes.lane_of.pop(block)
    _guess_branch(lanes, lane.block, block)


def _guess_branch(lanes: Lanes, block: str, branch: str | None) -> None:
    if branch is None:
        lanes.blurred.add(block)
    elif branch not in lanes.lane_of:
        # Both ways, so that whatever comes before or behind the block does so for the branch.
        lanes.guesses += [(block, branch), (branch, block)]
