"""One attempt: the task's input in, an outcome out. Nothing here knows of the broker.

A failure of any kind is an outcome; only two things come out of `Executor.execute` as exceptions. CancelledError, when
the attempt itself is cancelled (shutdown): that is not a failure, and its delivery stays unsettled. KeyboardInterrupt,
because it is meant for the process.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog
from pydantic import BaseModel, ValidationError

from agent_worker.context import AgentContext
from agent_worker.failures import MAX_MESSAGE, AttemptFailed, agent_error, clean, invalid_input, worker_error
from agent_worker.registry import Agent
from agent_worker.threads import AgentThreads
from schemas.json_text import JsonRefused, check_json
from schemas.messages import AgentError, AgentTask
from schemas.worker_codes import WorkerErrorCode

CANCEL_GRACE: Final = 2.0  # seconds that a cancelled async agent has to clean up

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended; it failed if and only if there is an error."""

    output: Any = None
    error: AgentError | None = None


@dataclass(frozen=True, slots=True)
class _Returned:
    value: Any


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException


# SystemExit raised in a task stops the event loop, and StopIteration cannot leave a future: so neither is raised.
_Ended = _Returned | _Raised


class Executor:
    """Runs attempts: async agents as tasks, sync agents in threads of their own."""

    def __init__(self, *, cancel_grace: float = CANCEL_GRACE) -> None:
        self._cancel_grace = cancel_grace
        self._threads = AgentThreads()
        self._abandoned: set[asyncio.Task[_Ended]] = set()

    async def execute(self, agent: Agent, task: AgentTask, context: AgentContext | None) -> Outcome:
        """Run *agent* on the task's input and return how that ended, within the task's timeout.

        Args:
            agent: What to run.
            task: Its input and its timeout.
            context: Needed where the agent has a parameter for it.
        """
        try:
            call = _call(agent, task, context)
            ended = await (self._await(call, task) if agent.is_async else self._run_in_thread(call, task))
            return Outcome(output=_output(ended))
        except AttemptFailed as failed:
            return Outcome(error=failed.error)

    def close(self) -> None:
        """Let idle threads end; busy ones end with their call."""
        self._threads.close()

    async def _await(self, call: Callable[[], Awaitable[Any]], task: AgentTask) -> _Ended:
        running = asyncio.ensure_future(_ended_async(call))
        try:
            done, _ = await asyncio.wait((running,), timeout=task.timeout_seconds)
        except asyncio.CancelledError:
            await self._cancel(running, task)
            raise
        if not done:
            await self._cancel(running, task)
            raise AttemptFailed(_timeout(task))
        return running.result()

    async def _cancel(self, running: "asyncio.Task[_Ended]", task: AgentTask) -> None:
        """Cancel the agent and give it a moment; one that goes on regardless is left to itself."""
        running.cancel()
        # the event loop holds tasks weakly; this keeps it alive until its end
        self._abandoned.add(running)
        running.add_done_callback(self._abandoned.discard)
        done, _ = await asyncio.wait((running,), timeout=self._cancel_grace)
        if not done:
            log.warning(
                "The agent ignored its cancellation; it goes on unattended", action="agent_abandoned", **task_ids(task)
            )

    async def _run_in_thread(self, call: Callable[[], Any], task: AgentTask) -> _Ended:
        future = self._threads.run(lambda: _ended(call))
        try:
            done, _ = await asyncio.wait((future,), timeout=task.timeout_seconds)
        except asyncio.CancelledError:
            _tell_thread_goes_on(task, "The attempt was given up")
            raise
        if not done:
            _tell_thread_goes_on(task, "The attempt timed out")
            raise AttemptFailed(_timeout(task))
        ended: _Ended = future.result()
        return ended


def _call(agent: Agent, task: AgentTask, context: AgentContext | None) -> Callable[[], Any]:
    """Return the agent's function with its arguments filled in."""
    signature = agent.signature
    value = task.input
    if signature.read_input is not None:
        try:
            value = signature.read_input(value)
        except ValidationError as error:
            raise AttemptFailed(invalid_input(error)) from error
        except Exception as error:  # a validator of the agent's own model raised something else
            raise AttemptFailed(agent_error(error)) from error
    positional, named = signature.arguments(value, context)
    return lambda: agent.function(*positional, **named)


async def _ended_async(call: Callable[[], Awaitable[Any]]) -> _Ended:
    try:
        return _Returned(await call())
    except BaseException as error:
        return _Raised(error)


def _ended(call: Callable[[], Any]) -> _Ended:
    try:
        return _Returned(call())
    except BaseException as error:
        return _Raised(error)


def _output(ended: _Ended) -> Any:
    """Return the agent's output as JSON values."""
    if isinstance(ended, _Raised):
        if isinstance(ended.error, KeyboardInterrupt):
            raise ended.error
        raise AttemptFailed(agent_error(ended.error)) from ended.error
    value = _dumped(ended.value)
    try:
        check_json(value)
    except JsonRefused as refused:
        problem = refused.problem
        details = {"place": clean(problem.place)[:MAX_MESSAGE], "code": problem.code}
        raise AttemptFailed(_invalid_result(str(problem), details)) from refused
    return value


def _dumped(value: Any) -> Any:
    if inspect.iscoroutine(value):
        value.close()  # or Python warns that it was never awaited
        raise AttemptFailed(
            _invalid_result("it is a coroutine: declare the agent with `async def`, or await it inside")
        )
    if not isinstance(value, BaseModel):
        return value
    try:
        return value.model_dump(mode="json")
    except Exception as error:  # serializers are the agent's own code
        raise AttemptFailed(
            _invalid_result(f"the {type(value).__name__} cannot be written as JSON: {error}")
        ) from error


def _invalid_result(problem: str, details: dict[str, Any] | None = None) -> AgentError:
    message = f"what the agent returned cannot be sent as JSON: {problem}"
    return worker_error(WorkerErrorCode.INVALID_RESULT, message, details=details)


def _timeout(task: AgentTask) -> AgentError:
    return worker_error(WorkerErrorCode.TIMEOUT, f"the attempt took longer than its {task.timeout_seconds:g} s")


def _tell_thread_goes_on(task: AgentTask, what: str) -> None:
    log.warning(f"{what}; a thread cannot be killed, so the agent goes on", action="thread_goes_on", **task_ids(task))


def task_ids(task: AgentTask) -> dict[str, str | int]:
    """Return what every log line about a task carries."""
    return {
        "agent_name": task.agent_name,
        "run_id": str(task.run_id),
        "step_id": task.step_id,
        "attempt": task.attempt,
        "task_id": str(task.task_id),
    }
