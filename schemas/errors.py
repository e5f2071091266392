"""What the contract refuses, and why.

ContractError
├── WorkflowInvalid    a workflow document has problems (all of them are listed)
├── MessageRefused     a message body cannot be read
└── ReferenceBroken    a reference leads nowhere in this run
"""

from collections.abc import Sequence
from dataclasses import dataclass


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


class WorkflowInvalid(ContractError):
    """A workflow document has problems; `problems` holds all of them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 problem" if count == 1 else f"{count} problems"
        super().__init__(f"the workflow has {head}: " + "; ".join(map(str, self.problems)))


class MessageRefused(ContractError):
    """A message body cannot be read; `code` is the reason that its dead letter carries."""

    def __init__(self, code: str, message_type: str, problems: Sequence[Problem]) -> None:
        self.code = code
        self.problems = tuple(problems)
        super().__init__(f"refused {message_type}: " + "; ".join(map(str, self.problems)))


class ReferenceBroken(ContractError):
    """A reference leads nowhere in this run: it names a path that does not exist."""

    def __init__(self, reference: str, message: str) -> None:
        self.reference = reference
        super().__init__(message)
