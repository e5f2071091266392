"""Expressions: the conditions of `conditional` steps, such as `${s.output.score} > 0.8 and 'x' in ${s.output.tags}`.

From the loosest to the tightest there are `or`, `and`, `not`, the comparisons (`== != < > <= >= in`, `not in`,
`contains`) and values: references, numbers as in JSON, strings in single or double quotes, true, false, null, lists and
parentheses. Equality is that of JSON: 1 equals 1.0, and true equals neither. Only two numbers or two strings have an
order, and only true and false are conditions. What `and` or `or` does not need is not evaluated.

`read_expression` splits the text into tokens, which finds every reference, and then reads the tokens up to the first
that stands where it cannot. An operator in another language's spelling is noted, and read as what was meant.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NoReturn

from schemas.display import Place, cut, place_text, quoted
from schemas.errors import JsonRefused, Problem, TemplateInvalid
from schemas.expression_tree import (
    LONGEST_PART,
    NOTHING,
    AllOf,
    AnyOf,
    Comparison,
    ListOf,
    Literal,
    Node,
    Not,
    Operator,
    truth,
)
from schemas.json_text import load_strictly
from schemas.references import PlacedReference, read_reference
from schemas.scope import NOTHING_READ, Reads, Reference, Scope, read_by
from schemas.suggestions import nearest

__all__ = ["MAX_LENGTH", "MAX_LEVELS", "Expression", "compile_expression", "read_expression"]

MAX_LENGTH: Final = 10_000  # characters
MAX_LEVELS: Final = 64  # parentheses, lists and `not` within each other


@dataclass(frozen=True, slots=True)
class Expression:
    """A condition, ready to be evaluated any number of times."""

    references: tuple[PlacedReference, ...]
    problems: tuple[Problem, ...]  # why it cannot be read; none after `compile_expression`
    reads: Reads
    _node: Node

    def evaluate(self, scope: Scope) -> bool:
        """Return whether the condition holds.

        Raises:
            ReferenceBroken: A reference that is needed leads nowhere.
            ExpressionFailed: Operands do not fit their operator.
            TemplateInvalid: The expression has problems.
        """
        if self.problems:
            raise TemplateInvalid(self.problems)
        return truth(self._node, scope)


def compile_expression(text: str) -> Expression:
    """Return *text* as an expression.

    Raises:
        TemplateInvalid: It cannot be read.
    """
    expression = read_expression(text)
    if expression.problems:
        raise TemplateInvalid(expression.problems)
    return expression


def read_expression(text: str, at: Place = ()) -> Expression:
    """Return *text* as an expression, with its problems: all misread references, and the first error of syntax.

    Columns in messages count characters, from 1.

    Args:
        text: Any text.
        at: Where *text* stands in the document; the places of all problems and references.
    """
    if len(text) > MAX_LENGTH:
        message = f"column {MAX_LENGTH + 1}: found {len(text)} characters; an expression has {MAX_LENGTH} at most"
        return Expression((), (Problem(place_text(at), _MALFORMED, message),), NOTHING_READ, NOTHING)
    tokens = _Tokens(text, at)
    node = _Reader(tokens).read()
    references = tuple(PlacedReference(at, reference) for reference in tokens.references)
    return Expression(references, tokens.sorted_problems(), read_by(tokens.references), node)


_MALFORMED: Final = "malformed_expression"


# Splitting the text


_TOKEN: Final = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<reference>\$\{)
    | (?P<string>'(?:[^'\\]++|\\.)*+'|"(?:[^"\\]++|\\.)*+")
    | (?P<unclosed>['"].*)
    | (?P<number>-?\.?[0-9](?:[eE][+-]|[A-Za-z0-9_.])*)
    | (?P<word>(?i:is)\s+(?i:not)(?![\w.-])|[^\W\d][\w-]*(?:\.[\w-]+(?:\[[0-9]+\])*)*)
    | (?P<symbol>[=!]==|[=!<>]=|=[<>]|<>|&&|\|\||.)
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED: Final = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "t": "\t"}
_ESCAPES: Final = r"""\\ \' \" \n \t"""
_LITERALS: Final = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_COMPARISONS: Final = tuple(map(str, Operator))
_BETWEEN: Final = ("or", "and", *_COMPARISONS)  # two values
_MISSPELLINGS: Final = {
    "or": ("||", "|"),
    "and": ("&&", "&"),
    "not": ("!",),
    "==": ("=", "===", "is"),
    "!=": ("!==", "<>", "is not"),
    ">=": ("=>",),
    "<=": ("=<",),
    "null": ("none",),
    **dict.fromkeys(("in", "contains", "true", "false"), ()),
}
_MEANT: Final = {written: right for right, wrong in _MISSPELLINGS.items() for written in (right, *wrong)}


