"""Messages out: what a decision sends becomes an outbox row, and an outbox row an AMQP message."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, assert_never
from uuid import UUID, uuid4

from messaging import topology
from messaging.dead_letters import HEADER_PREFIX
from messaging.port import OutgoingMessage
from messaging.rabbitmq.encoding import carriable_headers
from messaging.tracing.context import headers_of
from orchestrator.engine import codes
from orchestrator.engine.decision import Send, SendCancellation, SendCancelRun, SendResult, SendTask, SendTicket
from orchestrator.engine.events import StatusChange
from orchestrator.engine.records import StepExecution
from orchestrator.service.notices import GateTicket
from orchestrator.storage.changes import OutboxRow
from orchestrator.storage.headers import headers_from_json
from schemas.codec import dump_checked, encode_checked, plain_fields, written_time
from schemas.messages import (
    AgentTask,
    BranchesCancelled,
    CancelRun,
    ErrorInfo,
    RunCancelled,
    RunEvent,
    RunRequest,
    RunResult,
)
from schemas.stored_json import StoredJson

EVENTS_PER_MESSAGE: Final = 500
_FOR_WHOEVER_LISTENS: Final = frozenset({topology.EVENTS_EXCHANGE, topology.WORKERS_EXCHANGE})
_FIRST_JOURNEY: Final = frozenset({"x-death", "x-delivery-count", "x-acquired-count", "CC", "BCC"})
_FIRST_JOURNEY_PREFIXES: Final = (HEADER_PREFIX, "x-first-death-", "x-last-death-")
MAX_ERROR_TEXT: Final = 10_000  # of an error that is sent where the whole result was too large


_OUTPUT: Final = b'"output":'
_NO_OUTPUT: Final = _OUTPUT + b"null"

NewId = Callable[[], UUID]


def outbox_row(run_id: UUID, send: Send, new_id: NewId) -> OutboxRow:
    """Return the outbox row of a message that a decision sends."""
    match send:
        case SendTask(step):
            return _task_row(step, new_id()) if step.sub_workflow_id is None else _request_row(step, new_id())
        case SendTicket(step):
            return _ticket_row(step, new_id())
        case SendResult(to, result):
            return OutboxRow(
                message_id=new_id(),
                run_id=run_id,
                step_id=None,
                task_id=None,
                exchange=topology.DEFAULT_EXCHANGE,
                routing_key=to.queue,
                type=RunResult.__name__,
                correlation_id=to.correlation_id,
                body=_result_body(result),
            )
        case SendCancellation():
            return _cancellation_row(send, new_id())
        case SendCancelRun():
            return _cancel_row(run_id, send, new_id())
        case _:
            assert_never(send)


def event_rows(run_id: UUID, changes: Sequence[StatusChange], new_id: NewId) -> Iterator[OutboxRow]:
    """Yield the outbox rows that tell of *changes*, many in each."""
    for start in range(0, len(changes), EVENTS_PER_MESSAGE):
        events = [_event(change) for change in changes[start : start + EVENTS_PER_MESSAGE]]
        yield OutboxRow(
            message_id=new_id(),
            run_id=run_id,
            step_id=None,
            task_id=None,
            exchange=topology.EVENTS_EXCHANGE,
            routing_key=topology.event_key(run_id),
            type=RunEvent.__name__,
            correlation_id=None,
            body=dump_checked({"version": RunEvent.VERSION, "run_id": run_id, "events": events}),
        )


def to_message(row: OutboxRow) -> OutgoingMessage:
    """Return the AMQP message of an outbox row. Only events and cancellations may find nobody who wants them."""
    if row.replay is not None:
        return _replayed(row, json.loads(row.replay))
    return OutgoingMessage(
        exchange=row.exchange,
        routing_key=row.routing_key,
        type=row.type,
        message_id=str(row.message_id),
        body=row.body,
        correlation_id=row.correlation_id,
        reply_to=topology.RESULTS_QUEUE.name if row.exchange == topology.SUBMIT_EXCHANGE else None,
        mandatory=row.exchange not in _FOR_WHOEVER_LISTENS,
        headers=headers_of(row.traceparent),
    )


def _replayed(row: OutboxRow, properties: Mapping[str, Any]) -> OutgoingMessage:
    headers = carriable_headers(headers_from_json(properties["headers"]))
    return OutgoingMessage(
        exchange=row.exchange,
        routing_key=row.routing_key,
        type=row.type,
        # One that had no id gets the row's, so that a repeat can be told from a second message.
        message_id=properties["message_id"] or str(row.message_id),
        body=row.body,
        correlation_id=row.correlation_id,
        reply_to=properties["reply_to"],
        headers={name: value for name, value in headers.items() if not _is_of_the_first_journey(name)},
    )


def _is_of_the_first_journey(header: str) -> bool:
    # RabbitMQ sends a message to the queues in CC and BCC too, and counts in the x- headers.
    return header in _FIRST_JOURNEY or header.startswith(_FIRST_JOURNEY_PREFIXES)


def without_output(row: OutboxRow) -> OutboxRow:
    """Return a RunResult that is too large to send as one that says so: how the run ended, but not its output."""
    result = RunResult.model_validate_json(row.body)
    message = f"the output makes a result of {len(row.body):,} bytes, more than the broker takes: read it from the run"
    error = result.error or ErrorInfo(code=codes.PAYLOAD_TOO_LARGE, message=message)
    brief = ErrorInfo(code=error.code, message=error.message[:MAX_ERROR_TEXT])
    body = encode_checked(result.model_copy(update={"output": None, "error": brief}))
    return row._replace(message_id=uuid4(), body=body)


def _task_row(step: StepExecution, message_id: UUID) -> OutboxRow:
    assert step.task_id is not None, "a dispatched step has a task id"
    assert step.agent_name is not None, "only agent steps are dispatched"
    return OutboxRow(
        message_id=message_id,
        run_id=step.run_id,
        step_id=step.step_id,
        task_id=step.task_id,
        exchange=topology.TASKS_EXCHANGE,
        routing_key=step.agent_name,
        type=AgentTask.__name__,
        correlation_id=str(step.task_id),
        body=dump_checked(_task(step)),
    )


def _request_row(step: StepExecution, message_id: UUID) -> OutboxRow:
    assert step.task_id is not None, "a dispatched step has a task id"
    version = step.sub_workflow_version
    request = {
        "version": RunRequest.VERSION,
        "run_id": step.task_id,
        "workflow_id": step.sub_workflow_id,
        **({"workflow_version": version} if version is not None else {}),
        "input": step.input,
        "parent_run_id": step.run_id,
    }
    return OutboxRow(
        message_id=message_id,
        run_id=step.run_id,
        step_id=step.step_id,
        task_id=step.task_id,
        exchange=topology.SUBMIT_EXCHANGE,
        routing_key=topology.RUNS_KEY,
        type=RunRequest.__name__,
        correlation_id=child_correlation(step.run_id, step.task_id),
        body=dump_checked(request),
    )


def child_correlation(run_id: UUID, task_id: UUID) -> str:
    """Return what the RunResult of a sub-workflow bears: for which run it is, and for which attempt of it."""
    return f"{run_id}/{task_id}"


# An AgentTask and a StepEvent as they are written: made of our own rows, whose values were checked at the door. Each
# branch makes one and three of these, and the models would cost as much as everything else that is done for it here.


def _task(step: StepExecution) -> dict[str, Any]:
    silence = step.heartbeat_timeout_seconds
    return {
        "version": AgentTask.VERSION,
        "task_id": step.task_id,
        "run_id": step.run_id,
        "step_id": step.step_id,
        **({"parent_step_id": step.parent_step_id} if step.parent_step_id is not None else {}),
        **({"branch_name": step.branch_name} if step.branch_name is not None else {}),
        "agent_name": step.agent_name,
        "attempt": step.attempt,
        "input": step.input,
        **({"timeout_seconds": step.timeout_seconds} if step.timeout_seconds is not None else {}),
        **({"heartbeat_timeout_seconds": silence} if silence is not None else {}),
    }


def _event(change: StatusChange) -> dict[str, Any]:
    return {
        "step_id": change.step_id,
        **({"parent_step_id": change.parent_step_id} if change.parent_step_id is not None else {}),
        **({"branch_name": change.branch_name} if change.branch_name is not None else {}),
        "status": change.status,
        "attempt": change.attempt,
        "at": written_time(change.at),
        **({"error": plain_fields(change.error)} if change.error is not None else {}),
    }


def _result_body(result: RunResult) -> bytes:
    if not isinstance(result.output, StoredJson):
        return encode_checked(result)
    # The output goes in as it is stored. Nothing before that field holds a text that is not ours.
    before, after = encode_checked(result.model_copy(update={"output": None})).split(_NO_OUTPUT, 1)
    return b"".join((before, _OUTPUT, result.output.text.encode(), after))


def _ticket_row(step: StepExecution, message_id: UUID) -> OutboxRow:
    assert step.parent_step_id is not None, "only branches wait at a gate"
    return OutboxRow(
        message_id=message_id,
        run_id=step.run_id,
        step_id=step.step_id,
        task_id=None,
        exchange=topology.GATES_EXCHANGE,
        routing_key=topology.gate_key(step.run_id, step.parent_step_id),
        type=GateTicket.__name__,
        correlation_id=None,
        body=encode_checked(GateTicket(run_id=step.run_id, block_id=step.parent_step_id, step_id=step.step_id)),
    )


def _cancel_row(run_id: UUID, cancelled: SendCancelRun, message_id: UUID) -> OutboxRow:
    return OutboxRow(
        message_id=message_id,
        run_id=run_id,
        step_id=None,
        task_id=None,
        exchange=topology.DEFAULT_EXCHANGE,
        routing_key=topology.COMMANDS_QUEUE.name,
        type=CancelRun.__name__,
        correlation_id=None,
        body=encode_checked(CancelRun(run_id=cancelled.run_id, reason=cancelled.reason)),
    )


def _cancellation_row(cancelled: SendCancellation, message_id: UUID) -> OutboxRow:
    run_id, block_id = cancelled.run_id, cancelled.block_id
    told = RunCancelled(run_id=run_id) if block_id is None else BranchesCancelled(run_id=run_id, block_id=block_id)
    return OutboxRow(
        message_id=message_id,
        run_id=run_id,
        step_id=None,
        task_id=None,
        exchange=topology.WORKERS_EXCHANGE,
        routing_key=topology.CANCELLED_KEY,
        type=type(told).__name__,
        correlation_id=None,
        body=encode_checked(told),
    )
