"""What a reference leads to: the input of the run and the outcomes of the steps that have run."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from schemas.display import cut, kind, listed, place_text, quoted
from schemas.errors import ReferenceBroken
from schemas.statuses import StepStatus
from schemas.stored_json import StoredJson

_LONGEST_REFERENCE: Final = 300  # in messages

# A failure handler prints the errors of all branches, of those that went well too.
_NO_ERROR: Final[Mapping[str, Any]] = {"code": None, "message": None, "details": None}


class Part(StrEnum):
    """What a reference takes: the input of the workflow, or something of a step."""

    INPUT = "input"
    OUTPUT = "output"
    ERROR = "error"
    STATUS = "status"
    ERRORS = "errors"  # of a block: those of its failed branches, by name


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What later steps can see of a step."""

    status: StepStatus
    output: Any  # or StoredJson, of which nobody may look at more than is needed
    error: Mapping[str, Any] | None
    errors: Mapping[str, Mapping[str, Any]] | None = None  # of a block, by branch


@dataclass(frozen=True, slots=True)
class Scope:
    """All that references can lead to. A step that is not in `steps` has not run on this path."""

    workflow_input: Any
    steps: Mapping[str, StepOutcome]


@dataclass(frozen=True, slots=True)
class Reference:
    """One well-formed reference."""

    text: str  # as it was written, with its braces
    step: str | None  # None: the workflow
    part: Part
    path: tuple[str | int, ...]

    def resolve(self, scope: Scope) -> Any:
        """Return the value that it leads to; the value is shared, not copied.

        Raises:
            ReferenceBroken: It leads nowhere; says where it broke and what was there.
        """
        value = self._start(scope)
        for done, part in enumerate(self.path):
            if not _has(value, part):
                raise self._broken(self._why(done, value))
            value = value[part]
        return value

    def _start(self, scope: Scope) -> Any:
        if self.step is None:
            return scope.workflow_input
        outcome = scope.steps.get(self.step)
        if self.part is Part.STATUS:
            return str(StepStatus.SKIPPED if outcome is None else outcome.status)
        if outcome is None or outcome.status is StepStatus.SKIPPED:
            raise self._broken(f"step {quoted(self.step)} has not run on this path")
        if self.part is Part.OUTPUT:
            return outcome.output.value if isinstance(outcome.output, StoredJson) else outcome.output
        if self.part is Part.ERRORS:
            return self._errors(outcome.errors or {})
        return _error(outcome.error, is_opened=bool(self.path))

    def _errors(self, errors: Mapping[str, Mapping[str, Any]]) -> dict[str | int, Any]:
        """Return the errors by branch; a branch that went well has one too, where it is asked for."""
        if not self.path:
            return {name: dict(error) for name, error in errors.items()}
        branch = self.path[0]
        return {branch: _error(errors.get(str(branch)), is_opened=len(self.path) > 1)}

    def _broken(self, why: str) -> ReferenceBroken:
        return ReferenceBroken(self.text, f"{cut(self.text, _LONGEST_REFERENCE)} leads nowhere: {why}")

    def _why(self, done: int, value: Any) -> str:
        way = place_text((self.step or "workflow", str(self.part), *self.path[:done]))
        return f"{cut(way, _LONGEST_REFERENCE)} {_lack(value, self.path[done])}"


def _error(error: Mapping[str, Any] | None, *, is_opened: bool) -> dict[str, Any] | None:
    if is_opened:
        return {**_NO_ERROR, **(error or {})}
    return None if error is None else dict(error)


def _has(value: Any, part: str | int) -> bool:
    if isinstance(part, str):
        return isinstance(value, Mapping) and part in value
    return isinstance(value, list | tuple) and part < len(value)


def _lack(value: Any, part: str | int) -> str:
    match value, part:
        case Mapping(), str():
            keys = f"its keys are {listed(value)}" if value else "it is an empty object"
            return f"has no key {quoted(part)}; {keys}"
        case Mapping(), _:
            return f"is an object and has no [{part}]; " + (f"its keys are {listed(value)}" if value else "it is empty")
        case ((list() | tuple()), int()):
            return f"has no [{part}]; it is an array of {len(value)}"
        case ((list() | tuple()), _):
            return f"is an array of {len(value)} and has no key {quoted(str(part))}; take an element with [index]"
        case _:
            what = f"key {quoted(part)}" if isinstance(part, str) else f"[{part}]"
            return f"is {kind(value)} and has no {what}"