@dataclass(frozen=True, slots=True)
class _Token:
    start: int
    end: int
    symbol: str  # what an operator, a bracket or an unknown word says; empty for a value and for the end
    value: Node | None = None


@dataclass(slots=True)
class _Tokens:
    """Splits a text, and collects what is found in it and what is wrong with it."""

    text: str
    at: Place
    references: list[Reference] = field(default_factory=list)
    _problems: list[tuple[int, Problem]] = field(default_factory=list)
    _lost_at: int | None = None  # from here on nobody knows which characters belong together

    def __iter__(self) -> Iterator[_Token]:
        end = 0
        while found := _TOKEN.match(self.text, end):
            end = found.end()
            match found.lastgroup:
                case "space":
                    continue
                case "reference":
                    node, end = self._read_reference(found.start())
                    yield _Token(found.start(), end, "", node)
                case "string" | "unclosed":
                    yield _Token(found.start(), end, "", self._read_string(found))
                case "number":
                    yield _Token(found.start(), end, "", self._read_number(found))
                case _:
                    yield self._read_word(found)
        yield _Token(end, end, "")

    def note(self, start: int, message: str, suggestion: str | None = None) -> None:
        """Add a problem, unless what it says would only be a guess."""
        if self._lost_at is None or start < self._lost_at:
            text = f"column {start + 1}: {message}"
            self._problems.append((start, Problem(place_text(self.at), _MALFORMED, text, suggestion)))

    def sorted_problems(self) -> tuple[Problem, ...]:
        """Return all problems in the order of the text."""
        return tuple(problem for _, problem in sorted(self._problems, key=lambda placed: placed[0]))

    def _read_reference(self, start: int) -> tuple[Node, int]:
        found, end = read_reference(self.text, start, self.at)
        if isinstance(found, Reference):
            self.references.append(found)
            return found, end
        self._problems.append((start, found))
        if not self.text.endswith("}", start, end):
            self._lose(end)
        return NOTHING, end

    def _read_string(self, found: re.Match[str]) -> Node:
        if found.lastgroup == "unclosed":
            self.note(found.start(), f"found a string that is not closed with {found[0][0]}")
            self._lose(found.end())
            return NOTHING
        for escape in _ESCAPE.finditer(self.text, found.start() + 1, found.end() - 1):
            if escape[1] not in _ESCAPED:
                self.note(escape.start(), f"found a backslash before {quoted(escape[1])}; the escapes are {_ESCAPES}")
        return Literal(found[0], _ESCAPE.sub(lambda escape: _ESCAPED.get(escape[1], ""), found[0][1:-1]))

    def _read_number(self, found: re.Match[str]) -> Node:
        try:
            return Literal(found[0], load_strictly(found[0].encode()))
        except JsonRefused as error:
            large = error.problem.code == "number_too_large"
            why = error.problem.message if large else "a number is written as in JSON: 5, -0.5, 1e9"
            self.note(found.start(), f"found {quoted(found[0])}; {why}")
            return NOTHING

    def _read_word(self, found: re.Match[str]) -> _Token:
        symbol = " ".join(found[0].split())
        if symbol not in _LITERALS and _MEANT.get(symbol.lower(), symbol) != symbol:
            meant = _MEANT[symbol.lower()]
            self.note(found.start(), f"found {quoted(symbol)}; write {quoted(meant)}", meant)
            symbol = meant
        if symbol in _LITERALS:
            return _Token(found.start(), found.end(), "", Literal(found[0], _LITERALS[symbol]))
        return _Token(found.start(), found.end(), symbol)

    def _lose(self, start: int) -> None:
        self._lost_at = start if self._lost_at is None else self._lost_at


# Reading the tokens


class _Misplaced(Exception):
    """A token stands where it cannot; this has been noted."""


