"""What the contract refuses, and why.

ContractError
├── JsonRefused        text or a value is not the JSON that we take
├── WorkflowInvalid    a workflow document has problems (all of them are listed)
├── TemplateInvalid    a value holds references that cannot be read, or an expression cannot be
├── MessageRefused     a message body cannot be read
├── ReferenceBroken    a reference leads nowhere in this run
└── ExpressionFailed   an operator in an expression has operands that do not fit it
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_PROBLEMS_IN_TEXT: Final = 50


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and where."""

    place: str  # dotted: `steps.final-step.input_mapping.a`; empty for the whole
    code: str  # stable: programs may compare it
    message: str  # what is wrong and what would be right
    suggestion: str | None = None  # the nearest thing that would be accepted

    def __str__(self) -> str:
        hint = f' (did you mean "{self.suggestion}"?)' if self.suggestion is not None else ""
        text = f"{self.message}{hint} [{self.code}]"
        return f"{self.place}: {text}" if self.place else text


class ContractError(Exception):
    """Something does not follow the contract."""


class JsonRefused(ContractError):
    """Text or a value is not the JSON that we take."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(str(problem))


class WorkflowInvalid(ContractError):
    """A workflow document has problems; `problems` holds all of them, the text names the first ones."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("the workflow has " + _summary(self.problems))


class TemplateInvalid(ContractError):
    """A value holds references that cannot be read, or an expression cannot be; `problems` has places within it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("the template has " + _summary(self.problems))


class MessageRefused(ContractError):
    """A message body cannot be read; `code` is the reason that its dead letter carries."""

    def __init__(self, code: str, message_type: str, problems: Sequence[Problem]) -> None:
        self.code = code
        self.problems = tuple(problems)
        super().__init__(f"refused {message_type}: " + _joined(self.problems))


class ReferenceBroken(ContractError):
    """A reference leads nowhere in this run: it names a path that does not exist."""

    def __init__(self, reference: str, message: str) -> None:
        self.reference = reference
        super().__init__(message)


class ExpressionFailed(ContractError):
    """An operator in an expression has operands that do not fit it; `part` is where in the text."""

    def __init__(self, part: str, message: str) -> None:
        self.part = part
        super().__init__(message)


def _summary(problems: Sequence[Problem]) -> str:
    return f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}: {_joined(problems)}"


def _joined(problems: Sequence[Problem]) -> str:
    # The text travels in RunResults and dead letters, so it stays short even when 100,000 steps are wrong.
    text = "; ".join(map(str, problems[:_PROBLEMS_IN_TEXT]))
    more = len(problems) - _PROBLEMS_IN_TEXT
    return f"{text}; and {more} more" if more > 0 else text
