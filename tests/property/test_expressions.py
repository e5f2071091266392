"""Any text is an expression or has problems, and an expression means what a direct model in Python says."""

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import ExpressionFailed, ReferenceBroken
from schemas.expressions import compile_expression, read_expression
from schemas.scope import Scope

# Few and alike, so that they are often equal, or contained in one another.
TEXT = st.sampled_from(["", "a", "ab", "b", "${a.output}", "'\"\\\n\t", "ä\N{GRINNING FACE}"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, 2, -1, 0.0, 1.0, -0.5, 1e300, 2**53 + 1, float(2**53)])
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5
)
PIECES = st.sampled_from(
    [
        *"()[],=!<>&|$'\"\\ -.\0\n",
        *(" and ", " or ", " not ", " in ", " contains ", " is not ", "==", "<=", "true", "None", "word", "1e9", "01"),
        *("${a.output}", "${a}", "${", "$${", "'x'", "a.output", "\ud800", "\N{GRINNING FACE}"),
    ]
)
ORDERS = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}


class Fails(Exception):
    """The model has no value."""


@dataclass(frozen=True)
class Case:
    """A part of an expression: its text, how tightly its operator binds, and what it means."""

    text: str
    binding: int  # 0: or, 1: and, 2: not, 3: comparison, 4: value
    value: Callable[[Any], Any]  # of the input of the workflow

    def within(self, binding: int) -> str:
        return self.text if self.binding >= binding else f"({self.text})"


def literal(value: Any) -> Case:
    if isinstance(value, str):
        text = value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
        return Case(f"'{text}'", 4, lambda _: value)
    return Case(json.dumps(value), 4, lambda _: value)


def reference(index: int) -> Case:
    def value(data: Any) -> Any:
        if index >= len(data):
            raise Fails
        return data[index]

    return Case(f"${{workflow.input[{index}]}}", 4, value)


def array(items: list[Case]) -> Case:
    return Case(f"[{', '.join(item.text for item in items)}]", 4, lambda data: [item.value(data) for item in items])


def true_or_false(value: Any) -> bool:
    if value is not True and value is not False:
        raise Fails
    return value is True


def negation(case: Case) -> Case:
    return Case(f"not {case.within(2)}", 2, lambda data: not true_or_false(case.value(data)))


def disjunction(cases: list[Case]) -> Case:
    text = " or ".join(case.within(1) for case in cases)
    return Case(text, 0, lambda data: any(true_or_false(case.value(data)) for case in cases))


def conjunction(cases: list[Case]) -> Case:
    text = " and ".join(case.within(2) for case in cases)
    return Case(text, 1, lambda data: all(true_or_false(case.value(data)) for case in cases))


def comparison(left: Case, symbol: str, right: Case) -> Case:
    text = f"{left.within(4)} {symbol} {right.within(4)}"
    return Case(text, 3, lambda data: compared(left.value(data), symbol, right.value(data)))


def tagged(value: Any) -> Any:
    """Return *value* so that Python's equality is that of JSON."""
    match value:
        case bool():
            return ("boolean", value)
        case list():
            return [tagged(item) for item in value]
        case dict():
            return {key: tagged(item) for key, item in value.items()}
        case _:
            return value


def compared(left: Any, symbol: str, right: Any) -> bool:
    match symbol:
        case "==":
            return bool(tagged(left) == tagged(right))
        case "!=":
            return bool(tagged(left) != tagged(right))
        case "contains":
            return compared(right, "in", left)
        case "not in":
            return not compared(left, "in", right)
        case "in" if isinstance(right, list):
            return tagged(left) in tagged(right)
        case "in" if isinstance(right, str | dict) and isinstance(left, str):
            return left in right
        case "<" | ">" | "<=" | ">=" if {type(left), type(right)} in ({str}, {int}, {float}, {int, float}):
            return bool(ORDERS[symbol](left, right))
        case _:
            raise Fails


# Most of them have a value; where every part could fail, nearly every expression would.
EQUALITIES = st.sampled_from(["==", "!="])
SYMBOLS = EQUALITIES | st.sampled_from(["<", ">", "<=", ">=", "in", "not in", "contains"])
PLAIN = SCALARS.map(literal) | st.integers(0, 2).map(reference)
VALUES = PLAIN | st.lists(PLAIN, max_size=3).map(array)
CONDITIONS = st.recursive(
    st.booleans().map(literal) | st.builds(comparison, VALUES, SYMBOLS, VALUES),
    lambda inner: (
        inner.map(negation)
        | st.lists(inner, min_size=2, max_size=4).map(disjunction)
        | st.lists(inner, min_size=2, max_size=4).map(conjunction)
        | st.builds(comparison, inner | VALUES, EQUALITIES, inner)
        | st.builds(comparison, inner, st.just("in"), st.lists(inner, max_size=3).map(array))
    ),
    max_leaves=8,
)


@given(CONDITIONS, st.lists(JSON, min_size=2, max_size=4))
def test_an_expression_means_what_the_model_says(case: Case, data: list[Any]) -> None:
    try:
        expected = true_or_false(case.value(data))
    except Fails:
        expected = None

    try:
        found = compile_expression(case.text).evaluate(Scope(data, {}))
    except (ExpressionFailed, ReferenceBroken):
        found = None

    assert found is expected


@given(st.lists(PIECES, max_size=30).map("".join) | st.text())
def test_any_text_is_an_expression_or_has_problems(text: str) -> None:
    expression = read_expression(text)

    for problem in expression.problems:
        assert problem.code in ("malformed_expression", "malformed_reference")
        assert len(str(problem)) < 1000
    if not expression.problems:
        assert compile_expression(text) == expression
