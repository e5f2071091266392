"""Trace contexts as messages carry them: the header `traceparent` of W3C Trace Context, version 00.

It reads `00-<trace id>-<span id>-<flags>`, in lower-case hexadecimal digits.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from opentelemetry.trace import SpanContext, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT: Final = "traceparent"
_PROPAGATOR: Final = TraceContextTextMapPropagator()
_SPAN_ID: Final = slice(36, 52)
_NONE: Final[Mapping[str, str]] = MappingProxyType({})  # one for all: there is a message for each branch


def read_context(headers: Mapping[str, Any]) -> SpanContext | None:
    """Return the context that a message carries; None where it has none, or one that breaks the rules."""
    given = headers.get(TRACEPARENT)
    if not isinstance(given, str):
        return None
    found = get_current_span(_PROPAGATOR.extract({TRACEPARENT: given})).get_span_context()
    return found if found.is_valid else None


def written(context: SpanContext) -> str:
    """Return a context as the header has it."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def current_traceparent() -> str | None:
    """Return the context of the span that is current here; None where none is."""
    context = get_current_span().get_span_context()
    return written(context) if context.is_valid else None


def with_span(traceparent: str, span_id: int) -> str:
    """Return the context of another span of the same trace."""
    return f"{traceparent[: _SPAN_ID.start]}{span_id:016x}{traceparent[_SPAN_ID.stop :]}"


def headers_of(traceparent: str | None) -> Mapping[str, str]:
    """Return the headers of a message that goes with a context."""
    return {TRACEPARENT: traceparent} if traceparent is not None else _NONE
