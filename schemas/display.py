"""How places and values are shown to people.

Everything here is short and safe to store: long text is cut, and what a database or a terminal would choke on is
escaped, because problems end up in logs, rows and dead letters.
"""

import json
import re
from collections.abc import Collection, Iterable
from itertools import islice
from typing import Final

Place = tuple[str | int, ...]  # from the whole to the part: keys of objects and indexes of arrays

_LONGEST_WORD: Final = 100  # as long as the longest step id
_PLAIN_KEY: Final = re.compile(r"[\w-]+\Z")


def place_text(place: Iterable[str | int]) -> str:
    """Return *place* as text: `steps.block.parallel_steps[2]`, and `["a.b"]` for a key that is not a plain word."""
    parts: list[str] = []
    for part in place:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif _PLAIN_KEY.match(part):
            parts.append(("." if parts else "") + cut(part))
        else:
            parts.append(f"[{quoted(part)}]")
    return "".join(parts)


def quoted(text: str) -> str:
    """Return *text* in double quotes, escaped and cut."""
    return json.dumps(cut(text))


def cut(text: str, limit: int = _LONGEST_WORD) -> str:
    """Return *text*, with dots for what lies behind its first *limit* characters."""
    return text if len(text) <= limit else text[:limit] + "..."


def listed(names: Collection[str], *, limit: int = 10) -> str:
    """Return the first *limit* of *names*, quoted, and how many more there are."""
    text = ", ".join(map(quoted, islice(names, limit)))
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def kind(value: object) -> str:
    """Return what *value* is in the words of JSON: a string, null, an array."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list() | tuple():
            return "an array"
        case dict():
            return "an object"
        case _:
            return f"a Python {type(value).__name__}"


def shown(value: object) -> str:
    """Return *value* itself where it is short, else what it is."""
    match value:
        case bool():
            return kind(value)
        case int() | float():
            return f"the number {cut(str(value))}"
        case str():
            return f"the string {quoted(value)}"
        case _:
            return kind(value)
