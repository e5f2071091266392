"""How a failed attempt is told: every failure becomes an AgentError that JSON and the database can carry."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from pydantic import ValidationError

from agent_worker.errors import AgentFailed, RetryLater
from schemas.json_text import JsonRefused, check_json
from schemas.messages import AgentError
from schemas.worker_codes import WorkerErrorCode

MAX_MESSAGE: Final = 2_000  # characters
MAX_TRACEBACK: Final = 4_000
MAX_TYPE: Final = 200
RETRY_LATER: Final = "retry_later"  # the type of what is no failure: the agent asks to be called again
_MAX_PROBLEMS: Final = 20
_MACHINERY: Final = {str(Path(__file__).with_name(name)) for name in ("execution.py", "threads.py")}


class AttemptFailed(Exception):
    """Ends an attempt with an error that is ready to be reported."""

    def __init__(self, error: AgentError) -> None:
        super().__init__(error.message)
        self.error = error


def worker_error(
    code: WorkerErrorCode, message: str, *, retryable: bool | None = None, details: dict[str, Any] | None = None
) -> AgentError:
    """Return a failure that the worker itself found."""
    return AgentError(type=code.value, message=_bounded(clean(message)), retryable=retryable, details=details)


def invalid_input(error: ValidationError) -> AgentError:
    """Return the failure for an input that does not fit; its details list the first 20 problems with their places."""
    problems = [
        {
            "place": clean(".".join(["input", *map(str, found["loc"])]))[:MAX_MESSAGE],
            "code": found["type"],
            "message": clean(found["msg"].removeprefix("Value error, "))[:MAX_MESSAGE],
        }
        for found in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    shown = problems[:_MAX_PROBLEMS]
    message = "; ".join(f"{problem['place']}: {problem['message']}" for problem in shown)
    details = {"problems": shown, "count": len(problems)}
    return worker_error(WorkerErrorCode.INVALID_INPUT, message, retryable=False, details=details)


def agent_error(error: BaseException) -> AgentError:
    """Return the failure for an exception that came out of an agent."""
    details: dict[str, Any] = {"traceback": agent_traceback(error)}
    if isinstance(error, RetryLater):
        return AgentError(type=RETRY_LATER, message=_message(error), retry_after_seconds=error.seconds)
    if isinstance(error, AgentFailed):
        return AgentError(
            type=clean(str(error.type))[:MAX_TYPE] or "agent_failed",
            message=_message(error),
            retryable=error.retryable if isinstance(error.retryable, bool) else None,
            details=details | _own_details(error.details),
        )
    return AgentError(type=_qualified_name(type(error)), message=_message(error), details=details)


def agent_traceback(error: BaseException) -> str:
    """Return the traceback from the agent's own first frame on, at most 4,000 characters; a cut is in the middle."""
    lines = traceback.format_exception(type(error), error, _agents_frames(error.__traceback__))
    text = clean("".join(lines))
    if len(text) <= MAX_TRACEBACK:
        return text
    head, tail, mark = MAX_TRACEBACK // 4, MAX_TRACEBACK // 2, "\n  [... cut ...]\n"
    return text[:head] + mark + text[-tail:]


def clean(text: str) -> str:
    """Return *text* with what no JSON text column can hold (NUL, lone surrogates) written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception as broken:
        text = f"its message cannot be shown: __str__ raised {type(broken).__name__}"
    return _bounded(clean(text))


def _bounded(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _own_details(details: Mapping[str, Any] | None) -> dict[str, Any]:
    if details is None:
        return {}
    try:
        own = dict(details)
        check_json(own)
    except JsonRefused as refused:
        return {"details_refused": str(refused.problem)}
    except (TypeError, ValueError) as error:
        return {"details_refused": clean(f"not a JSON object: {error}")[:MAX_MESSAGE]}
    return own


def _qualified_name(kind: type[BaseException]) -> str:
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return clean(name)[-MAX_TYPE:]


def _agents_frames(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename in _MACHINERY:
        trace = trace.tb_next
    return trace
