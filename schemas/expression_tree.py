"""The tree of an expression, and what its operators do; `schemas.expressions` reads one."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol, assert_never

from schemas.display import cut, kind, shown
from schemas.errors import ExpressionFailed
from schemas.scope import Reference, Scope

LONGEST_PART: Final = 300  # of an expression, in messages


class Node(Protocol):
    """A part of an expression; a `Reference` is one too."""

    @property
    def text(self) -> str:
        """How it is written."""

    def resolve(self, scope: Scope) -> Any:
        """Return its value. Raises ReferenceBroken or ExpressionFailed."""


@dataclass(frozen=True, slots=True)
class Literal:
    """A number, a string, true, false or null."""

    text: str
    value: str | int | float | bool | None

    def resolve(self, scope: Scope) -> str | int | float | bool | None:
        """Return its value."""
        return self.value


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of values."""

    text: str
    items: tuple[Node, ...]

    def resolve(self, scope: Scope) -> list[Any]:
        """Return its value."""
        return [item.resolve(scope) for item in self.items]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Conditions joined by `or`: what follows one that holds is not evaluated."""

    text: str
    parts: tuple[Node, ...]

    def resolve(self, scope: Scope) -> bool:
        """Return its value."""
        return any(truth(part, scope) for part in self.parts)


@dataclass(frozen=True, slots=True)
class AllOf:
    """Conditions joined by `and`: what follows one that does not hold is not evaluated."""

    text: str
    parts: tuple[Node, ...]

    def resolve(self, scope: Scope) -> bool:
        """Return its value."""
        return all(truth(part, scope) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Not:
    """A condition that holds when another one does not."""

    text: str
    operand: Node

    def resolve(self, scope: Scope) -> bool:
        """Return its value."""
        return not truth(self.operand, scope)


class Operator(StrEnum):
    """What compares two values."""

    EQUAL = "=="
    UNEQUAL = "!="
    LESS = "<"
    GREATER = ">"
    AT_MOST = "<="
    AT_LEAST = ">="
    IN = "in"
    NOT_IN = "not in"
    CONTAINS = "contains"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two values and what compares them."""

    text: str
    left: Node
    operator: Operator
    right: Node

    def resolve(self, scope: Scope) -> bool:
        """Return its value."""
        left, right = self.left.resolve(scope), self.right.resolve(scope)
        try:
            return _compare(left, self.operator, right)
        except _Unfit as error:
            values = "".join(_value_note(node, value) for node, value in ((self.left, left), (self.right, right)))
            raise ExpressionFailed(self.text, f"{self.text}: {error}{values}") from None


NOTHING: Final = Literal("", None)


class _Unfit(Exception):
    """Two operands do not fit their operator."""


def truth(node: Node, scope: Scope) -> bool:
    """Return whether *node* holds. Raises ExpressionFailed where it is no condition, and what its parts raise."""
    value = node.resolve(scope)
    if isinstance(value, bool):
        return value
    part = cut(node.text, LONGEST_PART)
    hint = f"write a comparison, such as {part} {_usual_comparison(value)}"
    raise ExpressionFailed(part, f"{part}: {shown(value)} is neither true nor false; {hint}")


def _usual_comparison(value: Any) -> str:
    match value:
        case int() | float():
            return "> 0"
        case str():
            return "!= ''"
        case list() | tuple():
            return "!= []"
        case _:
            return "!= null"


def _compare(left: Any, comparison: Operator, right: Any) -> bool:
    match comparison:
        case Operator.EQUAL:
            return _equal(left, right)
        case Operator.UNEQUAL:
            return not _equal(left, right)
        case Operator.LESS | Operator.GREATER | Operator.AT_MOST | Operator.AT_LEAST:
            return _in_order(left, comparison, right)
        case Operator.IN:
            return _is_in(left, right)
        case Operator.NOT_IN:
            return not _is_in(left, right)
        case Operator.CONTAINS:
            return _is_in(right, left)
        case _:
            assert_never(comparison)


def _equal(left: Any, right: Any) -> bool:
    """Return whether two values are the same JSON; iterative, since outputs that hold outputs may be deep."""
    waiting = [(left, right)]
    while waiting:
        one, other = waiting.pop()
        match one, other:
            case (bool(), _) | (_, bool()):  # Python's True equals 1
                same = one is other
            case (list() | tuple(), list() | tuple()):
                same = len(one) == len(other)
                waiting.extend(zip(one, other, strict=False))
            case Mapping(), Mapping():
                same = one.keys() == other.keys()
                waiting.extend((item, other.get(key)) for key, item in one.items())
            case _:
                same = one == other
        if not same:
            return False
    return True


_ORDERS: Final[Mapping[Operator, Callable[[Any, Any], bool]]] = {
    Operator.LESS: operator.lt,
    Operator.GREATER: operator.gt,
    Operator.AT_MOST: operator.le,
    Operator.AT_LEAST: operator.ge,
}


def _in_order(left: Any, comparison: Operator, right: Any) -> bool:
    both_text = isinstance(left, str) and isinstance(right, str)
    if not both_text and not (_is_number(left) and _is_number(right)):
        raise _Unfit(f"{kind(left)} and {kind(right)} cannot be compared")
    return _ORDERS[comparison](left, right)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_in(item: Any, whole: Any) -> bool:
    match whole:
        case list() | tuple():
            return any(_equal(item, element) for element in whole)
        case str() if isinstance(item, str):
            return item in whole
        case str():
            raise _Unfit(f"a string holds strings, and never {kind(item)}")
        case Mapping() if isinstance(item, str):
            return item in whole
        case Mapping():
            raise _Unfit(f"the keys of an object are strings, and never {kind(item)}")
        case _:
            raise _Unfit(f"{kind(whole)} holds nothing; only an array, a string or an object does")


def _value_note(node: Node, value: Any) -> str:
    """Return what a reference led to, where its kind does not say that."""
    if not isinstance(node, Reference) or not isinstance(value, str | int | float) or isinstance(value, bool):
        return ""
    return f"; {cut(node.text, LONGEST_PART)} is {shown(value)}"
