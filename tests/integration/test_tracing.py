"""Traces: the context of whoever asks goes all the way, and spans of all that ends make one connected tree."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, get_current_span, get_tracer

from agent_worker.tracing import AttemptTracing
from messaging import topology
from messaging.port import OutgoingMessage, Queue, QueueKind
from messaging.tracing.context import current_traceparent, read_context, written
from messaging.tracing.sdk import Exporter
from orchestrator.client import Client
from orchestrator.service.traces import run_span_id
from orchestrator.storage.definitions import register_workflow
from orchestrator.storage.queries import get_run
from schemas.codec import decode, encode
from schemas.messages import RunRequest, RunResult
from schemas.statuses import ResultStatus
from schemas.validation import parse_workflow
from tests.integration.documents import agent, block, loop, one_block, workflow
from tests.integration.system import System
from tests.services.waiting import eventually

CLIENTS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


@dataclass
class Collected:
    """What several processes have exported: each has an exporter of its own."""

    exporters: list[tuple[Exporter, InMemorySpanExporter]] = field(default_factory=list)

    def exporter(self, service: str) -> Exporter:
        memory = InMemorySpanExporter()
        exporter = Exporter(service, str(len(self.exporters)), memory)
        self.exporters.append((exporter, memory))
        return exporter

    def spans(self) -> list[ReadableSpan]:
        for exporter, _ in self.exporters:
            exporter.provider.force_flush()
        return [span for _, memory in self.exporters for span in memory.get_finished_spans()]


@pytest.fixture
def collected() -> Iterator[Collected]:
    collected = Collected()
    yield collected
    for exporter, _ in collected.exporters:
        exporter.close(10)


@pytest.fixture
async def traced(system: System, collected: Collected) -> System:
    """A system with two replicas and a worker, each of which exports its spans."""
    for number in range(2):
        await system.start_replica(spans=collected.exporter(f"orchestrator-{number}"))
    return system


def worker_tracing(collected: Collected) -> AttemptTracing:
    return AttemptTracing(collected.exporter("worker").provider)


def tree(spans: Sequence[ReadableSpan], parent: int) -> dict[str, Any]:
    """Return the names of the spans below one, each with those below it."""
    below = sorted((span for span in spans if span.parent and span.parent.span_id == parent), key=lambda s: s.name)
    return {span.name: tree(spans, span.context.span_id) for span in below}


def only(spans: Sequence[ReadableSpan], name: str) -> ReadableSpan:
    [span] = [span for span in spans if span.name == name]
    return span


def connected(spans: Sequence[ReadableSpan], above: int | None = None) -> bool:
    """Whether they are of one trace, and each has its parent among them, or *above* them all, or is its root."""
    ids = {span.context.span_id for span in spans}
    assert len(ids) == len(spans), "each has an id of its own"
    roots = [span for span in spans if span.parent is None or span.parent.span_id == above]
    others = [span for span in spans if span not in roots]
    return (
        len({span.context.trace_id for span in spans}) == 1
        and len(roots) == 1
        and all(span.parent and span.parent.span_id in ids for span in others)
    )


SENT = "send orchestrator.tasks:"
PROCESSED = "process orchestrator.tasks:"


async def test_one_trace_runs_from_the_client_through_orchestrators_and_workers_to_an_agents_own_spans(
    traced: System, collected: Collected
) -> None:
    tracing = worker_tracing(collected)
    tracer = get_tracer("an agent's library", tracer_provider=collected.exporters[-1][0].provider)

    async def search(task: Any) -> str:
        with tracer.start_as_current_span("call a model"):
            return "found"

    def write(task: Any) -> str:  # in a thread
        with tracer.start_as_current_span("call a database"):
            return "written"

    await traced.start_worker(search, write, tracing=tracing)
    steps = {"both": block(["a", "b"], next_step="last"), "a": agent("search"), "b": agent("write")}
    result = await ask(traced, workflow({**steps, "last": agent("search")}, name="traced"))

    spans = collected.spans()
    above = read_context({"traceparent": CLIENTS})
    assert above is not None
    assert connected(spans, above.span_id)
    searched = {f"{SENT}search": {f"{PROCESSED}search:agent.search": {"call a model": {}}}}
    stored = {f"{SENT}write": {f"{PROCESSED}write:agent.write": {"call a database": {}}}}
    assert tree(spans, above.span_id) == {
        "run traced": {"block both": {"branch a": searched, "branch b": stored}, "step last": searched}
    }
    run = only(spans, "run traced")
    assert run.context.trace_id == above.trace_id
    assert result.traceparent == written(run.context)
    assert result.run.run_id is not None
    details = await get_run(traced.database, result.run.run_id)
    assert details.summary.trace_id == f"{run.context.trace_id:032x}"
    assert {span.resource.attributes["service.name"] for span in spans} >= {"worker"}
    assert all(span.start_time <= span.end_time for span in spans)  # type: ignore[operator]
    assert all(span.status.status_code is StatusCode.UNSET for span in spans)


async def test_spans_say_what_the_conventions_for_messaging_ask_and_what_they_are_about(
    traced: System, collected: Collected
) -> None:
    async def search(task: Any) -> str:
        return "found"

    await traced.start_worker(search, tracing=worker_tracing(collected))
    result = await traced.run(workflow({"both": block(["a"]), "a": agent("search")}, name="traced"))
    spans = collected.spans()
    assert result.run_id is not None
    steps = await traced.steps(result.run_id)
    about = {
        "messaging.system": "rabbitmq",
        "messaging.rabbitmq.destination.routing_key": "search",
        "messaging.message.conversation_id": str(steps["a"]["task_id"]),
        "forkjoin.run_id": str(result.run_id),
        "forkjoin.step_id": "a",
        "forkjoin.parent_step_id": "both",
        "forkjoin.agent_name": "search",
        "forkjoin.task_id": str(steps["a"]["task_id"]),
        "forkjoin.attempt": 1,
    }
    sent, processed = only(spans, f"{SENT}search"), only(spans, f"{PROCESSED}search:agent.search")
    assert sent.kind is SpanKind.PRODUCER
    assert about.items() <= dict(sent.attributes or {}).items()
    assert sent.attributes is not None
    assert sent.attributes["messaging.operation.type"] == "send"
    assert sent.attributes["messaging.destination.name"] == "orchestrator.tasks:search"
    assert processed.kind is SpanKind.CONSUMER
    assert about.items() <= dict(processed.attributes or {}).items()
    assert processed.attributes is not None
    assert processed.attributes["messaging.operation.type"] == "process"
    assert processed.attributes["messaging.destination.name"] == "orchestrator.tasks:search:agent.search"
    run = only(spans, "run traced")
    assert run.parent is None
    assert run.context.span_id == run_span_id(result.run_id)
    assert run.attributes is not None
    assert (run.kind, run.attributes["forkjoin.status"]) == (SpanKind.CONSUMER, "COMPLETED")
    whole = only(spans, "block both")
    assert whole.attributes is not None
    assert (whole.attributes["forkjoin.branches"], whole.attributes["forkjoin.branches_failed"]) == (1, 0)


async def test_each_attempt_has_a_span_and_one_that_failed_says_why(traced: System, collected: Collected) -> None:
    tries = 0

    async def shaky(task: Any) -> str:
        nonlocal tries
        tries += 1
        raise ValueError(f"no luck, {tries}")

    await traced.start_worker(shaky, tracing=worker_tracing(collected))
    retry = {"max_attempts": 2, "initial_interval_seconds": 0.01}
    result = await traced.run(workflow({"a": agent("shaky", retry=retry)}, name="fails"))
    spans = collected.spans()
    assert result.status is ResultStatus.FAILED
    assert connected(spans)
    assert [span.attributes["forkjoin.attempt"] for span in named(spans, f"{SENT}shaky")] == [1, 2]  # type: ignore[index]
    processed = named(spans, f"{PROCESSED}shaky:agent.shaky")
    assert [span.status.description for span in processed] == ["no luck, 1", "no luck, 2"]
    assert [span.events[0].name for span in processed] == ["exception"] * 2
    for span in [*processed, only(spans, "step a"), only(spans, "run fails"), *named(spans, f"{SENT}shaky")]:
        assert span.status.status_code is StatusCode.ERROR
    assert only(spans, "step a").attributes["error.type"] == "agent_error"  # type: ignore[index]


def named(spans: Sequence[ReadableSpan], name: str) -> list[ReadableSpan]:
    return sorted((span for span in spans if span.name == name), key=lambda span: span.start_time or 0)


async def test_the_run_of_a_sub_workflow_stands_below_the_attempt_that_it_carries_out(
    traced: System, collected: Collected
) -> None:
    async def search(task: Any) -> str:
        return "found"

    await traced.start_worker(search, tracing=worker_tracing(collected))
    child = workflow({"a": agent("search")}, name="child")
    await register_workflow(traced.database, parse_workflow(child), child)
    parent = workflow({"p": {"type": "sub_workflow", "workflow_id": "child"}}, name="parent")
    assert (await traced.run(parent)).status is ResultStatus.COMPLETED
    spans = collected.spans()
    assert connected(spans)
    below = {"step a": {f"{SENT}search": {f"{PROCESSED}search:agent.search": {}}}}
    asked = "send orchestrator.submit:orchestrator.runs"
    assert tree(spans, only(spans, "run parent").context.span_id) == {"step p": {asked: {"run child": below}}}


async def test_what_a_cancelled_run_had_begun_has_spans_and_what_waited_has_none(
    traced: System, collected: Collected
) -> None:
    begun = asyncio.Event()

    async def search(task: Any) -> None:
        if task["n"] == 0:
            raise ValueError("no luck")
        begun.set()
        await asyncio.Event().wait()

    await traced.start_worker(search, tracing=worker_tracing(collected), report_started_after=0)
    run_id = await traced.submit(one_block(4, agent_name="search", max_parallelism=1))
    await begun.wait()
    await traced.step_is(run_id, "b1", "RUNNING")
    await traced.cancel(run_id)
    assert await traced.ended(run_id) == "CANCELLED"
    await eventually(lambda: len(named(collected.spans(), f"{PROCESSED}search:agent.search")) == 2)
    spans = collected.spans()
    assert connected(spans)
    searched = {f"{SENT}search": {f"{PROCESSED}search:agent.search": {}}}
    assert tree(spans, run_span_id(run_id)) == {"block block": {"branch b0": searched, "branch b1": searched}}
    whole = only(spans, "block block")
    assert whole.attributes is not None
    assert (whole.attributes["forkjoin.branches"], whole.attributes["forkjoin.branches_failed"]) == (4, 1)
    ended = {span.name: span.attributes["forkjoin.status"] for span in spans if span.kind is SpanKind.INTERNAL}  # type: ignore[index]
    assert ended == {"block block": "CANCELLED", "branch b0": "FAILED", "branch b1": "CANCELLED"}


async def test_iterations_of_a_loop_share_the_names_of_their_spans(traced: System, collected: Collected) -> None:
    async def search(task: Any) -> str:
        return "found"

    await traced.start_worker(search, tracing=worker_tracing(collected))
    document = workflow({"each": loop("one", max_parallelism=2), "one": agent("search")}, name="looped")
    assert (await traced.run(document, [1, 2, 3])).status is ResultStatus.COMPLETED
    spans = collected.spans()
    assert connected(spans)
    assert len(named(spans, "branch one[]")) == 3


async def test_a_trace_that_is_not_sampled_is_passed_on_and_has_no_spans(traced: System, collected: Collected) -> None:
    seen: list[str | None] = []

    async def search(task: Any) -> None:
        seen.append(current_traceparent())

    await traced.start_worker(search, tracing=worker_tracing(collected))
    result = await ask(traced, one_block(1, agent_name="search"), UNSAMPLED)
    assert collected.spans() == []
    for context in (result.traceparent, *seen):
        assert context is not None
        assert context.startswith("00-0af7651916cd43dd8448eb211c80319c-")
        assert context.endswith("-00")


@pytest.mark.parametrize("limited", [False, True])
async def test_where_nobody_exports_spans_the_context_of_whoever_asks_is_passed_on(
    system: System, limited: bool
) -> None:
    seen: list[str | None] = []

    async def search(task: Any) -> None:
        seen.append(current_traceparent())

    await system.start_replica()
    await system.start_worker(search)
    if limited:
        limits = "INSERT INTO agent_limits (agent_name, max_concurrency, tokens, refilled_at, changed_at) "
        await system.fetch(limits + "VALUES ('search', 1, 0, now(), now())")
    result = await ask(system, one_block(2, agent_name="search"))
    assert [*seen, result.traceparent] == [CLIENTS] * 3


@pytest.mark.parametrize("wrong", ["", "nonsense", "00-0-0-00", CLIENTS.replace("00-", "ff-", 1), 7])
async def test_a_context_that_breaks_the_rules_counts_as_none(system: System, wrong: Any) -> None:
    seen: list[bool] = []

    async def search(task: Any) -> None:
        seen.append(get_current_span().get_span_context().is_valid)

    await system.start_replica()
    await system.start_worker(search)
    result = await ask(system, one_block(1, agent_name="search"), wrong)
    assert result.run.status is ResultStatus.COMPLETED
    assert (result.traceparent, seen) == (None, [False])


async def test_a_retried_run_belongs_to_the_trace_of_whoever_asks_for_that(
    traced: System, collected: Collected
) -> None:
    fails = True

    async def search(task: Any) -> str:
        if fails:
            raise ValueError("not yet")
        return "found"

    await traced.start_worker(search, tracing=worker_tracing(collected))
    first = await traced.run(workflow({"a": agent("search")}, name="again"))
    fails = False
    traced.client = Client(traced.broker, CLIENTS)
    again = await traced.retry(first.run_id)
    assert again.status is ResultStatus.COMPLETED
    one, two = named(collected.spans(), "run again")
    assert f"{one.context.trace_id:032x}" not in CLIENTS
    assert f"{two.context.trace_id:032x}" in CLIENTS
    assert two.attributes is not None
    assert two.attributes["forkjoin.retry_of"] == str(first.run_id)


@dataclass(frozen=True)
class Answer:
    """A RunResult, and the context that it came with."""

    run: RunResult
    traceparent: str | None


async def ask(system: System, document: dict[str, Any], traceparent: Any = CLIENTS) -> Answer:
    """Run a workflow, asked for by somebody who has a context."""
    queue = Queue(f"answers-{uuid4().hex}", QueueKind.EXCLUSIVE)
    replies = await system.broker.consume(queue, prefetch=1)
    request = OutgoingMessage(
        exchange=topology.SUBMIT_EXCHANGE,
        routing_key=topology.RUNS_KEY,
        type=RunRequest.__name__,
        message_id=uuid4().hex,
        body=encode(RunRequest(run_id=uuid4(), workflow=document)),
        reply_to=queue.name,
        headers={"traceparent": traceparent},
    )
    await system.broker.publish([request])
    async with asyncio.timeout(60):
        [delivery] = await replies.receive(1)
    await replies.ack([delivery])
    await replies.close()
    return Answer(decode(RunResult, delivery.body), delivery.headers.get("traceparent"))
