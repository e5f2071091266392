"""Spans of runs, steps and attempts, exported when their end is committed, by the replica that did that.

Should it die just then, the span is missing, and nothing else. A run has its steps below it, a block its branches, and
a step its attempts, each from being queued to its end; below an attempt is what the worker tells, or the run of the
sub-workflow that carries it out. A branch of several steps shows as these steps, with its name.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from itertools import chain
from typing import Final
from uuid import UUID

from opentelemetry.trace import SpanContext, SpanKind

from messaging import topology
from messaging.tracing.context import TRACEPARENT, read_context
from messaging.tracing.spans import Attribute, Attributes, Failure, FinishedSpan, SpanSink
from orchestrator.engine.records import Run, StepExecution
from orchestrator.service.batch import Committed
from orchestrator.service.traces import attempt_span_id, run_span_id, step_span_id
from schemas.messages import ErrorInfo
from schemas.statuses import RunStatus, StepStatus

LONGEST_MESSAGE: Final = 1_000
_POSITIONS: Final = re.compile(r"\[\d+\]")  # in the ids of steps in loops; names of spans are to be few
_REQUESTS: Final = f"{topology.SUBMIT_EXCHANGE}:{topology.RUNS_KEY}"


class RunSpans:
    """Exports the spans of what commits have ended."""

    def __init__(self, sink: SpanSink) -> None:
        self._sink = sink

    async def committed(self, batch: Committed) -> None:
        """Export what has ended; called after each commit."""
        contexts = {run_id: context for run_id, given in batch.traceparents.items() if (context := _sampled(given))}
        if contexts:
            for span in _spans(batch, contexts):
                self._sink.add(span)


def _sampled(traceparent: str) -> SpanContext | None:
    context = read_context({TRACEPARENT: traceparent})
    return context if context is not None and context.trace_flags.sampled else None


def _spans(batch: Committed, contexts: dict[UUID, SpanContext]) -> Iterator[FinishedSpan]:
    for step in batch.ended_attempts:
        if (above := contexts.get(step.run_id)) is not None:
            yield _attempt(above, step)
    for step in chain(batch.ended_steps, batch.interrupted_steps):
        if (above := contexts.get(step.run_id)) is not None:
            if step.task_id is not None:
                yield _attempt(above, step)
            yield _step(above, step)
    for run in batch.ended_runs:
        if (above := contexts.get(run.id)) is not None:
            yield _run(above, run)


def _run(above: SpanContext, run: Run) -> FinishedSpan:
    span_id = run_span_id(run.id)
    return FinishedSpan(
        name=f"run {run.workflow_id}",
        kind=SpanKind.CONSUMER,
        context=_context(above, span_id),
        parent=above if above.span_id != span_id else None,
        started_at=_time(run.started_at, run.finished_at),
        finished_at=_time(run.finished_at),
        attributes={
            **_messaging("process", _REQUESTS, topology.RUNS_KEY),
            Attribute.RUN_ID: str(run.id),
            Attribute.WORKFLOW_ID: run.workflow_id,
            Attribute.STATUS: run.status.value,
            **({Attribute.RETRY_OF: str(run.retry_of)} if run.retry_of is not None else {}),
        },
        failure=_failure(run.error) if run.status is RunStatus.FAILED else None,
    )


def _step(above: SpanContext, step: StepExecution) -> FinishedSpan:
    run_id, around = step.run_id, step.parent_step_id
    kind = "block" if step.branches is not None else "step" if around is None else "branch"
    parent_id = run_span_id(run_id) if around is None else step_span_id(run_id, around)
    counted = step.branches
    return FinishedSpan(
        name=f"{kind} {_POSITIONS.sub('[]', step.step_id)}",
        kind=SpanKind.INTERNAL,
        context=_context(above, step_span_id(run_id, step.step_id)),
        parent=_context(above, parent_id),
        started_at=_time(step.created_at, step.finished_at),
        finished_at=_time(step.finished_at),
        attributes={
            **_of_step(step),
            Attribute.STATUS: step.status.value,
            **({Attribute.BRANCHES: counted.total, Attribute.BRANCHES_FAILED: counted.failed} if counted else {}),
        },
        failure=_failure(step.error) if step.status is StepStatus.FAILED else None,
    )


def _attempt(above: SpanContext, step: StepExecution) -> FinishedSpan:
    assert step.task_id is not None, "an attempt has one"
    if step.sub_workflow_id is None:
        key = step.agent_name or ""
        sent = _messaging("send", f"{topology.TASKS_EXCHANGE}:{key}", key)
    else:
        sent = _messaging("send", _REQUESTS, topology.RUNS_KEY)
    return FinishedSpan(
        name=f"send {sent[Attribute.DESTINATION]}",
        kind=SpanKind.PRODUCER,
        context=_context(above, attempt_span_id(step.task_id)),
        parent=_context(above, step_span_id(step.run_id, step.step_id)),
        started_at=_time(step.queued_at, step.finished_at),
        finished_at=_time(step.finished_at),
        attributes={
            **sent,
            Attribute.CONVERSATION_ID: str(step.task_id),
            **_of_step(step),
            Attribute.TASK_ID: str(step.task_id),
            Attribute.ATTEMPT: step.attempt,
            **({Attribute.WORKER_ID: step.worker_id} if step.worker_id is not None else {}),
        },
        failure=_failure(step.error),
    )


def _of_step(step: StepExecution) -> Attributes:
    known = {
        Attribute.RUN_ID: str(step.run_id),
        Attribute.STEP_ID: step.step_id,
        Attribute.PARENT_STEP_ID: step.parent_step_id,
        Attribute.BRANCH_NAME: step.branch_name,
        Attribute.AGENT_NAME: step.agent_name,
        Attribute.SUB_WORKFLOW_ID: step.sub_workflow_id,
    }
    return {name: value for name, value in known.items() if value is not None}


def _messaging(operation: str, destination: str, key: str) -> dict[str, str]:
    return {
        Attribute.SYSTEM: "rabbitmq",
        Attribute.OPERATION_NAME: operation,
        Attribute.OPERATION_TYPE: operation,
        Attribute.DESTINATION: destination,
        Attribute.ROUTING_KEY: key,
    }


def _failure(error: ErrorInfo | None) -> Failure | None:
    return Failure(error.code, error.message[:LONGEST_MESSAGE]) if error is not None else None


def _context(above: SpanContext, span_id: int) -> SpanContext:
    return SpanContext(above.trace_id, span_id, is_remote=True, trace_flags=above.trace_flags)


def _time(*found: datetime | None) -> datetime:
    return next(time for time in found if time is not None)
