"""A workflow document as its author probably meant it.

One mistake should give one problem. So before shape and graph are checked, defaults are filled in, misspelt fields are
put where they belong, unknown ones are taken out, and each such repair is noted as a problem.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from schemas.display import Place, kind, listed, place_text, quoted
from schemas.errors import Problem
from schemas.suggestions import nearest
from schemas.workflow import (
    AgentStep,
    Condition,
    ConditionalStep,
    ForkBranch,
    ForkJoinConfig,
    ForkJoinStep,
    LoopConfig,
    LoopStep,
    ParallelStep,
    Retry,
    RetryStrategy,
    SubWorkflowStep,
    Workflow,
)

AGENT: Final = "agent"
SUB_WORKFLOW: Final = "sub_workflow"
PARALLEL: Final = "parallel"
FORK_JOIN: Final = "fork_join"
LOOP: Final = "loop"
CONDITIONAL: Final = "conditional"


def _fields(of: type) -> tuple[str, ...]:
    return tuple(one.name for one in dataclasses.fields(of))


_FIELDS: Final = {
    AGENT: _fields(AgentStep),
    SUB_WORKFLOW: _fields(SubWorkflowStep),
    PARALLEL: _fields(ParallelStep),
    FORK_JOIN: _fields(ForkJoinStep),
    LOOP: _fields(LoopStep),
    CONDITIONAL: _fields(ConditionalStep),
}
_STEP_FIELDS: Final = tuple(dict.fromkeys(name for names in _FIELDS.values() for name in names))
_FOREIGN_TO: Final[Mapping[str, frozenset[str]]] = {
    kind_of: frozenset(_STEP_FIELDS) - frozenset(names) for kind_of, names in _FIELDS.items()
}
_CALLED: Final = {
    AGENT: "an agent step",
    SUB_WORKFLOW: "a sub_workflow step",
    PARALLEL: "a parallel step",
    FORK_JOIN: "a fork_join step",
    LOOP: "a loop step",
    CONDITIONAL: "a conditional step",
}
# The field by which a step without a type shows what it is.
_MARKS: Final = {
    SUB_WORKFLOW: "workflow_id",
    PARALLEL: "parallel_steps",
    FORK_JOIN: "fork_join_config",
    LOOP: "loop_config",
    CONDITIONAL: "condition",
}
_nearest: Final = lru_cache(maxsize=1000)(nearest)  # the same mistake tends to be in every step
# Fields of a step that hold an object with fields of its own.
_OPTIONS: Final = {
    "retry": _fields(Retry),
    "retry_strategy": _fields(RetryStrategy),
    "fork_join_config": _fields(ForkJoinConfig),
    "loop_config": _fields(LoopConfig),
    "condition": _fields(Condition),
}
_BRANCH_FIELDS: Final = _fields(ForkBranch)
# The option that holds the others of such a step; authors forget it.
_CONFIG_OF: Final = {FORK_JOIN: "fork_join_config", LOOP: "loop_config"}
_WORKFLOW_FIELDS: Final = tuple(Workflow.model_fields)


@dataclass(slots=True)
class Draft:
    """What was read, and what had to be repaired."""

    document: dict[str, Any] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    removed: dict[str, list[Any]] = field(default_factory=dict)  # by step: values of fields that it cannot have
    guessed_types: set[str] = field(default_factory=set)  # steps whose type could not be read

    @property
    def steps(self) -> Mapping[str, Any]:
        """The steps by id; a value that is no object stands as it was given."""
        steps = self.document.get("steps")
        return steps if isinstance(steps, dict) else {}


def read_draft(document: Mapping[str, Any]) -> Draft:
    """Return *document* with its defaults filled in and its misspellings put right."""
    draft = Draft()
    fields, _ = _spelled(draft, document, _WORKFLOW_FIELDS, ())
    if "name" in fields:
        fields.setdefault("workflow_id", fields["name"])
    if isinstance(fields.get("steps"), dict):
        fields["steps"] = {
            key: _read_step(draft, key, step) if isinstance(step, dict) else step
            for key, step in fields["steps"].items()
        }
    draft.document = fields
    return draft


def _read_step(draft: Draft, key: str, step: Mapping[str, Any]) -> dict[str, Any]:
    place: Place = ("steps", key)
    fields, removed = _spelled(draft, _with_options_in_place(draft, step, place), _STEP_FIELDS, place)
    fields.setdefault("id", key)
    fields["type"] = _read_type(draft, key, fields)
    for name in [name for name in fields if name in _FOREIGN_TO[fields["type"]]]:
        owners = " or ".join(_CALLED[kind_of] for kind_of, names in _FIELDS.items() if name in names)
        message = f"only {owners} has the field {quoted(name)}"
        draft.problems.append(Problem(place_text((*place, name)), "unknown_field", message))
        removed.append(fields.pop(name))
    for name, known in _OPTIONS.items():
        if isinstance(fields.get(name), dict):
            fields[name], _ = _spelled(draft, fields[name], known, (*place, name))
    _read_branches(draft, fields, place)
    if removed:
        draft.removed[key] = removed
    return fields


def _with_options_in_place(draft: Draft, step: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
    """Return *step* with what stands beside its configuration, and belongs into it, put there."""
    kind_of = step.get("type")
    name = _CONFIG_OF.get(kind_of) if isinstance(kind_of, str) else None
    config = step.get(name, {}) if name is not None else None
    if name is None or not isinstance(config, dict):
        return step
    options = {option: value for option, value in step.items() if option in _OPTIONS[name]}
    misplaced = {option: value for option, value in options.items() if option not in _FIELDS[str(kind_of)]}
    if not misplaced:
        return step
    for option in misplaced:
        message = f"{_CALLED[str(kind_of)]} has the field {quoted(option)} in its {quoted(name)}"
        draft.problems.append(Problem(place_text((*place, option)), "unknown_field", message, f"{name}.{option}"))
    rest = {option: value for option, value in step.items() if option not in misplaced}
    return {**rest, name: {**misplaced, **config}}


def _read_branches(draft: Draft, fields: Mapping[str, Any], place: Place) -> None:
    config = fields.get("fork_join_config")
    branches = config.get("branches") if isinstance(config, dict) else None
    if isinstance(config, dict) and isinstance(branches, dict):
        place = (*place, "fork_join_config", "branches")
        config["branches"] = {
            name: _spelled(draft, branch, _BRANCH_FIELDS, (*place, name))[0] if isinstance(branch, dict) else branch
            for name, branch in branches.items()
        }


def _spelled(
    draft: Draft, raw: Mapping[str, Any], known: Iterable[str], place: Place
) -> tuple[dict[str, Any], list[Any]]:
    """Return *raw* with the names that are *known*, and the values that no known name could be found for."""
    fields: dict[str, Any] = {}
    removed: list[Any] = []
    for name, value in raw.items():
        if name in known:
            fields[name] = value
            continue
        free = tuple(candidate for candidate in known if candidate not in raw and candidate not in fields)
        meant = _nearest(name, free)
        foreign = _FOREIGN_TO.get(str(raw.get("type", AGENT)), frozenset())
        offered = [] if meant is not None else [candidate for candidate in free if candidate not in foreign]
        draft.problems.append(_unknown_field((*place, name), meant, offered))
        if meant is None:
            removed.append(value)
        else:
            fields[meant] = value
    return fields, removed


def _unknown_field(place: Place, meant: str | None, offered: list[str]) -> Problem:
    match place:
        case (_,):
            owner = "a workflow"
        case ("steps", _, _):
            owner = "a step"
        case _:
            owner = quoted(str(place[-2]))
    others = f"; it may also have {listed(offered)}" if offered else ""
    return Problem(place_text(place), "unknown_field", f"{owner} has no field {quoted(str(place[-1]))}{others}", meant)


def _read_type(draft: Draft, key: str, fields: Mapping[str, Any]) -> str:
    marked = [kind_of for kind_of, mark in _MARKS.items() if mark in fields and "agent_name" not in fields]
    likely = marked[0] if marked else AGENT
    place = place_text(("steps", key, "type"))
    if "type" not in fields:
        if likely != AGENT:
            message = f"a step with {quoted(_MARKS[likely])} says with its type what it is"
            draft.problems.append(Problem(place, "missing_field", message, likely))
        return likely
    given = fields["type"]
    if isinstance(given, str) and given in _FIELDS:
        return given
    meant = nearest(given, tuple(_FIELDS)) if isinstance(given, str) else None
    shown = quoted(given) if isinstance(given, str) else kind(given)
    draft.problems.append(
        Problem(
            place,
            "unknown_type",
            f'a step is of type "agent", "sub_workflow", "parallel", "fork_join", "loop" or "conditional", not {shown}',
            meant,
        )
    )
    if meant is None:
        draft.guessed_types.add(key)
    return meant or likely
