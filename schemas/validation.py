"""Whether a workflow document is right: all problems at once, each with its place.

The document is read leniently (`schemas.draft`), its shape is checked by pydantic (`schemas.workflow`), its graph by
`schemas.flow` and its references by `schemas.mappings`. One broken step does not hide what is wrong with the rest.
"""

from collections.abc import Iterator
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from schemas.display import Place, kind, place_text, quoted
from schemas.draft import CONDITIONAL, FORK_JOIN, LOOP, SUB_WORKFLOW, Draft, read_draft
from schemas.errors import JsonRefused, Problem, WorkflowInvalid
from schemas.flow import read_flow
from schemas.json_text import check_json
from schemas.lanes import block_names
from schemas.mappings import mapping_problems
from schemas.references import read_template
from schemas.shapes import shape_problem
from schemas.statuses import JoinPolicy
from schemas.workflow import Workflow

_STEP_TAG: Final = 2  # where pydantic puts the step's type into a place: steps, id, type, field
_STEP_FIELD: Final = 3
_POINTERS: Final = frozenset(
    {"start_step", "next_step", "on_failure", "if_true_step", "if_false_step", "parallel_steps", "steps", "loop_body"}
)


def validate_workflow(document: object) -> list[Problem]:
    """Return all that is wrong with *document*; nothing means that `parse_workflow` takes it."""
    return _examine(document)[1]


def parse_workflow(document: object) -> Workflow:
    """Return *document* as a workflow, with its defaults filled in.

    Raises:
        WorkflowInvalid: It has problems; all of them are listed.
    """
    workflow, problems = _examine(document)
    if workflow is None or problems:
        raise WorkflowInvalid(problems)
    return workflow


def _examine(document: object) -> tuple[Workflow | None, list[Problem]]:
    if not isinstance(document, dict):
        return None, [Problem("", "not_an_object", f"a workflow document is an object, and this is {kind(document)}")]
    try:
        check_json(document)
    except JsonRefused as error:
        return None, [error.problem]
    draft = read_draft(document)
    workflow, shape = _check_shape(draft)
    problems = [*draft.problems, *shape]
    if draft.steps:
        flow = read_flow(draft)
        problems += [*flow.problems, *mapping_problems(draft, flow)]
    return workflow, problems


def _check_shape(draft: Draft) -> tuple[Workflow | None, list[Problem]]:
    try:
        return Workflow.model_validate(draft.document), list(_inconsistencies(draft))
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems = [_worded(detail) for detail in details if not _is_echo(detail, draft)]
        return None, [*problems, *_inconsistencies(draft)]


def _worded(detail: ErrorDetails) -> Problem:
    loc = detail["loc"]
    if loc[0] == "steps" and len(loc) > _STEP_FIELD:
        loc = loc[:_STEP_TAG] + loc[_STEP_FIELD:]
    problem = shape_problem({**detail, "loc": loc})
    match loc:
        case ("steps", _, "parallel_steps") | ("steps", _, "fork_join_config", "branches", *_) if (
            problem.code == "empty"
        ):
            return Problem(problem.place, "empty_block", "a block needs at least one branch")
        case ("steps", _, "loop_config", "loop_body") if problem.code == "empty":
            return Problem(problem.place, "empty_block", "a loop needs at least one step in its body")
        case ("steps",) if problem.code == "empty":
            return Problem(problem.place, "no_steps", "a workflow needs at least one step")
        case _:
            return problem


def _is_echo(detail: ErrorDetails, draft: Draft) -> bool:
    """Tell whether another problem says the same already."""
    match detail["loc"]:
        case ("workflow_id",):
            # It was filled in from the name, or could not be.
            return draft.document.get("workflow_id") == draft.document.get("name")
        case ("steps", str(), _, "id"):
            return detail["type"] == "bad_name"  # said of the key, or it differs from the key
        case ("steps", str(key), _, _) if detail["type"] == "missing":
            return key in draft.guessed_types
        case ("start_step",) | ("steps", str(), _, *_) as loc:
            # A name that no step can have is an unknown step.
            return detail["type"] == "string_pattern_mismatch" and not _POINTERS.isdisjoint(loc)
        case _:
            return False


