import pytest

from schemas.display import Place, kind, listed, place_text, quoted, shown


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ((), ""),
        (("steps", "block", "parallel_steps", 2), "steps.block.parallel_steps[2]"),
        ((0, "a"), "[0].a"),
        (("a.b", "c d", ""), '["a.b"]["c d"][""]'),
        (("ä-1",), "ä-1"),
        (("\0\ud800",), r'["\u0000\ud800"]'),
        (("x" * 101, "y"), "x" * 100 + "....y"),
    ],
)
def test_a_place_is_shown_as_one_would_write_it(place: Place, text: str) -> None:
    assert place_text(place) == text


def test_a_list_of_names_is_bounded() -> None:
    assert listed(["a"]) == '"a"'
    assert listed([str(number) for number in range(12)], limit=2) == '"0", "1" and 10 more'


def test_text_is_quoted_escaped_and_cut() -> None:
    assert quoted('a "b"\n') == r'"a \"b\"\n"'
    assert len(quoted("x" * 1000)) == 105


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (2.0, "the number 2.0"),
        ("2", 'the string "2"'),
        ([1], "an array"),
        ({}, "an object"),
        (b"", "a Python bytes"),
    ],
)
def test_a_short_value_is_shown_and_a_long_one_named(value: object, text: str) -> None:
    assert shown(value) == text


def test_numbers_and_strings_are_named_without_their_value() -> None:
    assert (kind(5), kind("secret")) == ("a number", "a string")
