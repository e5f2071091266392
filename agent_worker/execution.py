"""One attempt: the task's input in, an outcome out. Nothing here knows of the broker.

An agent runs in the asyncio task of its attempt: a task of its own would cost more than all the rest of a short
attempt. So nobody can go on while an agent ignores its cancellation; whoever must is called back.

A failure of any kind is an outcome; only KeyboardInterrupt comes out of `Executor.execute`, because it is meant for the
process, and CancelledError out of an attempt that waits for a thread. A cancelled async agent has an outcome like any
other, for it may have cancelled itself. Whoever cancels an attempt on purpose (shutdown) must ignore its outcome.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import structlog
from pydantic import BaseModel, ValidationError

from agent_worker.context import AgentContext
from agent_worker.deadline import Deadline
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
    """Runs attempts: async agents where it is called, sync agents in threads of their own."""

    def __init__(self, *, cancel_grace: float = CANCEL_GRACE) -> None:
        self._cancel_grace = cancel_grace
        self._threads = AgentThreads()

    async def execute(
        self, agent: Agent, task: AgentTask, context: AgentContext | None, abandoned: Callable[[Outcome], None]
    ) -> Outcome:
        """Run *agent* on the task's input and return how that ended, within the task's timeout.

        Args:
            agent: What to run.
            task: Its input and its timeout.
            context: Needed where the agent has a parameter for it.
            abandoned: Called with the outcome when the agent has ignored its timeout. It then goes on unattended, and
                what is returned when it ends after all comes too late.
        """
        try:
            call = _call(agent, task, context)
            running = _ended_async(call) if agent.is_async else self._ended_in_thread(call, task)
            if task.timeout_seconds is not None:
                running = self._in_time(running, task, task.timeout_seconds, abandoned)
            return Outcome(output=_output(await running))
        except AttemptFailed as failed:
            return Outcome(error=failed.error)

    def close(self) -> None:
        """Let idle threads end; busy ones end with their call."""
        self._threads.close()

    async def _in_time(
        self, running: Awaitable[_Ended], task: AgentTask, seconds: float, abandoned: Callable[[Outcome], None]
    ) -> _Ended:
        def ignored() -> None:
            tell_abandoned(task)
            abandoned(Outcome(error=_timeout(task)))

        deadline = Deadline(seconds, self._cancel_grace, ignored)
        try:
            ended = await running
        except asyncio.CancelledError:
            if not deadline.passed:
                raise
        finally:
            deadline.stop()
        if deadline.passed:
            raise AttemptFailed(_timeout(task))
        return ended

    async def _ended_in_thread(self, call: Callable[[], Any], task: AgentTask) -> _Ended:
        future: asyncio.Future[_Ended] = self._threads.run(lambda: _ended(call))
        try:
            return await future
        except asyncio.CancelledError:
            log.warning(
                "The attempt is over; a thread cannot be killed, so the agent goes on",
                action="thread_goes_on",
                **task_ids(task),
            )
            raise


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


def tell_abandoned(task: AgentTask) -> None:
    """Log that an agent outlived its attempt."""
    log.warning("The agent ignored its cancellation; it goes on unattended", action="agent_abandoned", **task_ids(task))


def task_ids(task: AgentTask) -> dict[str, str | int]:
    """Return what every log line about a task carries."""
    return {
        "agent_name": task.agent_name,
        "run_id": str(task.run_id),
        "step_id": task.step_id,
        "attempt": task.attempt,
        "task_id": str(task.task_id),
    }
