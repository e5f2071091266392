import json
import sys
from collections import OrderedDict
from typing import Any

import pytest

from schemas.json_text import MAX_DEPTH, JsonRefused, check_json, load_json


def refusal(body: bytes) -> tuple[str, str]:
    with pytest.raises(JsonRefused) as caught:
        load_json(body)
    return caught.value.problem.code, caught.value.problem.place


@pytest.mark.parametrize(
    ("body", "code", "place"),
    [
        (b"", "empty_body", ""),
        (b" \n\t", "empty_body", ""),
        (b'{"a": "\xff"}', "invalid_utf8", "byte 7"),
        (b"\xed\xa0\x80", "invalid_utf8", "byte 0"),
        (b"\xef\xbb\xbf{}", "byte_order_mark", "byte 0"),
        ("{}".encode("utf-16"), "byte_order_mark", "byte 0"),
        (b'{"a": 1,\n "b" 2}', "invalid_json", "line 2, column 6"),
        (b"{} {}", "invalid_json", "line 1, column 4"),
        (b"[1, 2", "invalid_json", "line 1, column 6"),
        (b'"\x00"', "invalid_json", "line 1, column 2"),
        (b'"abc', "invalid_json", "line 1, column 1"),
        (b'{"a": [0, NaN]}', "not_finite", "a[1]"),
        (b"Infinity", "not_finite", ""),
        (b'{"a": {"b": -Infinity}}', "not_finite", "a.b"),
        (b'{"a": [1e999]}', "number_too_large", "a[0]"),
        (b"[-1e999]", "number_too_large", "[0]"),
        (b"[" + b"9" * 309 + b"]", "number_too_large", "[0]"),
        (b"[-" + b"9" * 309 + b"]", "number_too_large", "[0]"),
        (b'{"n": ' + b"9" * 5000 + b"}", "number_too_large", "n"),
        (rb'{"a": ["x", "\u0000"]}', "nul_character", "a[1]"),
        (rb'{"a":"x\u0000"}', "nul_character", "a"),
        (rb'{"a": {"k\u0000": 1}}', "nul_character", r'a["k\u0000"]'),
        (rb'{"a": "\ud800"}', "lone_surrogate", "a"),
        (rb'{"a": "\uDFFF and more"}', "lone_surrogate", "a"),
        (rb'{"\udc00": 1}', "lone_surrogate", r'["\udc00"]'),
        (b'{"a": [{"k": 1, "k": 1}]}', "duplicate_key", "a[0].k"),
        (b'{"a.b": {"k": 1, "k": 2}}', "duplicate_key", '["a.b"].k'),
    ],
)
def test_what_is_no_json_for_us_is_refused_with_a_code_and_the_place(body: bytes, code: str, place: str) -> None:
    assert refusal(body) == (code, place)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 1_000, 100_000])
@pytest.mark.parametrize(("opening", "closing", "step"), [(b"[", b"]", "[0]"), (b'{"a":', b"}", ".a")])
def test_a_value_that_lies_too_deep_is_refused_without_recursion(
    depth: int, opening: bytes, closing: bytes, step: str
) -> None:
    body = opening * depth + b"1" + closing * depth

    assert refusal(body) == ("too_deep", (step * MAX_DEPTH).removeprefix("."))


def test_the_first_value_that_lies_too_deep_is_named() -> None:
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH

    code, place = refusal(b'{"shallow": [[]], "a": [0, {"b": ' + deep + b"}]}")

    assert (code, place[:8]) == ("too_deep", "a[1].b[0")


def test_deep_text_that_never_closes_is_refused() -> None:
    assert refusal(b"[" * 100_000)[0] == "too_deep"


def test_what_is_wrong_before_the_depth_is_named_first() -> None:
    assert refusal(b'{"a": 1, "a": ' + b"[" * 200) == ("duplicate_key", "a")


def test_brackets_in_strings_are_not_depth() -> None:
    text = '[{"\\"' * 300

    assert load_json(json.dumps([text]).encode()) == [text]


def test_many_shallow_objects_are_not_deep() -> None:
    value = [{"a": [index]} for index in range(1000)]

    assert load_json(json.dumps(value).encode()) == value


def test_an_unterminated_string_of_quotes_takes_one_pass() -> None:
    # A pattern that backs off would take hours for this.
    assert refusal(b'"' + b'\\"' * 1_000_000 + b"[" * 200)[0] == "invalid_json"


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, None),
        (b"9" * 308, int("9" * 308)),
        (b"-" + b"9" * 308, -int("9" * 308)),
        (b"1e308", 1e308),
        (b"1e-999", 0.0),
        (rb'"\\u0000 \\ud800"', r"\u0000 \ud800"),
        (rb'"\ud83d\ude00"', "\N{GRINNING FACE}"),
        ('"\N{GRINNING FACE}"'.encode(), "\N{GRINNING FACE}"),
        (b" null ", None),
        (b'{"a": 1, "b": {"a": 2}}', {"a": 1, "b": {"a": 2}}),
    ],
)
def test_what_is_unusual_but_right_is_taken(body: bytes, value: Any) -> None:
    loaded = load_json(body)

    assert value is None or loaded == value


def test_the_order_of_keys_is_kept() -> None:
    assert list(load_json(b'{"b": 1, "a": 2, "c": 3}')) == ["b", "a", "c"]


def test_the_message_says_what_would_be_right() -> None:
    with pytest.raises(JsonRefused) as caught:
        load_json(b'{"a": [1e999]}')

    assert str(caught.value) == (
        "a[0]: a number must fit a double, and a whole number may have 308 digits [number_too_large]"
    )


def cyclic() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "code", "place"),
    [
        ({"a": {1, 2}}, "not_json", "a"),
        ([b"bytes"], "not_json", "[0]"),
        (object(), "not_json", ""),
        ({"a": [0, {"b": float("nan")}]}, "not_finite", "a[1].b"),
        (float("-inf"), "not_finite", ""),
        ([10**308], "number_too_large", "[0]"),
        ([-(10**5000)], "number_too_large", "[0]"),
        ({"a": "\0"}, "nul_character", "a"),
        ({"a": {"b\0": 1}}, "nul_character", r'a["b\u0000"]'),
        ({"a": "\ud800"}, "lone_surrogate", "a"),
        ({"a": {1: 2}}, "key_not_a_string", "a"),
        ({None: 2}, "key_not_a_string", ""),
        (cyclic(), "too_deep", "[0]" * MAX_DEPTH),
    ],
)
def test_a_python_value_that_is_not_json_is_refused_with_the_place(value: object, code: str, place: str) -> None:
    with pytest.raises(JsonRefused) as caught:
        check_json(value)

    assert (caught.value.problem.code, caught.value.problem.place) == (code, place)


def test_the_first_of_several_flaws_is_named() -> None:
    with pytest.raises(JsonRefused) as caught:
        check_json({"a": [1, {"b": object()}], "c": object()})

    assert caught.value.problem.place == "a[1].b"
    assert caught.value.problem.message == "a Python object is not a JSON value"


def test_a_nest_deeper_than_pythons_stack_is_refused_without_recursion() -> None:
    value: Any = None
    for _ in range(10 * sys.getrecursionlimit()):
        value = {"a": value}

    with pytest.raises(JsonRefused, match="too_deep"):
        check_json(value)


@pytest.mark.parametrize(
    "value", [None, True, 0, -1.5, 10**308 - 1, "", "\N{GRINNING FACE}", (1, [2]), OrderedDict(a=1), {"": {}}]
)
def test_a_python_value_that_is_json_passes(value: object) -> None:
    check_json(value)

    json.dumps(value, allow_nan=False)
