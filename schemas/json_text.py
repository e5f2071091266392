"""Strict JSON: what passes here can be stored in Postgres and read by any other JSON library.

`load_json` runs for every message, so it takes a fast parser's word where that can be proved: a value that is written
as the very bytes it was read from lost nothing on the way. What our own services send passes so. Other texts (spaces,
numbers in another notation) are read again by Python's own parser, and a body that is refused once more, for the place.

Refused are, beside malformed text: NaN and Infinity, numbers beyond a double, NUL characters and lone surrogates
(PostgreSQL takes neither), duplicate keys (readers disagree on which one counts), and absurd depth (parsers recurse).
"""

import codecs
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, NamedTuple, NoReturn

from pydantic_core import from_json, to_json

from schemas.display import kind, place_text, quoted
from schemas.errors import JsonRefused, Problem

__all__ = ["MAX_DEPTH", "JsonRefused", "check_json", "load_json", "load_strictly"]

MAX_DEPTH: Final = 100  # objects and arrays within each other
MAX_INT_DIGITS: Final = 308  # any such number fits a double, and Python reads it in no time

_INT_BOUND: Final = 10**MAX_INT_DIGITS
_STRIDE: Final = MAX_INT_DIGITS // 4
_FOUR_DIGITS: Final = re.compile(rb"[0-9]{4}")
_HUGE: Final = re.compile(rb"[0-9]{%d}" % (MAX_INT_DIGITS + 1))
# Possessive, so that an unterminated string costs one pass; it then reaches to the end, as the parser sees it.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_STRING_OR_BRACKET: Final = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_STEP_OF_BRACKET: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_CLOSER: Final = {"[": "]", "{": "}"}
_BYTE_ORDER_MARKS: Final = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def load_json(body: bytes) -> Any:
    """Return the value that *body* holds.

    Raises:
        JsonRefused: It is not JSON, or JSON that we do not take. Its problem has a stable code and the place: the path
            to the value where the text could be read, else the line and column, or the byte.
    """
    value = _load_fast(body)
    return value if value is not None else load_strictly(body)


def _load_fast(body: bytes) -> Any:
    """Return the value that *body* holds; None where that is null, or a slower reader should look at it."""
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError:
        return None
    proved = to_json(value) == body
    return value if proved and not _needs_closer_look(body) and not _nests_too_deep(value, body) else None


def load_strictly(body: bytes) -> Any:
    """Return the value that *body* holds, read by Python's own parser. Raises as `load_json` does."""
    try:
        text = body.decode()
        if _is_too_deep(body):
            _refuse_depth(text)
        if _may_hold_bad_characters(body):
            return _load_checked(text)
        return _STRICT.decode(text)
    except UnicodeDecodeError as error:
        raise JsonRefused(_not_utf8(body, error)) from error
    except json.JSONDecodeError as error:
        raise JsonRefused(_not_json(error)) from error
    except _FlawFound:
        return _load_checked(text)


def check_json(value: object) -> None:
    """Make sure that *value*, made by Python code, can be written as JSON that `load_json` takes.

    Tuples count as arrays. A value that contains itself is too deep.

    Raises:
        JsonRefused: It cannot; the problem names the first place.
    """
    waiting: list[tuple[object, _Path | None]] = [(value, None)]
    while waiting:
        item, path = waiting.pop()
        flaw = _flaw_of(item) or _flaw_of_depth(item, path)
        if flaw is not None:
            raise JsonRefused(Problem(_text_of(path, flaw.below), flaw.code, flaw.message))
        depth = path.depth + 1 if path is not None else 1
        if isinstance(item, dict):
            waiting.extend((child, _Path(path, key, depth)) for key, child in reversed(item.items()))
        elif isinstance(item, list | tuple):
            last = len(item) - 1
            waiting.extend((child, _Path(path, last - n, depth)) for n, child in enumerate(reversed(item)))


class _FlawFound(Exception):
    """The strict decoder met something to refuse; the marking decoder will say where."""


@dataclass(frozen=True, slots=True)
class _Flaw:
    """Why a value is refused; the marking decoder leaves it where the value was."""

    code: str
    message: str
    below: str | None = None  # the key, where the key is at fault and not the value


class _Path(NamedTuple):
    """The way to a value, shared with the ways to its siblings."""

    parent: "_Path | None"
    part: str | int
    depth: int


def _text_of(path: _Path | None, below: str | None) -> str:
    parts: list[str | int] = [] if below is None else [below]
    while path is not None:
        parts.append(path.part)
        path = path.parent
    return place_text(reversed(parts))


# What a value may be


def _flaw_of(value: object) -> _Flaw | None:
    match value:
        case str():
            return _flaw_of_text(value)
        case bool() | None:
            return None
        case int():
            return None if -_INT_BOUND < value < _INT_BOUND else _TOO_LARGE
        case float():
            return None if math.isfinite(value) else _Flaw("not_finite", f"{value} is not a JSON number")
        case dict():
            return next(filter(None, map(_flaw_of_key, value)), None)
        case list() | tuple():
            return None
        case _Flaw():
            return value
        case _:
            return _Flaw("not_json", f"{kind(value)} is not a JSON value")


def _flaw_of_key(key: object) -> _Flaw | None:
    if not isinstance(key, str):
        return _Flaw("key_not_a_string", f"an object has strings as keys; one here is {kind(key)}")
    flaw = _flaw_of_text(key)
    return None if flaw is None else _Flaw(flaw.code, flaw.message, below=key)


