"""AMQP headers as JSON, and back without loss.

A header may hold what JSON cannot: bytes, times, decimals, NaN. Such a value becomes an object with one key that starts
with a dollar sign, for example ``{"$bytes": "/w=="}``. PostgreSQL's jsonb rewrites numbers and refuses NUL, so floats
and texts with a NUL are wrapped as well.
"""

import base64
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

DEEPEST: Final = 32  # levels; what lies deeper is said in words, for neither Python nor Postgres takes any depth

_MARK: Final = "$"
_TOO_DEEP: Final = "(nested too deeply to be kept)"


def headers_to_json(headers: Mapping[str, Any]) -> Any:
    """Return *headers* as a value that `json.dumps` and jsonb take, whatever they hold."""
    return _to_json(dict(headers), DEEPEST)


def headers_from_json(value: Any) -> dict[str, Any]:
    """Return the headers of which `headers_to_json` made *value*."""
    headers = _from_json(value)
    assert isinstance(headers, dict), "headers are a table"
    return headers


def _to_json(value: Any, levels: int) -> Any:
    match value:
        case None | bool() | int():
            return value
        case str():
            return value if _is_storable(value) else _marked("text", _base64(value.encode(errors="surrogatepass")))
        case float():
            return _marked("float", repr(value))
        case Decimal():
            return _marked("decimal", str(value))
        case bytes():
            return _marked("bytes", _base64(value))
        case bytearray():
            return _marked("bytearray", _base64(value))
        case datetime():
            return _marked("time", value.isoformat())
        case list() | tuple():
            return [_to_json(item, levels - 1) for item in value] if levels else _TOO_DEEP
        case Mapping():
            return _table_to_json(value, levels) if levels else _TOO_DEEP
        case _:
            return _to_json(repr(value), levels)


def _table_to_json(table: Mapping[Any, Any], levels: int) -> Any:
    pairs = [(str(name), _to_json(value, levels - 1)) for name, value in table.items()]
    if all(_is_storable(name) and not name.startswith(_MARK) for name, _ in pairs):
        return dict(pairs)
    return _marked("table", [[_to_json(name, 0), value] for name, value in pairs])


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        name, content = next(iter(value.items()))
        if name in _READERS:
            return _READERS[name](content)
    return {name: _from_json(item) for name, item in value.items()}


def _table(pairs: Any) -> dict[str, Any]:
    return {_from_json(name): _from_json(value) for name, value in pairs}


def _is_storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _marked(kind: str, content: Any) -> dict[str, Any]:
    return {_MARK + kind: content}


def _base64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode()


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "$text": lambda content: base64.b64decode(content).decode(errors="surrogatepass"),
    "$float": float,
    "$decimal": Decimal,
    "$bytes": base64.b64decode,
    "$bytearray": lambda content: bytearray(base64.b64decode(content)),
    "$time": datetime.fromisoformat,
    "$table": _table,
}
