"""Bodies to messages and back.

Reading is strict, because what passes here is stored and sent on: see `schemas.json_text` for what is refused.
"""

import json
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError

from schemas.errors import MessageRefused, Problem
from schemas.json_text import JsonRefused, load_json
from schemas.messages import Message

M = TypeVar("M", bound=Message)


def decode(model: type[M], body: bytes) -> M:
    """Return the message that *body* holds.

    Raises:
        MessageRefused: The body is not JSON, not an object, of another version, or has missing or wrong fields.
            Its code is ``malformed_message`` or ``unsupported_version``; its problems name each place.
    """
    try:
        document = load_json(body)
    except JsonRefused as error:
        raise MessageRefused("malformed_message", model.__name__, [error.problem]) from error
    if not isinstance(document, dict):
        problem = Problem("", "not_an_object", f"the body is {_kind(document)}; a {model.__name__} is a JSON object")
        raise MessageRefused("malformed_message", model.__name__, [problem])
    version = document.get("version", model.VERSION)
    if type(version) is int and version != model.VERSION:
        problem = Problem("version", "unsupported_version", f"this is version {version}; only {model.VERSION} is known")
        raise MessageRefused("unsupported_version", model.__name__, [problem])
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise MessageRefused("malformed_message", model.__name__, _problems(error)) from error


def encode(message: Message) -> bytes:
    """Return *message* as UTF-8 JSON.

    Raises:
        ValueError: Its output or input holds NaN, Infinity or a lone surrogate, which JSON cannot carry.
        TypeError: It holds something that is no JSON value.
    """
    return dump_json(_fields(message)).encode()


def dump_json(value: Any) -> str:
    """Return *value* as compact JSON text. Raises as `encode` does."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)


def _fields(model: BaseModel) -> dict[str, Any]:
    declared = type(model).model_fields
    return {name: value for name, value in model.__dict__.items() if value is not None or declared[name].is_required()}


def _plain(value: object) -> object:
    match value:
        case BaseModel():
            return _fields(value)
        case UUID():
            return str(value)
        case datetime():
            return value.astimezone(UTC).isoformat()
        case _:
            raise TypeError(f"a {type(value).__name__} is not a JSON value")


def _problems(error: ValidationError) -> list[Problem]:
    return [
        Problem(
            place=".".join(str(part) for part in detail["loc"]),
            code=detail["type"],
            message=detail["msg"].removeprefix("Value error, "),
        )
        for detail in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return f"a {type(value).__name__}"