def _flaw_of_text(text: str) -> _Flaw | None:
    if "\0" in text:
        return _Flaw("nul_character", "a NUL character (\\u0000) cannot be stored; leave it out")
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        lone = f"\\u{ord(text[error.start]):04x}"
        return _Flaw("lone_surrogate", f"{lone} is half of a surrogate pair and no character by itself")
    return None


def _flaw_of_depth(value: object, path: _Path | None) -> _Flaw | None:
    deep = path is not None and path.depth >= MAX_DEPTH and isinstance(value, dict | list | tuple)
    return _TOO_DEEP if deep else None


_TOO_DEEP: Final = _Flaw("too_deep", f"objects and arrays may be {MAX_DEPTH} deep; this one is deeper")
_TOO_LARGE: Final = _Flaw(
    "number_too_large", f"a number must fit a double, and a whole number may have {MAX_INT_DIGITS} digits"
)


# Two decoders: one that stops at the first flaw, one that leaves a mark in its place


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _FlawFound
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _FlawFound
    return value


def _int(text: str) -> int:
    if len(text) > MAX_INT_DIGITS and len(text.lstrip("-")) > MAX_INT_DIGITS:
        raise _FlawFound
    return int(text)


def _constant(name: str) -> NoReturn:
    raise _FlawFound


def _unique_or_marked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        value[key] = _Flaw("duplicate_key", f"the key {quoted(key)} is there twice") if key in value else item
    return value


def _float_or_marked(text: str) -> float | _Flaw:
    value = float(text)
    return _TOO_LARGE if math.isinf(value) else value


def _int_or_marked(text: str) -> int | _Flaw:
    return _TOO_LARGE if len(text.lstrip("-")) > MAX_INT_DIGITS else int(text)


def _marked_constant(name: str) -> _Flaw:
    return _Flaw("not_finite", f"{name} is not a JSON number")


_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_float, parse_int=_int, parse_constant=_constant
)
_MARKING: Final = json.JSONDecoder(
    object_pairs_hook=_unique_or_marked,
    parse_float=_float_or_marked,
    parse_int=_int_or_marked,
    parse_constant=_marked_constant,
)


def _load_checked(text: str) -> Any:
    try:
        value = _MARKING.decode(text)
    except json.JSONDecodeError as error:
        raise JsonRefused(_not_json(error)) from error
    check_json(value)
    return value


# What the bytes tell before they are parsed


def _may_hold_bad_characters(body: bytes) -> bool:
    return b"\\u" in body and (b"\\u0000" in body or b"\\ud" in body or b"\\uD" in body)


def _needs_closer_look(body: bytes) -> bool:
    """Return whether *body* may hold something that any parser takes, and we do not."""
    return _may_hold_bad_characters(body) or _may_hold_huge_numbers(body)


def _may_hold_huge_numbers(body: bytes) -> bool:
    # A run of digits that is longer than we take shows as four digits in a row where only every 77th byte is looked at.
    return _FOUR_DIGITS.search(body[::_STRIDE]) is not None and _HUGE.search(body) is not None


def _nests_too_deep(value: Any, body: bytes) -> bool:
    if not _may_be_too_deep(body):
        return False
    level = [value]  # the objects and arrays of one depth after the other
    for _ in range(MAX_DEPTH):
        children = (item.values() if isinstance(item, dict) else item for item in level)
        level = [child for some in children for child in some if isinstance(child, dict | list)]
    return bool(level)


def _may_be_too_deep(body: bytes) -> bool:
    return body.count(b"{") + body.count(b"[") > MAX_DEPTH


def _is_too_deep(body: bytes) -> bool:
    if not _may_be_too_deep(body):
        return False
    brackets = _STRING.sub(b"", body).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEP_OF_BRACKET.__getitem__, brackets)), default=0) > MAX_DEPTH


def _refuse_depth(text: str) -> NoReturn:
    """Refuse *text* with the place of the first value that lies too deep.

    Everything before that value, with all brackets closed behind it, is a document of allowed depth in which the place
    is the last one. Should that part be malformed, it is refused for that.
    """
    start, closers = _first_too_deep(text)
    value: Any = _load_checked(text[:start] + "null" + closers)
    place = place_text(_last_place(value))
    raise JsonRefused(Problem(place, _TOO_DEEP.code, _TOO_DEEP.message))


def _first_too_deep(text: str) -> tuple[int, str]:
    closers: list[str] = []
    for found in _STRING_OR_BRACKET.finditer(text):
        if found[0] in _CLOSER:
            if len(closers) == MAX_DEPTH:
                return found.start(), "".join(reversed(closers))
            closers.append(_CLOSER[found[0]])
        elif found[0] in "]}" and closers:
            closers.pop()
    raise AssertionError("only called for text that is too deep")


def _last_place(value: Any) -> Iterator[str | int]:
    while value:
        part = next(reversed(value)) if isinstance(value, dict) else len(value) - 1
        yield part
        value = value[part]


# Why bytes or text are not JSON


def _not_utf8(body: bytes, error: UnicodeDecodeError) -> Problem:
    if body.startswith(_BYTE_ORDER_MARKS):
        return _BYTE_ORDER_MARK
    return Problem(f"byte {error.start}", "invalid_utf8", f"not UTF-8: {error.reason} (0x{body[error.start]:02x})")


def _not_json(error: json.JSONDecodeError) -> Problem:
    if not error.doc.strip(" \t\r\n"):
        return Problem("", "empty_body", "the body is empty")
    if error.doc.startswith("\ufeff"):
        return _BYTE_ORDER_MARK
    place = f"line {error.lineno}, column {error.colno}"
    return Problem(place, "invalid_json", f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}")


_BYTE_ORDER_MARK: Final = Problem("byte 0", "byte_order_mark", "JSON starts without a byte order mark; leave it out")
