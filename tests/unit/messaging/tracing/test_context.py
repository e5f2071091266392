import pytest
from opentelemetry.trace import TraceFlags

from messaging.tracing.context import headers_of, read_context, with_span, written

CONTEXT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_context_is_read_and_written_as_the_header_has_it() -> None:
    context = read_context({"traceparent": CONTEXT, "other": 1})
    assert context is not None
    assert (context.trace_id, context.span_id) == (0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331)
    assert context.trace_flags == TraceFlags.SAMPLED
    assert written(context) == CONTEXT


@pytest.mark.parametrize(
    "given",
    [
        None, 7, b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "", "00", CONTEXT[:-1], CONTEXT.upper(),
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", "ff" + CONTEXT[2:], CONTEXT + "-more",
    ],
)  # fmt: skip
def test_what_breaks_the_rules_is_no_context(given: object) -> None:
    assert read_context({"traceparent": given}) is None


def test_another_span_of_the_same_trace_keeps_its_flags() -> None:
    assert with_span(CONTEXT, 1) == "00-0af7651916cd43dd8448eb211c80319c-0000000000000001-01"
    assert with_span(CONTEXT, 2**64 - 1) == "00-0af7651916cd43dd8448eb211c80319c-ffffffffffffffff-01"


def test_no_context_makes_no_header() -> None:
    assert headers_of(None) == {}
    assert headers_of(CONTEXT) == {"traceparent": CONTEXT}
