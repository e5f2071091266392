"""What can go wrong around agents.

AgentFailed           an agent raises it to say how its attempt failed
RetryLater            an agent raises it to be called again later
WorkerConfigError     the worker cannot start as it was told to
├── AgentInvalid      a function cannot be an agent
├── RegistryNotFound  ``module:attribute`` leads to no registry
└── NoAgents          the registry is empty
"""

from collections.abc import Mapping
from typing import Any, Final

MAX_RETRY_SECONDS: Final = 365 * 86_400


class AgentFailed(Exception):
    """Raise this in an agent to choose what the result says about the failure.

    Any other exception fails the attempt too; its class then is the error's type.

    Args:
        message: For people; cut after 2,000 characters.
        type: Stable, for programs; at most 200 characters.
        retryable: False when another attempt cannot help, True when it can; None leaves it to the workflow.
        details: A JSON object for whoever handles the failure, such as the step named by ``on_failure``.
    """

    def __init__(
        self,
        message: str,
        *,
        type: str = "agent_failed",
        retryable: bool | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.type = type
        self.retryable = retryable
        self.details = details


class RetryLater(Exception):
    """Raise this in an agent to be called again after a while, as when a service throttles (HTTP 429, Retry-After).

    It does not use up one of the attempts that the step's `retry` allows, and needs no `retry`. The step waits outside
    of the worker, and holds no slot of its block meanwhile.

    Args:
        seconds: Above 0, at most a year.
        message: For people.

    Raises:
        ValueError: *seconds* is out of range.
    """

    def __init__(self, seconds: float, message: str = "the agent asked to be called again later") -> None:
        if not 0 < seconds <= MAX_RETRY_SECONDS:
            raise ValueError(f"RetryLater takes seconds above 0 and up to a year, not {seconds!r}")
        super().__init__(message)
        self.seconds = float(seconds)


class WorkerConfigError(Exception):
    """The worker cannot start as it was told to; the message says what would be right."""


class AgentInvalid(WorkerConfigError):
    """A function cannot be registered as an agent."""


class RegistryNotFound(WorkerConfigError):
    """``module:attribute`` leads to no registry."""


class NoAgents(WorkerConfigError):
    """The registry holds no agent, so there is nothing to consume."""
