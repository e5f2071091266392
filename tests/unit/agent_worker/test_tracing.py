"""The span of an attempt: when it begins and ends, what it says, and which context an agent and a report have."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span

from agent_worker import RetryLater
from agent_worker.tracing import AttemptTracing
from messaging.tracing.context import current_traceparent, read_context, written

ABOVE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Traced:
    """A worker's tracing, and the spans that have ended."""

    def __init__(self) -> None:
        self.memory = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.memory))
        self.tracing = AttemptTracing(self.provider)

    @property
    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.memory.get_finished_spans()


@pytest.fixture
def traced() -> Iterator[Traced]:
    traced = Traced()
    yield traced
    traced.provider.shutdown()


async def test_an_attempt_has_a_span_below_the_context_of_its_task_and_it_is_current_in_the_agent(
    bench, traced, task
) -> None:
    seen = []

    @bench.agents.agent("echo")
    async def echo(input: Any) -> None:
        seen.append(current_traceparent())

    await bench.start(tracing=traced.tracing)
    sent = task(timeout_seconds=60)
    await bench.send(sent, traceparent=ABOVE)
    await bench.report()
    [span] = traced.spans
    above = read_context({"traceparent": ABOVE})
    assert above is not None
    assert span.parent is not None
    assert (span.context.trace_id, span.parent.span_id) == (above.trace_id, above.span_id)
    assert (span.name, span.kind) == ("process orchestrator.tasks:echo:agent.echo", SpanKind.CONSUMER)
    assert span.attributes is not None
    assert span.attributes["forkjoin.task_id"] == str(sent.task_id)
    assert seen == [written(span.context)]
    [report] = bench.broker.published
    assert report.headers == {"traceparent": written(span.context)}


async def test_a_task_without_a_context_begins_a_trace(bench, traced, task) -> None:
    @bench.agents.agent("echo")
    def echo(input: Any) -> None: ...

    await bench.start(tracing=traced.tracing)
    await bench.send(task())
    await bench.report()
    [span] = traced.spans
    assert span.parent is None


async def test_attempts_side_by_side_do_not_see_each_others_spans(bench, traced, task) -> None:
    both = asyncio.Barrier(2)
    seen = []

    @bench.agents.agent("echo")
    async def echo(input: Any) -> None:
        before = current_traceparent()
        await both.wait()
        seen.append((before, current_traceparent()))

    await bench.start(tracing=traced.tracing)
    await bench.send(task(), task(), traceparent=ABOVE)
    for _ in range(2):
        await bench.report()
    assert all(before == after for before, after in seen)
    assert len(set(seen)) == 2


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_failure_is_told_with_its_traceback(bench, traced, task, is_async: bool) -> None:
    def fail(input: Any) -> None:
        raise ValueError("no luck")

    async def fail_later(input: Any) -> None:
        fail(input)

    bench.agents.agent("echo")(fail_later if is_async else fail)
    await bench.start(tracing=traced.tracing)
    await bench.send(task())
    await bench.report()
    [span] = traced.spans
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "no luck")
    assert span.attributes is not None
    assert span.attributes["error.type"] == "ValueError"
    [event] = span.events
    assert event.attributes is not None
    assert (event.name, event.attributes["exception.type"]) == ("exception", "ValueError")
    assert 'raise ValueError("no luck")' in str(event.attributes["exception.stacktrace"])


async def test_an_agent_that_asks_to_be_called_later_is_told_as_that(bench, traced, task) -> None:
    @bench.agents.agent("echo")
    async def echo(input: Any) -> None:
        raise RetryLater(5)

    await bench.start(tracing=traced.tracing)
    await bench.send(task())
    report = await bench.report()
    [span] = traced.spans
    assert span.attributes is not None
    assert span.attributes["error.type"] == report.error.type


async def test_a_span_ends_with_the_report_of_a_timeout_though_the_agent_goes_on(bench, traced, task) -> None:
    over = asyncio.Event()

    @bench.agents.agent("echo")
    async def echo(input: Any) -> None:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue

    worker = await bench.start(tracing=traced.tracing, cancel_grace=0.01)
    await bench.send(task(timeout_seconds=0.01))
    await bench.report()
    [span] = traced.spans
    assert span.attributes is not None
    assert span.attributes["error.type"] == "timeout"
    over.set()
    await worker.drain()
    assert len(traced.spans) == 1


async def test_a_span_ends_when_its_attempt_is_given_up(bench, traced, task) -> None:
    begun = asyncio.Event()

    @bench.agents.agent("echo")
    async def echo(input: Any) -> None:
        begun.set()
        await asyncio.sleep(3_600)

    worker = await bench.start(tracing=traced.tracing)
    await bench.send(task())
    await begun.wait()
    assert traced.spans == ()
    await worker.close()
    [span] = traced.spans
    assert span.attributes is not None
    assert span.attributes["forkjoin.status"] == "GIVEN_UP"


async def test_without_an_sdk_agents_and_reports_have_the_context_of_the_task(bench, task) -> None:
    seen = []

    @bench.agents.agent("echo")
    def echo(input: Any) -> None:
        seen.append(current_traceparent())

    await bench.start()
    await bench.send(task(), traceparent=ABOVE)
    await bench.report()
    await bench.send(task())
    await bench.report()
    assert seen == [ABOVE, None]
    assert [report.headers for report in bench.broker.published] == [{"traceparent": ABOVE}, {}]
    assert not get_current_span().get_span_context().is_valid
