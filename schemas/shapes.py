"""Pydantic's errors in our words: a stable code, and what is wrong without the jargon of a library."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from schemas import names
from schemas.display import cut, kind, place_text, quoted, shown
from schemas.errors import Problem

_KEY_MARK: Final = "[key]"  # pydantic puts it behind the key of an object when the key itself is wrong


def shape_problems(error: ValidationError) -> list[Problem]:
    """Return all that pydantic found."""
    return [shape_problem(detail) for detail in error.errors(include_url=False)]


def shape_problem(detail: ErrorDetails) -> Problem:
    """Return what pydantic found as one of our problems."""
    loc = detail["loc"]
    place = place_text(loc[:-1] if loc and loc[-1] == _KEY_MARK else loc)
    code, message = _translated(detail)
    return Problem(place, code, message)


def _translated(detail: ErrorDetails) -> tuple[str, str]:
    expected = _EXPECTED.get(detail["type"])
    if expected is not None:
        return "wrong_type", f"this is {shown(detail['input'])}; it must be {expected}"
    worded = _WORDED.get(detail["type"])
    if worded is not None:
        code, words = worded
        return code, words(detail["input"], detail.get("ctx", {}))
    return detail["type"], detail["msg"]


_TIME: Final = "a time in RFC 3339 with its offset, such as 2026-01-31T12:00:00Z"
_UUID: Final = "a UUID, such as 8f14e45f-ceea-467f-9575-2d1f3a0c9b11"
_OBJECT: Final = "an object"
_WHOLE: Final = "a whole number"

_EXPECTED: Final[Mapping[str, str]] = {
    "string_type": "a string",
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "an array",
    "collection_type": "an array, or a reference to one",
    "dict_type": _OBJECT,
    "model_type": _OBJECT,
    "dataclass_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "uuid_type": _UUID,
    "uuid_parsing": _UUID,
    "datetime_type": _TIME,
    "datetime_parsing": _TIME,
    "datetime_from_date_parsing": _TIME,
    "datetime_object_invalid": _TIME,
    "timezone_aware": _TIME,
}

_Context = Mapping[str, Any]  # what pydantic knows of the rule that was broken


def _name_problem(name: str, context: _Context) -> str:
    match context["pattern"]:
        case names.STEP_ID_PATTERN:
            problem = names.step_id_problem(name)
        case names.AGENT_NAME_PATTERN:
            problem = names.agent_name_problem(name)
        case names.WORKFLOW_ID_PATTERN:
            problem = "a name has 1 to 200 characters, and no line breaks or other control characters"
        case pattern:
            problem = f"it must match {pattern}"
    return f"{quoted(name)} will not do: {problem}"


def _number(value: float) -> str:
    return cut(f"{value:.0f}" if value == int(value) else str(value))


_WORDED: Final[Mapping[str, tuple[str, Callable[[Any, _Context], str]]]] = {
    "missing": ("missing_field", lambda value, rule: "this field is required"),
    "extra_forbidden": ("unknown_field", lambda value, rule: "there is no such field"),
    "bad_name": ("bad_name", lambda value, rule: f"{quoted(value)} will not do: {rule['problem']}"),
    "string_pattern_mismatch": ("bad_name", _name_problem),
    "greater_than": (
        "out_of_range",
        lambda value, rule: f"{_number(value)} is too small; it must be above {_number(rule['gt'])}",
    ),
    "greater_than_equal": (
        "out_of_range",
        lambda value, rule: f"{_number(value)} is too small; the least is {_number(rule['ge'])}",
    ),
    "less_than_equal": (
        "out_of_range",
        lambda value, rule: f"{_number(value)} is too large; the most is {_number(rule['le'])}",
    ),
    "too_short": ("empty", lambda value, rule: f"{kind(value)} must not be empty here"),
    "string_too_short": ("empty", lambda value, rule: "the string must not be empty"),
    "string_too_long": (
        "too_long",
        lambda value, rule: f"the string has {len(value)} characters; the most is {rule['max_length']}",
    ),
    "literal_error": ("not_allowed", lambda value, rule: f"this is {shown(value)}; allowed is {rule['expected']}"),
    "enum": ("not_allowed", lambda value, rule: f"this is {shown(value)}; allowed is {rule['expected']}"),
    "value_error": ("inconsistent", lambda value, rule: str(rule["error"])),
}
