"""Spans that are written down when they are over, with ids that were known before."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol

from opentelemetry.trace import SpanContext, SpanKind


class Attribute(StrEnum):
    """Names of attributes: OpenTelemetry's for messaging, and our own."""

    SYSTEM = "messaging.system"
    OPERATION_NAME = "messaging.operation.name"
    OPERATION_TYPE = "messaging.operation.type"
    DESTINATION = "messaging.destination.name"
    ROUTING_KEY = "messaging.rabbitmq.destination.routing_key"
    MESSAGE_ID = "messaging.message.id"
    CONVERSATION_ID = "messaging.message.conversation_id"
    BODY_SIZE = "messaging.message.body.size"
    ERROR_TYPE = "error.type"
    RUN_ID = "forkjoin.run_id"
    WORKFLOW_ID = "forkjoin.workflow_id"
    STEP_ID = "forkjoin.step_id"
    PARENT_STEP_ID = "forkjoin.parent_step_id"
    BRANCH_NAME = "forkjoin.branch_name"
    AGENT_NAME = "forkjoin.agent_name"
    SUB_WORKFLOW_ID = "forkjoin.sub_workflow_id"
    TASK_ID = "forkjoin.task_id"
    ATTEMPT = "forkjoin.attempt"
    WORKER_ID = "forkjoin.worker_id"
    STATUS = "forkjoin.status"
    BRANCHES = "forkjoin.branches"
    BRANCHES_FAILED = "forkjoin.branches_failed"
    RETRY_OF = "forkjoin.retry_of"


Attributes = Mapping[str, str | int]


class Failure(NamedTuple):
    """Why a span stands for something that failed."""

    code: str
    message: str


class FinishedSpan(NamedTuple):
    """A span from its start to its end."""

    name: str
    kind: SpanKind
    context: SpanContext
    parent: SpanContext | None
    started_at: datetime
    finished_at: datetime
    attributes: Attributes
    failure: Failure | None = None


class SpanSink(Protocol):
    """Where finished spans go."""

    def begin(self, parent: SpanContext | None, name: str, span_id: int) -> SpanContext:
        """Return what a trace, or our part of one, begins with: *parent*, or else the span itself, of a new trace.

        Its flags tell whether the trace is sampled.
        """

    def add(self, span: FinishedSpan) -> None:
        """Have a span exported soon. It never waits; when there is no room, the span is dropped."""
