import asyncio
import json
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel, field_validator
from structlog.testing import capture_logs

from agent_worker import AgentContext, AgentFailed, AgentRegistry
from agent_worker.execution import Executor, Outcome
from schemas.messages import AgentError, AgentTask

Execute = Callable[..., Any]


class Topic(BaseModel):
    topic: str
    depth: int

    @field_validator("topic")
    @classmethod
    def _is_known(cls, topic: str) -> str:
        if topic == "odd":
            raise ValueError("odd topics are not for us")
        if topic == "broken":
            raise RuntimeError("the validator itself is broken")
        return topic


@pytest.fixture
async def executor() -> AsyncIterator[Executor]:
    executor = Executor(cancel_grace=0.05)
    yield executor
    executor.close()


@pytest.fixture
def execute(executor: Executor, task: Callable[..., AgentTask]) -> Execute:
    """Runs one function as an agent, once."""

    async def run(function: Any, input: Any = None, **fields: Any) -> Outcome:
        agents = AgentRegistry()
        agents.agent("echo")(function)
        agent = agents.get("echo")
        assert agent is not None
        made = task("echo", input, **fields)
        context = AgentContext("echo", made.run_id, made.step_id, made.task_id)
        abandoned = asyncio.get_running_loop().create_future()
        running = asyncio.ensure_future(executor.execute(agent, made, context, abandoned.set_result))
        done, _ = await asyncio.wait((running, abandoned), return_when=asyncio.FIRST_COMPLETED)
        return done.pop().result()

    return run


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets threads that a test left behind end."""
    event = threading.Event()
    yield event
    event.set()


def error_of(outcome: Outcome) -> AgentError:
    assert outcome.output is None
    assert outcome.error is not None
    json.dumps(outcome.error.model_dump(mode="json"), ensure_ascii=False).encode()  # it can be sent
    return outcome.error


async def test_an_async_and_a_sync_agent_return_their_output(execute: Execute) -> None:
    async def asynchronous(input):
        await asyncio.sleep(0)
        return {"got": input}

    def synchronous(input):
        return {"got": input, "main": threading.current_thread() is threading.main_thread()}

    assert await execute(asynchronous, 1) == Outcome(output={"got": 1})
    assert await execute(synchronous, 2) == Outcome(output={"got": 2, "main": False})


async def test_a_model_is_given_to_the_agent_and_dumped_from_it(execute: Execute) -> None:
    class Found(BaseModel):
        id: uuid.UUID
        topic: Topic

    async def agent(input: Topic) -> Found:
        return Found(id=uuid.UUID(int=1), topic=input)

    outcome = await execute(agent, {"topic": "x", "depth": "3"})
    assert outcome.output == {"id": "00000000-0000-0000-0000-000000000001", "topic": {"topic": "x", "depth": 3}}


async def test_an_input_that_does_not_fit_is_invalid_with_each_place(execute: Execute) -> None:
    async def agent(input: Topic):
        pytest.fail("never called")

    error = error_of(await execute(agent, {"topic": "odd", "depth": "deep"}))
    assert error.type == "invalid_input"
    assert error.retryable is False
    assert error.message.startswith("input.topic: odd topics are not for us; input.depth: Input should be a valid int")
    assert [problem["place"] for problem in error.details["problems"]] == ["input.topic", "input.depth"]  # type: ignore[index]


async def test_an_agent_that_takes_an_object_is_not_given_anything_else(execute: Execute) -> None:
    async def agent(input: dict[str, Any]):
        pytest.fail("never called")

    error = error_of(await execute(agent, [1]))
    assert error.type == "invalid_input"
    assert error.message == "input: Input should be a valid dictionary"


async def test_a_validator_that_is_broken_itself_fails_the_attempt_with_its_exception(execute: Execute) -> None:
    async def agent(input: Topic): ...

    error = error_of(await execute(agent, {"topic": "broken", "depth": 1}))
    assert (error.type, error.message) == ("RuntimeError", "the validator itself is broken")


class CustomError(Exception):
    pass


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_an_exception_becomes_an_error_with_its_class_and_the_agents_own_frames(
    execute: Execute, kind: str
) -> None:
    def deeper():
        raise CustomError("no such page")

    def synchronous(input):
        deeper()

    async def asynchronous(input):
        deeper()

    error = error_of(await execute(synchronous if kind == "sync" else asynchronous))
    assert error.type == f"{__name__}.CustomError"
    assert error.message == "no such page"
    assert error.retryable is None
    trace = error.details["traceback"]  # type: ignore[index]
    assert f"in {kind}hronous" in trace
    assert "in deeper" in trace
    assert "/execution.py" not in trace
    assert "/threads.py" not in trace


async def test_a_failure_that_cannot_be_sent_as_it_is_is_cleaned_and_cut(execute: Execute) -> None:
    async def long(input):
        raise ValueError("NUL \0 and half a pair \ud800" + "x" * 10_000)

    async def unprintable(input):
        class Unprintable(Exception):
            def __str__(self) -> str:
                raise TypeError("no")

        raise Unprintable

    error = error_of(await execute(long))
    assert error.message.startswith("NUL \\x00 and half a pair \\ud800xxx")
    assert len(error.message) == 2_000
    assert len(error.details["traceback"]) < 4_000  # type: ignore[index]
    assert "[... cut ...]" in error.details["traceback"]  # type: ignore[index]
    assert "__str__ raised TypeError" in error_of(await execute(unprintable)).message


async def test_agent_failed_chooses_what_the_result_says(execute: Execute) -> None:
    async def agent(input):
        raise AgentFailed("quota used up", type="quota", retryable=True, details={"resets": "tomorrow"})

    error = error_of(await execute(agent))
    assert (error.type, error.message, error.retryable) == ("quota", "quota used up", True)
    assert error.details is not None
    assert error.details["resets"] == "tomorrow"
    assert "in agent" in error.details["traceback"]


@pytest.mark.parametrize("details", [{"n": float("nan")}, {"o": object()}, 5])
async def test_details_that_are_not_json_do_not_hide_the_failure(execute: Execute, details: Any) -> None:
    async def agent(input):
        raise AgentFailed("quota used up", details=details)

    error = error_of(await execute(agent))
    assert (error.type, error.message) == ("agent_failed", "quota used up")
    assert "details_refused" in (error.details or {})


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize("raised", [SystemExit(3), StopIteration(1), GeneratorExit(), BaseException("base")])
async def test_exceptions_that_would_end_a_loop_or_a_process_only_fail_the_attempt(
    execute: Execute, kind: str, raised: BaseException
) -> None:
    def synchronous(input):
        raise raised

    async def asynchronous(input):
        # a coroutine turns StopIteration into RuntimeError by itself
        raise raised

    error = error_of(await execute(synchronous if kind == "sync" else asynchronous))
    expected = "RuntimeError" if kind == "async" and isinstance(raised, StopIteration) else type(raised).__name__
    assert error.type == expected


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_a_keyboard_interrupt_is_for_the_process(task: Callable[..., AgentTask], kind: str) -> None:
    def synchronous(input):
        raise KeyboardInterrupt

    async def asynchronous(input):
        raise KeyboardInterrupt

    async def run() -> None:
        agents = AgentRegistry()
        agents.agent("echo")(synchronous if kind == "sync" else asynchronous)
        agent = agents.get("echo")
        assert agent is not None
        await Executor().execute(agent, task(), None, pytest.fail)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(run())


async def test_an_agent_that_cancels_itself_has_failed(execute: Execute) -> None:
    async def raises(input):
        raise asyncio.CancelledError

    async def cancels(input):
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await asyncio.sleep(0)

    for agent in (raises, cancels):
        assert error_of(await execute(agent)).type == "asyncio.exceptions.CancelledError"


async def test_a_timeout_cancels_an_async_agent(execute: Execute) -> None:
    cancelled = asyncio.Event()

    async def agent(input):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    error = error_of(await execute(agent, timeout_seconds=0.01))
    assert (error.type, error.message) == ("timeout", "the attempt took longer than its 0.01 s")
    assert cancelled.is_set()


async def test_what_an_agent_returns_after_its_timeout_does_not_count(execute: Execute) -> None:
    async def agent(input):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "saved in the last moment"

    assert error_of(await execute(agent, timeout_seconds=0.01)).type == "timeout"


@pytest.mark.parametrize("seconds", [0.01, 0.001])  # it ends within its time; within its grace
async def test_an_agent_that_has_ended_is_not_abandoned(
    executor: Executor, task: Callable[..., AgentTask], eventually: Callable[..., Any], seconds: float
) -> None:
    agents = AgentRegistry()

    @agents.agent("echo")
    async def agent(input: Any) -> None:
        if seconds == 0.001:
            await asyncio.Event().wait()

    registered = agents.get("echo")
    assert registered is not None
    abandoned: list[Outcome] = []
    loop = asyncio.get_running_loop()
    with capture_logs() as lines:
        await executor.execute(registered, task(timeout_seconds=seconds), None, abandoned.append)
        ended = loop.time()
        await eventually(lambda: loop.time() > ended + 0.1)  # longer than its time and its grace
    assert (abandoned, lines) == ([], [])


async def test_an_agent_that_ignores_its_cancellation_is_abandoned_and_named_in_the_log(execute: Execute) -> None:
    release = asyncio.Event()

    async def stubborn(input):
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    with capture_logs() as lines:
        assert error_of(await execute(stubborn, timeout_seconds=0.01)).type == "timeout"
    assert [line["action"] for line in lines] == ["agent_abandoned"]
    assert lines[0]["agent_name"] == "echo"
    release.set()


async def test_a_sync_agent_times_out_at_once_although_its_thread_goes_on(
    execute: Execute, release: threading.Event
) -> None:
    def agent(input):
        release.wait()

    with capture_logs() as lines:
        assert error_of(await execute(agent, timeout_seconds=0.01)).type == "timeout"
    assert [line["action"] for line in lines] == ["thread_goes_on"]


async def test_threads_that_overran_their_timeout_do_not_hold_up_other_attempts(
    execute: Execute, release: threading.Event
) -> None:
    def stuck(input):
        release.wait()

    def quick(input):
        return "done"

    for _ in range(40):  # more than any default pool has threads
        await execute(stuck, timeout_seconds=0.001)
    assert await execute(quick) == Outcome(output="done")


async def test_a_thread_is_used_again(execute: Execute) -> None:
    def agent(input):
        return threading.current_thread().name

    first = await execute(agent)
    assert await execute(agent) == first


async def test_context_variables_reach_a_sync_agent(execute: Execute) -> None:
    import contextvars

    trace = contextvars.ContextVar[str]("trace")
    trace.set("abc")
    assert await execute(lambda input: trace.get()) == Outcome(output="abc")


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def endless() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "place", "code"),
    [
        (object(), "", "not_json"),
        ({"a": [1, {"b": {1, 2}}]}, "a[1].b", "not_json"),
        ({"a": float("nan")}, "a", "not_finite"),
        (float("inf"), "", "not_finite"),
        ({"a": "x\0"}, "a", "nul_character"),
        ({"a": "\ud800"}, "a", "lone_surrogate"),
        ({"a": {1: "x"}}, "a", "key_not_a_string"),
        (10**400, "", "number_too_large"),
        (nested(5_000), None, "too_deep"),
        (endless(), None, "too_deep"),
        (b"bytes", "", "not_json"),
    ],
)
async def test_a_result_that_json_cannot_carry_is_invalid_with_its_place(
    execute: Execute, value: Any, place: str | None, code: str
) -> None:
    async def agent(input):
        return value

    error = error_of(await execute(agent))
    assert error.type == "invalid_result"
    assert error.message.startswith("what the agent returned cannot be sent as JSON: ")
    assert error.details is not None
    assert error.details["code"] == code
    if place is not None:
        assert error.details["place"] == place


async def test_a_model_that_cannot_be_dumped_is_an_invalid_result(execute: Execute) -> None:
    class Holder(BaseModel):
        model_config = {"arbitrary_types_allowed": True}
        value: object

    error = error_of(await execute(lambda input: Holder(value=object())))
    assert error.type == "invalid_result"
    assert "the Holder cannot be written as JSON" in error.message


async def test_a_coroutine_returned_by_a_sync_agent_is_explained(execute: Execute) -> None:
    async def inner():
        return 1

    error = error_of(await execute(lambda input: inner()))
    assert error.type == "invalid_result"
    assert "declare the agent with `async def`" in error.message
