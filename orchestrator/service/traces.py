"""The traces of runs: which context a run begins with, and which one goes with its messages.

A run's row holds the context above the run's own span: that of whoever asked for it, or, where a new trace begins, the
run's own. All other ids follow from what is in the rows, so any replica knows them and nothing more is stored: the span
of a run has the first half of its id, that of an attempt the second half of its task id (the run of a sub-workflow has
the task id of an attempt for its id), that of a step a digest.

Where this process exports no spans, the context of whoever asked is passed on as it is.
"""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any
from uuid import UUID

from messaging.tracing.context import TRACEPARENT, read_context, with_span, written
from messaging.tracing.spans import SpanSink
from orchestrator.engine.decision import Send, SendResult, SendTask
from orchestrator.engine.records import Run


def run_span_id(run_id: UUID) -> int:
    """Return the id of a run's span."""
    return run_id.int >> 64 or 1


def attempt_span_id(task_id: UUID) -> int:
    """Return the id of an attempt's span."""
    return task_id.int & 0xFFFF_FFFF_FFFF_FFFF or 1


def step_span_id(run_id: UUID, step_id: str) -> int:
    """Return the id of a step's span."""
    return int.from_bytes(blake2b(step_id.encode(), digest_size=8, key=run_id.bytes).digest()) or 1


class RunTraces:
    """Gives runs and messages their contexts.

    Args:
        sink: Where the spans of this process go; None: it exports none.
    """

    def __init__(self, sink: SpanSink | None = None) -> None:
        self.sink = sink

    def begin(self, headers: Mapping[str, Any], run_id: UUID) -> str | None:
        """Return the context for the row of a run that is asked for by a message with these headers."""
        if self.sink is None and TRACEPARENT not in headers:
            return None
        above = read_context(headers)
        if self.sink is not None:
            above = self.sink.begin(above, "run", run_span_id(run_id))
        return written(above) if above is not None else None

    def of(self, run: Run, send: Send) -> str | None:
        """Return the context that goes with a message of the run."""
        match send:
            case SendTask(step) if step.task_id is not None:
                return self._with(run, attempt_span_id(step.task_id))
            case SendResult():
                return self._with(run, run_span_id(run.id))
            case _:
                return None

    def _with(self, run: Run, span_id: int) -> str | None:
        if run.traceparent is None or self.sink is None:
            return run.traceparent
        return with_span(run.traceparent, span_id)
