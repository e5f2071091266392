"""Bodies to messages and back.

Reading is strict, because what passes here is stored and sent on: see `schemas.json_text` for what is refused.
"""

import json
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from schemas.display import cut, kind, shown
from schemas.errors import JsonRefused, MessageRefused, Problem
from schemas.json_text import load_json
from schemas.messages import Message
from schemas.shapes import shape_problems
from schemas.stored_json import StoredJson

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
        message = f"the body is {kind(document)}; a {model.__name__} is an object"
        raise MessageRefused("malformed_message", model.__name__, [Problem("", "not_an_object", message)])
    if type(document.get("version")) is int:
        return _decode_fields(model, document)
    problems = [_version_problem(model, document), *_shape_problems(model, document | {"version": model.VERSION})]
    raise MessageRefused("malformed_message", model.__name__, problems)


def _decode_fields(model: type[M], document: dict[str, Any]) -> M:
    version = document["version"]
    if version != model.VERSION:
        message = f"this is version {cut(str(version))}; only {model.VERSION} is known"
        problem = Problem("version", "unsupported_version", message)
        raise MessageRefused("unsupported_version", model.__name__, [problem])
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise MessageRefused("malformed_message", model.__name__, shape_problems(error)) from error


def _version_problem(model: type[Message], document: dict[str, Any]) -> Problem:
    if "version" not in document:
        return Problem("version", "missing_field", f"this field is required; only version {model.VERSION} is known")
    message = f"this is {shown(document['version'])}; a version is a whole number, and only {model.VERSION} is known"
    return Problem("version", "wrong_type", message)


def _shape_problems(model: type[Message], document: dict[str, Any]) -> list[Problem]:
    try:
        model.model_validate(document)
    except ValidationError as error:
        return shape_problems(error)
    return []


def encode(message: Message) -> bytes:
    """Return *message* as UTF-8 JSON.

    Raises:
        ValueError: Its output or input holds NaN, Infinity or a lone surrogate, which JSON cannot carry.
        TypeError: It holds something that is no JSON value.
    """
    return _dump_strictly(plain_fields(message))


def encode_checked(message: Message) -> bytes:
    """Return a *message* whose input or output was read or checked as JSON, in a fraction of the time."""
    return dump_checked(plain_fields(message))


def dump_json(value: Any) -> str:
    """Return *value*, read or checked as JSON, stored, or one model of ours, as compact JSON. Raises as `encode`."""
    if isinstance(value, StoredJson):
        return value.text
    return dump_checked(plain_fields(value) if isinstance(value, BaseModel) else value).decode()


def dump_checked(value: Any) -> bytes:
    """Return *value* (what was read or checked as JSON, UUIDs) as compact UTF-8 JSON.

    Pydantic's encoder takes a sixth of the time of Python's, and writes the same text; but it takes sets, and more that
    is no JSON value. What it refuses goes to the strict encoder, which knows how to say why; so does NaN.
    """
    try:
        body = to_json(value)
    except ValueError:
        return _dump_strictly(value)
    return _dump_strictly(value) if b"NaN" in body or b"Infinity" in body else body


def _dump_strictly(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode()


def plain_fields(model: BaseModel) -> dict[str, Any]:
    """Return the fields of a message, or of a part of one, as they are written: without those that are absent."""
    required = _required_fields(type(model))
    return {
        name: _without_models(value) for name, value in model.__dict__.items() if value is not None or name in required
    }


def _without_models(value: Any) -> Any:
    # Pydantic would write their absent fields too. Models are where our messages declare them, and nowhere deeper.
    if isinstance(value, BaseModel):
        return plain_fields(value)
    if isinstance(value, datetime):
        return written_time(value)
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return [plain_fields(item) for item in value]
    return value


@cache
def _required_fields(model: type[BaseModel]) -> frozenset[str]:
    return frozenset(name for name, field in model.model_fields.items() if field.is_required())


def written_time(time: datetime) -> str:
    """Return a time as messages hold it."""
    return (time if time.tzinfo is UTC else time.astimezone(UTC)).isoformat()


def _plain(value: object) -> object:
    match value:
        case BaseModel():
            return plain_fields(value)
        case UUID():
            return str(value)
        case datetime():
            return written_time(value)
        case _:
            raise TypeError(f"a {type(value).__name__} is not a JSON value")
