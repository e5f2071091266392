"""AMQP headers as JSON: whatever they hold comes back, in a form that jsonb takes and keeps."""

import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.storage.headers import DEEPEST, headers_from_json, headers_to_json

TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | TEXTS
    | st.sampled_from(["$bytes", "$table", "\0", "\ud800"])
    | st.binary(max_size=20)
    | st.datetimes(timezones=st.just(UTC)).map(lambda time: time.replace(fold=0))
    | st.decimals(allow_nan=False, allow_infinity=False, places=4)
)
NAMES = TEXTS | st.sampled_from(["$bytes", "$text", "$table", "$", "a"])
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3))


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_headers_come_back_with_their_types(headers: dict[str, Any]) -> None:
    text = json.dumps(headers_to_json(headers), allow_nan=False)
    back = headers_from_json(json.loads(text))
    assert back == headers
    assert repr(back) == repr(headers), "1 and 1.0 and True are equal, and are not the same"


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_no_text_within_is_one_that_postgres_refuses(headers: dict[str, Any]) -> None:
    assert not any(
        character in "\0" or "\ud800" <= character <= "\udfff" for character in texts(headers_to_json(headers))
    )


def texts(value: Any) -> str:
    match value:
        case str():
            return value
        case list():
            return "".join(map(texts, value))
        case dict():
            return "".join(texts(name) + texts(item) for name, item in value.items())
        case _:
            return ""


def test_byte_arrays_are_no_bytes() -> None:
    back = headers_from_json(headers_to_json({"a": bytearray(b"x"), "b": b"x"}))
    assert [type(value) for value in back.values()] == [bytearray, bytes]


def test_what_is_not_a_number_comes_back_as_such() -> None:
    assert math.isnan(headers_from_json(headers_to_json({"a": math.nan}))["a"])


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["list", "table"])
def test_what_lies_too_deep_is_said_in_words(wrap: Any) -> None:
    value: Any = 1
    for _ in range(50_000):
        value = wrap(value)
    text = json.dumps(headers_to_json({"deep": value}))
    assert text.count("too deep") == 1
    assert text.count("[") + text.count("{") == DEEPEST
    while isinstance(value, dict | list):  # Python would take its depth of recursion apart otherwise
        value = value.pop("a") if isinstance(value, dict) else value.pop()


def test_an_object_that_no_header_can_be_is_kept_as_text() -> None:
    assert headers_to_json({"a": Ellipsis}) == {"a": "Ellipsis"}


def test_what_json_can_say_is_readable() -> None:
    plain = {"a": "b", "n": 1, "list": [True, None]}
    marked = {"time": datetime(2026, 1, 2, tzinfo=UTC), "d": Decimal("1.50")}
    assert headers_to_json(plain | marked) == plain | {
        "time": {"$time": "2026-01-02T00:00:00+00:00"},
        "d": {"$decimal": "1.50"},
    }
