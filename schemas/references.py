"""References in `input_mapping`: read once per plan, resolved for every attempt.

A reference is `${workflow.input}`, `${STEP.output}`, `${STEP.error}` or, of a block, `${STEP.errors}` with the errors
of its branches, each with a path behind it or without, or `${STEP.status}`. In the body of a loop there are also
`${loop.item}`, with a path or without, `${loop.index}`, `${loop.total}`, `${loop.is_first}` and `${loop.is_last}`; a
step may be called "loop" all the same. A path goes through objects by `.key` and through arrays by `[index]`, counted
from 0; a key is any text without dots, brackets, braces and outer spaces. `$${` stands for a literal `${`.

`compile_template` turns a value into a `Template`, a tree in which everything without references is a constant.
Resolving goes through that tree and never through what the references lead to: data that holds `${...}` stays as it
is. Only the values of an object are templates, its keys are not.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from schemas.codec import dump_json
from schemas.display import Place, cut, place_text, quoted
from schemas.errors import Problem, TemplateInvalid
from schemas.json_text import MAX_DEPTH
from schemas.names import RESERVED_STEP_ID
from schemas.scope import LOOP_PARTS, NOTHING_READ, Part, Reads, Reference, Scope, StepOutcome, read_by
from schemas.suggestions import nearest

__all__ = [
    "Part",
    "PlacedReference",
    "Reference",
    "Scope",
    "StepOutcome",
    "Template",
    "compile_template",
    "read_reference",
    "read_template",
]

_ESCAPED: Final = "$${"
_OPENING: Final = re.compile(r"\$\$\{|\$\{(?:([^{}]*)\})?")
_HEAD: Final = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_-]*)(?:\.([A-Za-z0-9_-]+))?")
_PATH_PART: Final = re.compile(r"\.([^.\[\]{}\s](?:[^.\[\]{}]*[^.\[\]{}\s])?)|\[([0-9]{1,9})\]")
_PATH: Final = re.compile(f"(?:{_PATH_PART.pattern})*")
_STEP_PARTS: Final = (Part.OUTPUT, Part.ERROR, Part.STATUS, Part.ERRORS)
_LOOP: Final = "loop"
_LOOP_OR_STEP: Final = (*LOOP_PARTS, *_STEP_PARTS)
_PLAIN: Final = {
    Part.STATUS: "a word",
    Part.INDEX: "a number",
    Part.TOTAL: "a number",
    Part.IS_FIRST: "true or false",
    Part.IS_LAST: "true or false",
}


@dataclass(frozen=True, slots=True)
class PlacedReference:
    """A reference and where in the value it stands."""

    place: Place
    reference: Reference


@dataclass(frozen=True, slots=True)
class Template:
    """A value with references in it, ready to be resolved any number of times."""

    references: tuple[PlacedReference, ...]
    problems: tuple[Problem, ...]  # references that cannot be read; none after `compile_template`
    reads: Reads
    _node: "_Node"

    @property
    def is_reference(self) -> bool:
        """Whether it is just one reference, and so becomes whatever that leads to."""
        return isinstance(self._node, Reference)

    def resolve(self, scope: Scope) -> Any:
        """Return the value with all its references replaced; parts of it are shared with the template and *scope*.

        Raises:
            ReferenceBroken: A reference leads nowhere.
        """
        return self._node.resolve(scope)


def compile_template(value: Any) -> Template:
    """Return *value* as a template.

    Raises:
        TemplateInvalid: It holds references that cannot be read; all of them are listed.
    """
    template = read_template(value)
    if template.problems:
        raise TemplateInvalid(template.problems)
    return template


def read_template(value: Any, at: Place = ()) -> Template:
    """Return *value* as a template, with the problems of all references in it that cannot be read.

    Args:
        value: Any JSON value.
        at: Where *value* stands in the document; all places start there.
    """
    reader = _Reader()
    node = reader.read(value, at, MAX_DEPTH)
    reads = read_by(placed.reference for placed in reader.references) if reader.references else NOTHING_READ
    return Template(tuple(reader.references), tuple(reader.problems), reads, node)


# The tree. A Reference is a node too.


class _Node(Protocol):
    def resolve(self, scope: Scope) -> Any: ...


@dataclass(frozen=True, slots=True)
class _Constant:
    value: Any

    def resolve(self, scope: Scope) -> Any:
        return self.value


@dataclass(frozen=True, slots=True)
class _Text:
    parts: tuple[str | Reference, ...]

    def resolve(self, scope: Scope) -> str:
        return "".join(part if isinstance(part, str) else _as_text(part.resolve(scope)) for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Array:
    items: tuple[_Node, ...]

    def resolve(self, scope: Scope) -> list[Any]:
        return [item.resolve(scope) for item in self.items]


@dataclass(frozen=True, slots=True)
class _Object:
    items: tuple[tuple[str, _Node], ...]

    def resolve(self, scope: Scope) -> dict[str, Any]:
        return {key: item.resolve(scope) for key, item in self.items}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else dump_json(value)


@dataclass(slots=True)
class _Reader:
    """Builds the tree and notes on the way what it finds."""

    references: list[PlacedReference] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def read(self, value: Any, place: Place, depth: int) -> _Node:
        if isinstance(value, str):
            return self._read_text(value, place) if "${" in value else _Constant(value)
        if not isinstance(value, dict | list | tuple):
            return _Constant(value)
        if depth == 0:
            self.problems.append(Problem(place_text(place), "too_deep", f"this lies over {MAX_DEPTH} levels deep"))
            return _Constant(value)
        if isinstance(value, dict):
            items = [(key, self.read(item, (*place, key), depth - 1)) for key, item in value.items()]
            unchanged = _all_same(value.values(), (node for _, node in items))
            return _Constant(value) if unchanged else _Object(tuple(items))
        nodes = [self.read(item, (*place, index), depth - 1) for index, item in enumerate(value)]
        return _Constant(value) if _all_same(value, nodes) else _Array(tuple(nodes))

    def _read_text(self, text: str, place: Place) -> _Node:
        parts: list[str | Reference] = []
        end = 0
        for opening in _OPENING.finditer(text):
            parts.append(text[end : opening.start()])
            parts.append("${" if opening[0] == _ESCAPED else self._read_reference(opening, place))
            end = opening.end()
        parts.append(text[end:])
        parts = [part for part in parts if part != ""]
        match parts:
            case [Reference() as reference]:
                return reference
            case _ if all(isinstance(part, str) for part in parts):
                return _Constant("".join(map(str, parts)))
            case _:
                return _Text(tuple(parts))

    def _read_reference(self, opening: re.Match[str], place: Place) -> str | Reference:
        found = _reference_at(opening, place)
        if isinstance(found, Problem):
            self.problems.append(found)
            return opening[0]
        self.references.append(PlacedReference(place, found))
        return found


def _all_same(values: Iterable[Any], nodes: Iterable[_Node]) -> bool:
    return all(isinstance(node, _Constant) and node.value is value for value, node in zip(values, nodes, strict=True))


# Reading one reference


def read_reference(text: str, start: int, at: Place) -> tuple[Reference | Problem, int]:
    """Return the reference that an expression has at *start*, or what is wrong with it, and where it ends.

    One that is not closed ends behind its `${`. There is no way to write `${` otherwise there, and no hint at one.

    Args:
        text: Any text with `${` at *start*.
        start: Index of the dollar sign.
        at: Where *text* stands in the document.
    """
    opening = _OPENING.match(text, start)
    assert opening is not None
    found = _reference_at(opening, at)
    if isinstance(found, Problem):
        found = replace(found, message=found.message.removesuffix(f"; {_LITERAL_HINT}"))
    return found, opening.end()


def _reference_at(opening: re.Match[str], place: Place) -> Reference | Problem:
    try:
        return _parse(opening[0], opening[1])
    except _Malformed as error:
        return Problem(place_text(place), "malformed_reference", error.message, error.suggestion)


class _Malformed(Exception):
    def __init__(self, message: str, suggestion: str | None = None) -> None:
        self.message = message
        self.suggestion = suggestion


def _parse(text: str, inner: str | None) -> Reference:
    if inner is None:
        raise _Malformed(f'a "${{" is not closed with "}}"; {_LITERAL_HINT}')
    head = _HEAD.match(inner)
    if head is None:
        raise _Malformed(f"{cut(text)} is no reference: {_FORMS}; {_LITERAL_HINT}")
    part = _parse_part(text, head)
    path = _parse_path(text, inner[head.end() :])
    if part in _PLAIN and path:
        what = "a status is a word" if part is Part.STATUS else f"{part} is {_PLAIN[part]}"
        raise _Malformed(f"{cut(text)}: {what} and has nothing below it", f"${{{head[1]}.{part}}}")
    return Reference(text, head[1] if part in _STEP_PARTS else None, part, path)


def _parse_part(text: str, head: re.Match[str]) -> Part:
    name, word, rest = head[1], head[2], head.string[head.end() :]
    known = (Part.INPUT,) if name == RESERVED_STEP_ID else _LOOP_OR_STEP if name == _LOOP else _STEP_PARTS
    if word in known:
        return Part(word)
    forms = " or ".join(f"${{{name}.{part}}}" for part in known[:3])
    meant = known[0] if word is None else nearest(word, known) or f"{known[0]}.{word}"
    suggestion = f"${{{name}.{meant}{rest}}}" if _PATH.fullmatch(rest) else None
    raise _Malformed(f"{cut(text)} is no reference: write {forms}, or a path below it; {_LITERAL_HINT}", suggestion)


def _parse_path(text: str, path: str) -> tuple[str | int, ...]:
    parts: list[str | int] = []
    end = 0
    while end < len(path):
        found = _PATH_PART.match(path, end)
        if found is None:
            raise _Malformed(f"{cut(text)} cannot be read from {quoted(path[end:])} on: a path has .key and [index]")
        parts.append(found[1] if found[2] is None else int(found[2]))
        end = found.end()
    return tuple(parts)


_FORMS: Final = "it reads ${workflow.input}, ${STEP.output}, ${STEP.error} or ${STEP.status}"
_LITERAL_HINT: Final = 'a literal "${" is written "$${"'
