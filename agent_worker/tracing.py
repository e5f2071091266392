"""Spans of attempts: from the start of the agent to its report, below the context that came with the task.

The span is current while the agent runs, so what an agent's libraries tell stands below it. Where nobody has set up an
SDK in this process nothing is recorded, and agents still find the context that came with the task.
"""

from typing import Final

from opentelemetry.context import Context, attach
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
    get_tracer,
    set_span_in_context,
)

from agent_worker.attempts import Attempt
from agent_worker.execution import Outcome
from messaging.port import Delivery
from messaging.topology import TASKS_EXCHANGE
from messaging.tracing.context import TRACEPARENT, read_context, written
from messaging.tracing.opening import is_recorded
from messaging.tracing.spans import Attribute, Attributes
from schemas.messages import AgentError, AgentTask

SCOPE: Final = "forkjoin.agent_worker"
LONGEST_MESSAGE: Final = 1_000


class AttemptTracing:
    """Begins and ends the spans of one worker's attempts.

    Args:
        provider: Whose spans they are; None: of whichever the process has by then.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._tracer: Tracer | None = None
        if provider is not None or is_recorded():
            self._tracer = get_tracer(SCOPE, tracer_provider=provider)

    def begin(self, attempt: Attempt) -> None:
        """Begin the span of an attempt, in the task of the event loop that the attempt has for itself."""
        delivery = attempt.held[0].delivery
        if self._tracer is None and TRACEPARENT not in delivery.headers:
            return
        above = read_context(delivery.headers)
        context = set_span_in_context(NonRecordingSpan(above), Context()) if above is not None else Context()
        if self._tracer is not None:
            attempt.span = self._tracer.start_span(
                f"process {_destination(attempt.task, delivery)}",
                context,
                SpanKind.CONSUMER,
                _attributes(attempt.task, delivery),
            )
            context = set_span_in_context(attempt.span, context)
            above = attempt.span.get_span_context()
        attach(context)  # for good: the task ends with the attempt
        attempt.traceparent = written(above) if above is not None and above.is_valid else None


def end_span(attempt: Attempt, outcome: Outcome | None = None) -> None:
    """End the span of an attempt, unless it is over or there is none; without an outcome it was given up."""
    span, attempt.span = attempt.span, None
    if span is None:
        return
    if outcome is None:
        span.set_attribute(Attribute.STATUS, "CANCELLED" if attempt.cancelled else "GIVEN_UP")
    elif outcome.error is not None:
        _tell_failure(span, outcome.error)
    span.end()


def _tell_failure(span: Span, error: AgentError) -> None:
    span.set_attribute(Attribute.ERROR_TYPE, error.type)
    span.set_status(Status(StatusCode.ERROR, error.message[:LONGEST_MESSAGE]))
    trace = (error.details or {}).get("traceback")
    if isinstance(trace, str):
        told = {"exception.type": error.type, "exception.message": error.message, "exception.stacktrace": trace}
        span.add_event("exception", told)


def _destination(task: AgentTask, delivery: Delivery) -> str:
    return f"{TASKS_EXCHANGE}:{task.agent_name}:{delivery.queue}"


def _attributes(task: AgentTask, delivery: Delivery) -> Attributes:
    known = {
        Attribute.SYSTEM: "rabbitmq",
        Attribute.OPERATION_NAME: "process",
        Attribute.OPERATION_TYPE: "process",
        Attribute.DESTINATION: _destination(task, delivery),
        Attribute.ROUTING_KEY: delivery.routing_key,
        Attribute.MESSAGE_ID: delivery.message_id,
        Attribute.CONVERSATION_ID: delivery.correlation_id,
        Attribute.BODY_SIZE: len(delivery.body),
        Attribute.RUN_ID: str(task.run_id),
        Attribute.STEP_ID: task.step_id,
        Attribute.PARENT_STEP_ID: task.parent_step_id,
        Attribute.BRANCH_NAME: task.branch_name,
        Attribute.AGENT_NAME: task.agent_name,
        Attribute.TASK_ID: str(task.task_id),
        Attribute.ATTEMPT: task.attempt,
    }
    return {name: value for name, value in known.items() if value is not None}
