"""What workflows, steps and agents may be called.

Step ids stand in references (``${step-a.output}``) and agent names in routing keys and queue names, so both are
limited to characters that mean nothing there: no dots in step ids, no ``*``, ``#`` or white space in agent names.
"""

import re
from typing import Final

MAX_NAME_LENGTH: Final = 100
RESERVED_STEP_ID: Final = "workflow"  # `${workflow.input}` is the run's input

STEP_ID_PATTERN: Final = rf"^[A-Za-z0-9_][A-Za-z0-9_-]{{0,{MAX_NAME_LENGTH - 1}}}$"
# In the body of a loop the numbers of the iterations follow: `x[3]`, in a loop within a loop `y[3][0]`.
EXECUTION_ID_PATTERN: Final = STEP_ID_PATTERN.removesuffix("$") + r"(\[[0-9]{1,9}\]){0,8}$"
AGENT_NAME_PATTERN: Final = rf"^[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{MAX_NAME_LENGTH - 1}}}$"
WORKFLOW_ID_PATTERN: Final = r"^[^\x00-\x1f\x7f]{1,200}$"

BRANCH_NAME_PATTERN: Final = (
    rf"^[^.\[\]{{}}\s\x00-\x1f]([^.\[\]{{}}\x00-\x1f]{{0,{MAX_NAME_LENGTH - 2}}}[^.\[\]{{}}\s\x00-\x1f])?$"
)

_STEP_ID = re.compile(STEP_ID_PATTERN.removesuffix("$") + r"\Z")
_AGENT_NAME = re.compile(AGENT_NAME_PATTERN.removesuffix("$") + r"\Z")
_BRANCH_NAME = re.compile(BRANCH_NAME_PATTERN.removesuffix("$") + r"\Z")


def step_id_problem(name: str) -> str | None:
    """Say what is wrong with *name* as a step id, or return None."""
    if name == RESERVED_STEP_ID:
        return f'a step may not be called "{RESERVED_STEP_ID}": references use that word for the run\'s input'
    if _STEP_ID.match(name) is None:
        return f"a step id has 1 to {MAX_NAME_LENGTH} letters, digits, hyphens or underscores, and no hyphen first"
    return None


def branch_name_problem(name: str) -> str | None:
    """Say what is wrong with *name* as the name of a branch, or return None: references must be able to name it."""
    if _BRANCH_NAME.match(name) is None:
        return (
            f"a branch name has 1 to {MAX_NAME_LENGTH} characters, no dots, brackets, braces or control characters, "
            "and no space first or last"
        )
    return None


def agent_name_problem(name: str) -> str | None:
    """Say what is wrong with *name* as an agent name, or return None."""
    if _AGENT_NAME.match(name) is None:
        return (
            f"an agent name has 1 to {MAX_NAME_LENGTH} letters, digits, dots, hyphens or underscores, "
            "and neither a dot nor a hyphen first"
        )
    if name.startswith("amq."):
        return 'an agent name may not start with "amq.": RabbitMQ keeps that prefix for itself'
    return None
