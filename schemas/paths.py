"""Where a run goes on after a step that names no next one: behind the conditional step on one of whose paths it lies.

A conditional step leads into one of two paths, and when that ends the run goes on at the conditional's own next step;
where it has none, the path goes on as the conditional itself would. Paths may lie within paths. All of this is known
beforehand, so a plan has a next step for each step, and the run needs no memory of how it came there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

_KEPT: Final = 2  # of the ways on that a step can have: two that differ are a problem, more say nothing new
_KEPT_ALIKE: Final = 2  # of those that go on at the same step, but from paths that lie elsewhere


class Crossing(NamedTuple):
    """A step, or a block with its branches, and where it may lead."""

    next_step: str | None
    handlers: tuple[str, ...]
    choices: tuple[str, ...] = ()  # the first steps of a conditional's paths


@dataclass(frozen=True, slots=True, eq=False)
class _Path:
    """A path of a conditional: where the run goes on behind it, and on which path the conditional itself lies."""

    goes_on: str
    within: "_Path | None"


class Ways(NamedTuple):
    """Where the run goes on."""

    following: dict[str, str | None]  # after each step that can be reached; None: it ends
    uncertain: dict[str, tuple[str | None, ...]]  # steps that lie on two paths which go on at different steps


def ways(start: str, crossings: Mapping[str, Crossing]) -> Ways:
    """Return where the run goes on after each step that is reached from *start*."""
    paths = _paths(start, crossings)
    found = Ways({}, {})
    for step_id, some in paths.items():
        following = crossings[step_id].next_step
        ends = tuple(dict.fromkeys(map(_end, some)))
        if following is None and len(ends) > 1:
            found.uncertain[step_id] = ends
        found.following[step_id] = following if following is not None else ends[0]
    return found


def _paths(start: str, crossings: Mapping[str, Crossing]) -> dict[str, list[_Path | None]]:
    known: dict[tuple[str, int], _Path] = {}  # so that the same path is one object
    paths: dict[str, list[_Path | None]] = {}
    ahead: list[tuple[str, _Path | None]] = [(start, None)]
    while ahead:
        step_id, path = ahead.pop()
        while path is not None and path.goes_on == step_id:  # it leaves the path
            path = path.within
        crossing, some = crossings.get(step_id), paths.setdefault(step_id, [])
        if crossing is None or any(path is other for other in some) or _says_nothing_new(path, some):
            continue
        some.append(path)
        inner = path
        if crossing.next_step is not None:
            inner = known.setdefault((crossing.next_step, id(path)), _Path(crossing.next_step, path))
            ahead.append((crossing.next_step, path))
        ahead += [(target, path) for target in crossing.handlers]
        ahead += [(target, inner) for target in crossing.choices]
    return {step_id: some for step_id, some in paths.items() if step_id in crossings}


def _says_nothing_new(path: _Path | None, some: Sequence[_Path | None]) -> bool:
    ends = [_end(other) for other in some]
    return len(set(ends)) == _KEPT or ends.count(_end(path)) == _KEPT_ALIKE


def _end(path: _Path | None) -> str | None:
    return path.goes_on if path is not None else None