class _Reader:
    """Builds the tree by recursive descent; each method reads one precedence and stops at what is looser."""

    def __init__(self, tokens: _Tokens) -> None:
        self._tokens = tokens
        self._waiting = list(tokens)[::-1]
        self._end = 0  # of the last token that was taken

    def read(self) -> Node:
        try:
            node = self._read_any(MAX_LEVELS)
            if len(self._waiting) > 1:
                self._refuse_operator("the end")
        except _Misplaced:
            return NOTHING
        return node

    def _read_any(self, levels: int) -> Node:
        start = self._next.start
        parts = [self._read_all(levels)]
        while self._take("or"):
            parts.append(self._read_all(levels))
        return parts[0] if len(parts) == 1 else AnyOf(self._text_from(start), tuple(parts))

    def _read_all(self, levels: int) -> Node:
        start = self._next.start
        parts = [self._read_not(levels)]
        while self._take("and"):
            parts.append(self._read_not(levels))
        return parts[0] if len(parts) == 1 else AllOf(self._text_from(start), tuple(parts))

    def _read_not(self, levels: int) -> Node:
        opening = self._take("not")
        if opening is None:
            return self._read_comparison(levels)
        operand = self._read_not(self._below(levels, opening))
        return Not(self._text_from(opening.start), operand)

    def _read_comparison(self, levels: int) -> Node:
        start = self._next.start
        left = self._read_value(levels)
        comparison = self._take_comparison()
        if comparison is None:
            return left
        right = self._read_value(levels)
        node = Comparison(self._text_from(start), left, comparison, right)
        again = self._next
        if self._take_comparison() is not None:
            self._refuse(again, 'comparisons cannot be chained; join two of them with "and"')
        return node

    def _take_comparison(self) -> Operator | None:
        found = self._next
        if self._take("not"):
            if not self._take("in"):
                self._refuse(found, 'write "not in" here, or "not" before the whole comparison')
            return Operator.NOT_IN
        if found.symbol not in _COMPARISONS:
            return None
        self._take(found.symbol)
        return Operator(found.symbol)

    def _read_value(self, levels: int) -> Node:
        found = self._next
        if found.value is not None:
            self._take("")
            return found.value
        if self._take("("):
            node = self._read_any(self._below(levels, found))
            self._close(found, ")")
            return node
        if not self._take("["):
            self._refuse_value()
        items = self._read_items(self._below(levels, found), found)
        return ListOf(self._text_from(found.start), items)

    def _read_items(self, levels: int, opening: _Token) -> tuple[Node, ...]:
        if self._take("]"):
            return ()
        items = [self._read_any(levels)]
        while self._take(","):
            items.append(self._read_any(levels))
        self._close(opening, "]")
        return tuple(items)

    def _below(self, levels: int, opening: _Token) -> int:
        if levels == 0:
            self._refuse(opening, f"this lies over {MAX_LEVELS} levels deep; use fewer parentheses, lists and nots")
        return levels - 1

    # Where it stands

    @property
    def _next(self) -> _Token:
        return self._waiting[-1]

    def _take(self, symbol: str) -> _Token | None:
        """Take the next token if it says *symbol*."""
        if self._next.symbol != symbol:
            return None
        self._end = self._next.end
        return self._waiting.pop()

    def _text_from(self, start: int) -> str:
        return cut(self._tokens.text[start : self._end], LONGEST_PART)

    # What it refuses

    def _close(self, opening: _Token, closing: str) -> None:
        if not self._take(closing):
            comma = ", a comma" if closing == "]" else ""
            self._refuse_operator(f'"{closing}" for the "{opening.symbol}" in column {opening.start + 1}', comma)

    def _refuse_operator(self, closing: str, comma: str = "") -> NoReturn:
        expected = f"what can stand here is an operator ({', '.join(_BETWEEN)}){comma} or {closing}"
        self._refuse(self._next, expected, nearest(self._next.symbol, _BETWEEN))

    def _refuse_value(self) -> NoReturn:
        symbol = self._next.symbol
        if symbol == "not":
            self._refuse(self._next, "here it needs parentheses around it: (not ...)")
        if symbol[:1].isidentifier() and symbol not in _BETWEEN:
            hint = f"a string is written in quotes, '{cut(symbol)}', and a reference as ${{...}}"
            self._refuse(self._next, hint, f"${{{symbol}}}" if _reads_as_reference(symbol) else f"'{symbol}'")
        self._refuse(
            self._next, "what can stand here is ${...}, a string in quotes, a number, true, false, null, [...] or (...)"
        )

    def _refuse(self, token: _Token, message: str, suggestion: str | None = None) -> NoReturn:
        text = self._tokens.text[token.start : token.end]
        self._tokens.note(token.start, f"found {quoted(text) if text else 'the end'}; {message}", suggestion)
        raise _Misplaced


def _reads_as_reference(word: str) -> bool:
    return isinstance(read_reference(f"${{{word}}}", 0, ())[0], Reference)
