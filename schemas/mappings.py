"""The references in `input_mapping` and in conditions: whether each leads to a step that has run before."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schemas.display import cut, place_text, quoted
from schemas.draft import LOOP, Draft
from schemas.errors import Problem
from schemas.expressions import Expression, read_expression
from schemas.flow import Flow
from schemas.graph import preceding
from schemas.lanes import block_names, is_kind
from schemas.references import Part, PlacedReference, Template, read_template
from schemas.scope import LOOP_PARTS
from schemas.suggestions import nearest


@dataclass(frozen=True, slots=True)
class _Use:
    """A reference in the mapping of one step to an earlier one, as far as can be told without the graph."""

    user: str
    used: str
    placed: PlacedReference


def mapping_problems(draft: Draft, flow: Flow) -> list[Problem]:
    """Return what is wrong with the references of all steps."""
    problems: list[Problem] = []
    uses: list[_Use] = []
    for step_id, step in draft.steps.items():
        read = _read(step_id, step) if isinstance(step, dict) else None
        if read is None:
            continue
        problems.extend(read.problems)
        for placed in read.references:
            if placed.reference.step is None:
                if placed.reference.part in LOOP_PARTS and not _lies_in_loop(flow, step_id):
                    problems.append(_outside_of_loops(placed))
                continue
            use = _Use(step_id, placed.reference.step, placed)
            where = _meeting(flow, use)
            problem = _plain_problem(flow, use, where)
            if problem is not None:
                problems.append(problem)
            elif where is None:  # not in one block: the order of the whole run counts
                uses.append(use)
    problems.extend(_order_problems(flow, uses))
    return problems


def _read(step_id: str, step: Mapping[str, Any]) -> Template | Expression | None:
    mapping, condition, loop = step.get("input_mapping"), step.get("condition"), step.get("loop_config")
    if isinstance(loop, dict) and loop.get("collection"):
        return read_template(loop["collection"], ("steps", step_id, "loop_config", "collection"))
    if mapping and isinstance(mapping, dict):
        return read_template(mapping, ("steps", step_id, "input_mapping"))
    expression = condition.get("expression") if isinstance(condition, dict) else None
    if isinstance(expression, str) and expression:
        return read_expression(expression, ("steps", step_id, "condition", "expression"))
    return None


def _plain_problem(flow: Flow, use: _Use, where: tuple[str, str] | None) -> Problem | None:
    """Return what can be told without looking at the whole graph."""
    used = quoted(use.used)
    if use.used not in flow.steps:
        suggestion = flow.lanes.names.nearest(use.used)
        return _problem(use, "reference_to_unknown_step", f"there is no step {used}", suggestion)
    if use.used == use.user:
        return _problem(use, "reference_to_itself", "a step cannot refer to itself")
    if flow.lanes.is_torn_out(use.user) or flow.lanes.is_torn_out(use.used):
        return None
    if use.used in flow.lanes.chain(use.user):
        return _problem(
            use, "reference_to_own_block", f"block {used} is done only after all its branches, this one too"
        )
    if use.user in flow.lanes.chain(use.used):
        return _problem(use, "reference_to_later_step", f"{used} lies within this step, and runs after it has begun")
    entered = _loop_entered(flow, use)
    if entered is not None:
        message = f"{used} runs once for each item of loop {quoted(entered)}; outside of it, use what the loop comes to"
        return _problem(use, "reference_into_loop", message, f"${{{entered}.output.iterations}}")
    if where is not None:
        one, other = where
        if one == other:
            message = (
                f"{used} runs at the same time, in the same block {quoted(one)}; only steps behind the block can use it"
            )
            return _problem(use, "reference_between_siblings", message)
        if not flow.runs_before(other, one):
            return _problem(use, "reference_to_later_step", f"{used} does not run before this step in their branch")
    return _errors_problem(flow, use)


def _meeting(flow: Flow, use: _Use) -> tuple[str, str] | None:
    """Return where the ways outwards from both steps come into one branch, or else into one block; None: they do not.

    In one branch these are the two steps of it that hold the user and the used one; in one block it is that, twice.
    """
    lanes = flow.lanes
    around_used = {id(lanes.lane_of[step]): step for step in lanes.chain(use.used) if step in lanes.lane_of}
    blocks_of_used = set(lanes.chain(use.used))
    for step in lanes.chain(use.user):
        if step in blocks_of_used:
            return step, step
        lane = lanes.lane_of.get(step)
        if lane is not None and id(lane) in around_used:
            return step, around_used[id(lane)]
    return None


def _loop_entered(flow: Flow, use: _Use) -> str | None:
    """Return the loop that the used step lies in, and the user does not; the outermost, where there are several."""
    around_user = set(flow.lanes.loops_around(use.user))
    entered = [loop for loop in flow.lanes.loops_around(use.used) if loop not in around_user]
    return entered[-1] if entered else None


def _lies_in_loop(flow: Flow, step_id: str) -> bool:
    lanes = flow.lanes
    return next(lanes.loops_around(step_id), None) is not None or lanes.is_torn_out(step_id)


def _outside_of_loops(placed: PlacedReference) -> Problem:
    message = f"{cut(placed.reference.text)}: this step lies in no loop"
    return Problem(place_text(placed.place), "reference_outside_loop", message)


def _errors_problem(flow: Flow, use: _Use) -> Problem | None:
    reference = use.placed.reference
    if reference.part is not Part.ERRORS:
        return None
    branches = block_names(flow.steps[use.used])
    if is_kind(LOOP, flow.steps[use.used]):
        message = f"{quoted(use.used)} is a loop; its iterations tell their errors"
        return _problem(use, "reference_to_errors", message, "output.iterations")
    if branches is None:
        return _problem(use, "reference_to_errors", f"{quoted(use.used)} is no block; it has one error", "error")
    name = reference.path[0] if reference.path else None
    if name is None or name in branches or use.used in flow.blurred:
        return None
    return _problem(
        use,
        "reference_to_unknown_branch",
        f"block {quoted(use.used)} has no branch {quoted(str(name))}",
        nearest(str(name), tuple(branches)),
    )


def _order_problems(flow: Flow, uses: list[_Use]) -> Iterator[Problem]:
    """Yield a problem for each use of a step that comes before the user on no path from the start.

    Where a step cannot be reached at all, that is the problem. Where an edge could not be read, only a step that is
    known to come behind is too late.
    """
    placed = [(use, flow.lanes.node_of(use.used), flow.lanes.node_of(use.user)) for use in uses]
    placed = [(use, used, user) for use, used, user in placed if used in flow.reached and user in flow.reached]
    successors = flow.successors(guessed=True)
    before = preceding([(used, user) for _, used, user in placed], successors)
    late = [(use, used, user) for use, used, user in placed if (used, user) not in before]
    if flow.start is None or flow.reached & flow.blurred:
        behind = preceding([(user, used) for _, used, user in late], successors)
        late = [(use, used, user) for use, used, user in late if (user, used) in behind]
    for use, _, _ in late:
        message = f"{quoted(use.used)} does not run before {quoted(use.user)} on any path from the start"
        yield _problem(use, "reference_to_later_step", message)


def _problem(use: _Use, code: str, message: str, suggestion: str | None = None) -> Problem:
    text = cut(use.placed.reference.text)
    return Problem(place_text(use.placed.place), code, f"{text}: {message}", suggestion)
