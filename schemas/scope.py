"""What a reference leads to: the input of the run, the outcomes of the steps that have run, and a loop's iteration."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

from schemas.display import cut, kind, listed, place_text, quoted
from schemas.errors import ReferenceBroken
from schemas.statuses import StepStatus
from schemas.stored_json import StoredJson

_LONGEST_REFERENCE: Final = 300  # in messages

# A failure handler prints the errors of all branches, of those that went well too.
_NO_ERROR: Final[Mapping[str, Any]] = {"code": None, "message": None, "details": None}


class Part(StrEnum):
    """What a reference takes: the input of the workflow, or something of a step or of an iteration."""

    INPUT = "input"
    OUTPUT = "output"
    ERROR = "error"
    STATUS = "status"
    ERRORS = "errors"  # of a block: those of its failed branches, by name
    ITEM = "item"  # of the collection that the innermost loop goes through
    INDEX = "index"  # of the item, from 0
    TOTAL = "total"  # so many items there are
    IS_FIRST = "is_first"
    IS_LAST = "is_last"


LOOP_PARTS: Final = (Part.ITEM, Part.INDEX, Part.TOTAL, Part.IS_FIRST, Part.IS_LAST)


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What later steps can see of a step."""

    status: StepStatus
    output: Any  # or StoredJson, of which nobody may look at more than is needed
    error: Mapping[str, Any] | None
    errors: Mapping[str, Mapping[str, Any]] | None = None  # of a block, by branch


@dataclass(frozen=True, slots=True)
class Iteration:
    """What the steps in a loop's body can see of their iteration."""

    index: int  # from 0
    total: int
    item: Any = None  # known where it is asked for


@dataclass(frozen=True, slots=True)
class Scope:
    """All that references can lead to. A step that is not in `steps` has not run on this path."""

    workflow_input: Any
    steps: Mapping[str, StepOutcome]
    iteration: Iteration | None = None  # of the innermost loop


@dataclass(frozen=True, slots=True)
class Reference:
    """One well-formed reference."""

    text: str  # as it was written, with its braces
    step: str | None  # None: the workflow, or the loop
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
            return scope.workflow_input if self.part is Part.INPUT else self._of_iteration(scope.iteration)
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

    def _of_iteration(self, iteration: Iteration | None) -> Any:
        if iteration is None:
            raise self._broken("it lies in no loop")
        match self.part:
            case Part.ITEM:
                return iteration.item
            case Part.INDEX:
                return iteration.index
            case Part.TOTAL:
                return iteration.total
            case Part.IS_FIRST:
                return iteration.index == 0
            case _:
                return iteration.index == iteration.total - 1

    def _errors(self, errors: Mapping[str, Mapping[str, Any]]) -> dict[str | int, Any]:
        """Return the errors by branch; a branch that went well has one too, where it is asked for."""
        if not self.path:
            return {name: dict(error) for name, error in errors.items()}
        branch = self.path[0]
        return {branch: _error(errors.get(str(branch)), is_opened=len(self.path) > 1)}

    def _broken(self, why: str) -> ReferenceBroken:
        return ReferenceBroken(self.text, f"{cut(self.text, _LONGEST_REFERENCE)} leads nowhere: {why}")

    def _why(self, done: int, value: Any) -> str:
        owner = self.step or ("workflow" if self.part is Part.INPUT else "loop")
        way = place_text((owner, str(self.part), *self.path[:done]))
        return f"{cut(way, _LONGEST_REFERENCE)} {_lack(value, self.path[done])}"


class Reads(NamedTuple):
    """What some references lead to."""

    steps: frozenset[str] = frozenset()
    blocks: frozenset[str] = frozenset()  # those whose branches' errors are read
    loop_parts: frozenset[Part] = frozenset()  # of the innermost loop
    workflow_input: bool = False

    def and_of(self, others: Iterable["Reads"]) -> "Reads":
        """Return what these and *others* lead to."""
        many = [self, *others]
        return Reads(
            frozenset().union(*(reads.steps for reads in many)),
            frozenset().union(*(reads.blocks for reads in many)),
            frozenset().union(*(reads.loop_parts for reads in many)),
            any(reads.workflow_input for reads in many),
        )


NOTHING_READ: Final = Reads()


def read_by(references: Iterable[Reference]) -> Reads:
    """Return what *references* lead to."""
    steps, blocks, loop_parts, workflow_input = set(), set(), set(), False
    for reference in references:
        if reference.step is not None:
            steps.add(reference.step)
            if reference.part is Part.ERRORS:
                blocks.add(reference.step)
        elif reference.part in LOOP_PARTS:
            loop_parts.add(reference.part)
        else:
            workflow_input = True
    reads = Reads(frozenset(steps), frozenset(blocks), frozenset(loop_parts), workflow_input)
    return reads if any(reads) else NOTHING_READ  # one for all of the many templates that read nothing


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
