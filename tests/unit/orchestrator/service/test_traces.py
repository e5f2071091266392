"""Which context a run begins with, and which one goes with its messages."""

from uuid import UUID, uuid4

import pytest
from opentelemetry.trace import SpanContext, TraceFlags

from messaging.tracing.context import read_context
from messaging.tracing.spans import FinishedSpan
from orchestrator.engine.decision import Send, SendCancellation, SendCancelRun, SendResult, SendTask, SendTicket
from orchestrator.engine.records import ReplyAddress
from orchestrator.service.traces import RunTraces, attempt_span_id, run_span_id, step_span_id
from schemas.messages import RunResult
from schemas.statuses import ResultStatus
from tests.unit.orchestrator.engine.scene import RUN, branch_row, run_row

CLIENTS = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TASK = UUID("11111111-1111-4111-8222-222222222222")
RESULT = SendResult(ReplyAddress("q", None), RunResult(run_id=RUN, status=ResultStatus.COMPLETED, output=1, error=None))
WITHOUT: list[Send] = [SendTicket(branch_row("a")), SendCancellation(RUN), SendCancelRun(RUN, "enough")]


class Sink:
    """Samples everything."""

    def begin(self, parent: SpanContext | None, name: str, span_id: int) -> SpanContext:
        return parent or SpanContext(1, span_id, is_remote=True, trace_flags=TraceFlags(1))

    def add(self, span: FinishedSpan) -> None:
        raise AssertionError("nothing has ended")


def test_a_new_trace_begins_with_the_span_of_the_run_itself() -> None:
    begun = read_context({"traceparent": RunTraces(Sink()).begin({}, RUN)})
    assert begun is not None
    assert (begun.trace_id, begun.span_id) == (1, run_span_id(RUN))


def test_whoever_asks_is_above_the_run() -> None:
    for traces in (RunTraces(), RunTraces(Sink())):
        assert traces.begin({"traceparent": CLIENTS}, RUN) == CLIENTS


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}])
def test_where_nobody_traces_there_is_no_context(headers: dict[str, str]) -> None:
    traces = RunTraces()
    assert traces.begin(headers, RUN) is None
    assert traces.of(run_row(), SendTask(branch_row("a", task_id=TASK))) is None
    assert traces.of(run_row(), RESULT) is None


def test_a_task_goes_with_the_span_of_its_attempt_and_a_result_with_that_of_its_run() -> None:
    traces, run = RunTraces(Sink()), run_row(id=UUID("11111111-1111-4111-8333-333333333333"), traceparent=CLIENTS)
    trace = CLIENTS[:36]
    assert traces.of(run, SendTask(branch_row("a", task_id=TASK))) == f"{trace}{TASK.hex[16:]}-01"
    assert traces.of(run, RESULT) == f"{trace}{run.id.hex[:16]}-01"


def test_where_no_spans_are_exported_both_go_with_the_context_of_whoever_asked() -> None:
    traces, run = RunTraces(), run_row(traceparent=CLIENTS)
    assert traces.of(run, SendTask(branch_row("a", task_id=TASK))) == CLIENTS
    assert traces.of(run, RESULT) == CLIENTS


@pytest.mark.parametrize("send", WITHOUT, ids=lambda send: type(send).__name__)
def test_other_messages_go_with_none(send: Send) -> None:
    assert RunTraces(Sink()).of(run_row(traceparent=CLIENTS), send) is None


def test_ids_of_spans_follow_from_those_of_rows_and_differ() -> None:
    run_id = uuid4()
    ids = {run_span_id(run_id), attempt_span_id(run_id), step_span_id(run_id, "a"), step_span_id(run_id, "b")}
    ids |= {step_span_id(uuid4(), "a"), run_span_id(uuid4())}
    assert len(ids) == 6
    assert all(0 < one < 2**64 for one in ids)
    assert step_span_id(run_id, "a") == step_span_id(UUID(str(run_id)), "a")
    assert run_span_id(UUID(int=1)) == attempt_span_id(UUID(int=1)) == 1, "there is no span with the id 0"
