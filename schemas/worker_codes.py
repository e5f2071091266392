"""The codes of the failures that a worker itself reports.

An AgentError whose type is one of these becomes the row's error code as it is; every other type is an agent's own
exception and becomes the code ``agent_error``.
"""

from enum import StrEnum


class WorkerErrorCode(StrEnum):
    """Why a worker failed an attempt, when the agent itself did not."""

    INVALID_INPUT = "invalid_input"  # the task's input does not fit what the agent declared
    INVALID_RESULT = "invalid_result"  # the agent returned something that JSON cannot carry
    PAYLOAD_TOO_LARGE = "payload_too_large"  # the encoded result is above the worker's or the broker's limit
    TIMEOUT = "timeout"  # the attempt took longer than the task's `timeout_seconds`
    UNKNOWN_AGENT = "unknown_agent"  # the task names an agent that this worker does not have
    WORKER_LOST = "worker_lost"  # the task came back again and again, as when it kills its process
    INTERNAL_ERROR = "internal_error"  # a bug in the worker