def _inconsistencies(draft: Draft) -> Iterator[Problem]:
    yield from _mismatched_ids(draft)
    yield from _retried_twice(draft)
    yield from _impossible_joins(draft)
    yield from _pathless_conditions(draft)
    yield from _impossible_collections(draft)
    yield from _runs_of_themselves(draft)


def _mismatched_ids(draft: Draft) -> Iterator[Problem]:
    for key, step in draft.steps.items():
        given = step["id"] if isinstance(step, dict) else key
        if given != key and isinstance(given, str):
            message = "the id is not the key under which the step stands; it may be left out"
            yield Problem(place_text(("steps", key, "id")), "id_differs_from_key", message, key)


def _retried_twice(draft: Draft) -> Iterator[Problem]:
    for key, step in draft.steps.items():
        if isinstance(step, dict) and step.get("retry") is not None and step.get("retry_strategy") is not None:
            message = 'this is the older form of "retry", which the step has too; give one of the two'
            yield Problem(place_text(("steps", key, "retry_strategy")), "inconsistent", message)


def _pathless_conditions(draft: Draft) -> Iterator[Problem]:
    for key, step in draft.steps.items():
        if isinstance(step, dict) and step.get("type") == CONDITIONAL:
            paths = [step.get("if_true_step"), step.get("if_false_step")]
            if paths == [None, None]:
                message = "a conditional step has a path, or two: give if_true_step or if_false_step"
                yield Problem(place_text(("steps", key, "if_true_step")), "missing_field", message)


def _impossible_collections(draft: Draft) -> Iterator[Problem]:
    for key, step in draft.steps.items():
        config = step.get("loop_config") if isinstance(step, dict) and step.get("type") == LOOP else None
        collection = config.get("collection") if isinstance(config, dict) else None
        if not isinstance(collection, str):
            continue
        template = read_template(collection)
        if not template.problems and not template.is_reference:
            message = "a collection is an array, or just one reference to an array, such as ${s.output.items}"
            yield Problem(place_text(("steps", key, "loop_config", "collection")), "not_a_collection", message)


def _runs_of_themselves(draft: Draft) -> Iterator[Problem]:
    own = draft.document.get("workflow_id")
    for key, step in draft.steps.items():
        if isinstance(step, dict) and step.get("type") == SUB_WORKFLOW and own == step.get("workflow_id") is not None:
            message = f"this is workflow {quoted(str(own))} itself, and its runs would never end"
            yield Problem(place_text(("steps", key, "workflow_id")), "sub_workflow_cycle", message)


def _impossible_joins(draft: Draft) -> Iterator[Problem]:
    for key, step in draft.steps.items():
        branches = block_names(step)
        if branches is None:
            continue
        config = step.get("fork_join_config") if step["type"] == FORK_JOIN else step
        if not isinstance(config, dict):
            continue
        place: Place = ("steps", key, *(("fork_join_config",) if config is not step else ()), "n_required")
        needed, policy = config.get("n_required"), config.get("join_policy", JoinPolicy.ALL)
        if needed is None and policy == JoinPolicy.N_OF_M:
            message = 'the join policy "n_of_m" needs the number of branches that must complete'
            yield Problem(place_text(place), "missing_field", message)
        elif needed is not None and policy in set(JoinPolicy) - {JoinPolicy.N_OF_M}:
            message = f'only the join policy "n_of_m" has this, and the block\'s is {quoted(policy)}'
            yield Problem(place_text(place), "inconsistent", message)
        elif isinstance(needed, int) and branches and needed > len(branches):
            message = f"{needed} branches must complete, and the block has {len(branches)}"
            yield Problem(place_text(place), "out_of_range", message)
