"""How spans are exported, and what a service says of it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from structlog.testing import capture_logs

from messaging.tracing.sdk import Exporter
from messaging.tracing.spans import FinishedSpan

TIME = datetime(2030, 1, 1, 12, 0, 0, 123_457, tzinfo=UTC)
TRACE = 0x0AF7651916CD43DD8448EB211C80319C
CLIENT = SpanContext(TRACE, 5, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class Collector(SpanExporter):
    """Answers as it is told, and keeps what came."""

    def __init__(self) -> None:
        self.result = SpanExportResult.SUCCESS
        self.spans: list[ReadableSpan] = []
        self.open = threading.Event()
        self.open.set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.open.wait()
        self.spans += spans
        return self.result

    def shutdown(self) -> None:
        self.open.set()


@pytest.fixture
def collector() -> Collector:
    return Collector()


Make = Callable[..., Exporter]


@pytest.fixture
def make(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[Exporter] = []

    def make(**environment: str) -> Exporter:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        made.append(Exporter("service", "instance-1", collector))
        return made[-1]

    yield make
    for exporter in made:
        exporter.close(10)


def finished(span_id: int = 7, parent: SpanContext | None = CLIENT, flags: int = 1) -> FinishedSpan:
    context = SpanContext(TRACE, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return FinishedSpan("name", SpanKind.INTERNAL, context, parent, TIME, TIME + timedelta(seconds=2), {"key": "value"})


def test_a_span_is_exported_with_its_own_ids_times_and_attributes(make: Make, collector: Collector) -> None:
    exporter = make()
    exporter.add(finished())
    exporter.add(finished(8, parent=None))
    exporter.provider.force_flush()
    below, root = sorted(collector.spans, key=lambda span: span.context.span_id)
    assert (below.context.trace_id, below.context.span_id) == (TRACE, 7)
    assert below.parent is not None
    assert below.parent.span_id == 5
    assert below.start_time == int(TIME.timestamp()) * 10**9 + 123_457_000
    assert below.end_time is not None
    assert below.end_time - below.start_time == 2 * 10**9
    assert dict(below.attributes or {}) == {"key": "value"}
    assert (root.context.trace_id, root.context.span_id, root.parent) == (TRACE, 8, None)
    assert below.resource.attributes["service.name"] == "service"
    assert below.resource.attributes["service.instance.id"] == "instance-1"


def test_the_environment_may_name_the_service_otherwise(make: Make, collector: Collector) -> None:
    exporter = make(OTEL_SERVICE_NAME="mine", OTEL_RESOURCE_ATTRIBUTES="deployment.environment=test")
    exporter.add(finished())
    exporter.provider.force_flush()
    attributes = collector.spans[0].resource.attributes
    assert (attributes["service.name"], attributes["deployment.environment"]) == ("mine", "test")


def test_spans_of_others_in_the_process_have_ids_of_their_own(make: Make, collector: Collector) -> None:
    exporter = make()
    exporter.add(finished())
    exporter.provider.get_tracer("a library").start_span("theirs").end()
    exporter.provider.force_flush()
    assert len({span.context.span_id for span in collector.spans}) == 2
    assert len({span.context.trace_id for span in collector.spans}) == 2


def test_a_trace_begins_where_nobody_has_one_and_is_gone_on_with_elsewhere(make: Make) -> None:
    exporter = make()
    new = exporter.begin(None, "run", 9)
    assert (new.span_id, new.trace_flags, new.is_valid) == (9, TraceFlags.SAMPLED, True)
    assert exporter.begin(CLIENT, "run", 9) == CLIENT


@pytest.mark.parametrize(("sampler", "sampled"), [("always_off", 0), ("parentbased_always_off", 1)])
def test_the_sampler_of_the_environment_decides(make: Make, collector: Collector, sampler: str, sampled: int) -> None:
    exporter = make(OTEL_TRACES_SAMPLER=sampler)
    assert exporter.begin(None, "run", 9).trace_flags == TraceFlags.DEFAULT
    assert exporter.begin(CLIENT, "run", 9).trace_flags == sampled
    exporter.add(finished())
    exporter.provider.force_flush()
    assert len(collector.spans) == sampled


def test_trouble_is_told_when_it_begins_and_when_it_ends(make: Make, collector: Collector) -> None:
    exporter = make()
    with capture_logs() as lines:
        for result in (SpanExportResult.FAILURE, SpanExportResult.FAILURE, SpanExportResult.SUCCESS):
            collector.result = result
            exporter.add(finished())
            exporter.provider.force_flush()
    assert [line["action"] for line in lines] == ["spans_lost", "spans_exported"]


def test_a_collector_that_does_not_answer_is_waited_for_no_longer_than_that(make: Make, collector: Collector) -> None:
    exporter = make()
    collector.open.clear()
    exporter.add(finished())
    exporter.close(0.05)
    assert collector.open.is_set(), "its export was interrupted"
