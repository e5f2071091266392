"""Spans by OpenTelemetry's SDK, sent as OTLP over HTTP. The only module that knows of the SDK (extra `tracing`).

Where they go, how many are sampled and so on is said by OpenTelemetry's own environment variables (`OTEL_…`).
"""

import logging
import os
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Final

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_BSP_MAX_QUEUE_SIZE
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
    set_tracer_provider,
)

from messaging.tracing.spans import Attribute, FinishedSpan

MAX_QUEUE: Final = 16_384  # spans that wait to be exported, unless OTEL_BSP_MAX_QUEUE_SIZE says another number
SCOPE: Final = "forkjoin"
LONGEST_REASON: Final = 500

log = structlog.get_logger(__name__)

_chosen: ContextVar[SpanContext | None] = ContextVar("chosen", default=None)


class Exporter:
    """Exports spans, of one process.

    Args:
        service: The `service.name`, unless the environment has one.
        instance: The `service.instance.id`.
        exporter: Where batches of spans go; by default to the collector that the environment names.
    """

    def __init__(self, service: str, instance: str, exporter: SpanExporter | None = None) -> None:
        room = None if OTEL_BSP_MAX_QUEUE_SIZE in os.environ else MAX_QUEUE
        self.provider = TracerProvider(
            resource=_resource(service, instance), id_generator=_Ids(), shutdown_on_exit=False
        )
        self._exporter = _TellingExporter(exporter if exporter is not None else OTLPSpanExporter())
        self.provider.add_span_processor(BatchSpanProcessor(self._exporter, max_queue_size=room))
        self._tracer = self.provider.get_tracer(SCOPE)

    def begin(self, parent: SpanContext | None, name: str, span_id: int) -> SpanContext:
        """Return what our part of a trace begins with; see `SpanSink`."""
        trace_id = parent.trace_id if parent is not None else self.provider.id_generator.generate_trace_id()
        sampled = self.provider.sampler.should_sample(_below(parent), trace_id, name, SpanKind.CONSUMER)
        flags = parent.trace_flags & ~TraceFlags.SAMPLED if parent is not None else TraceFlags.DEFAULT
        if sampled.decision is Decision.RECORD_AND_SAMPLE:
            flags |= TraceFlags.SAMPLED
        return SpanContext(trace_id, parent.span_id if parent is not None else span_id, True, TraceFlags(flags))

    def add(self, span: FinishedSpan) -> None:
        """Have a span exported soon; see `SpanSink`."""
        token = _chosen.set(span.context)
        try:
            started = self._tracer.start_span(
                span.name,
                context=_below(span.parent),
                kind=span.kind,
                attributes=span.attributes,
                start_time=_nanoseconds(span.started_at),
                record_exception=False,
            )
        finally:
            _chosen.reset(token)
        if span.failure is not None:
            started.set_attribute(Attribute.ERROR_TYPE, span.failure.code)
            started.set_status(Status(StatusCode.ERROR, span.failure.message))
        started.end(_nanoseconds(span.finished_at))

    def use_for_agents(self) -> None:
        """Let the spans of this process that others start go the same way."""
        set_tracer_provider(self.provider)

    def close(self, seconds: float) -> None:
        """Export what waits; what takes longer than so many seconds is lost."""
        closing = threading.Thread(target=self.provider.shutdown, name="spans", daemon=True)
        closing.start()
        closing.join(seconds)
        if closing.is_alive():
            self._exporter.give_up()


class _Ids(RandomIdGenerator):
    """Random ids, unless they were chosen."""

    def generate_span_id(self) -> int:
        chosen = _chosen.get()
        return chosen.span_id if chosen is not None else super().generate_span_id()

    def generate_trace_id(self) -> int:
        chosen = _chosen.get()
        return chosen.trace_id if chosen is not None else super().generate_trace_id()


class _TellingExporter(SpanExporter):
    """Says once when spans cannot be exported, and once when they can be again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._reasons = _Reasons()
        self._troubled = False
        self._over = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        failed = result is not SpanExportResult.SUCCESS
        if failed and not self._troubled:
            log.warning(
                "Spans cannot be exported, and are lost meanwhile; the work goes on",
                action="spans_lost",
                setting="OTEL_EXPORTER_OTLP_ENDPOINT",
                reason=self._reasons.last,
            )
        elif self._troubled and not failed:
            log.info("Spans are exported again", action="spans_exported")
        self._troubled = failed
        return result

    def shutdown(self) -> None:
        self.give_up()

    def give_up(self) -> None:
        """Interrupt an export that waits for the collector."""
        if not self._over:
            self._over = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Reasons(logging.Handler):
    """Keeps what the exporters of OpenTelemetry log, which is a line for each try."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        exporters = logging.getLogger("opentelemetry.exporter")
        exporters.addHandler(self)
        exporters.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()[:LONGEST_REASON]


def _resource(service: str, instance: str) -> Resource:
    said = OTELResourceDetector().detect().attributes
    ours = {SERVICE_NAME: service, SERVICE_INSTANCE_ID: instance}
    return Resource.create({name: value for name, value in ours.items() if name not in said})


def _below(parent: SpanContext | None) -> Context:
    """Return the context of a span whose parent that is; an empty one makes it a root."""
    return set_span_in_context(NonRecordingSpan(parent), Context()) if parent is not None else Context()


def _nanoseconds(time: datetime) -> int:
    return int(time.timestamp() * 1_000_000) * 1000
