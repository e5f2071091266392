"""What a decision sends, as outbox rows and as AMQP messages."""

import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from messaging import topology
from messaging.port import OutgoingMessage
from messaging.rabbitmq.encoding import encode_message
from orchestrator.engine.decision import SendCancellation, SendCancelRun, SendResult, SendTask, SendTicket
from orchestrator.engine.events import StatusChange
from orchestrator.engine.records import ReplyAddress, StepExecution
from orchestrator.service.outgoing import EVENTS_PER_MESSAGE, event_rows, outbox_row, to_message
from orchestrator.storage.changes import OutboxRow
from schemas.codec import decode, encode
from schemas.messages import (
    AgentTask,
    CancelRun,
    ErrorInfo,
    RunCancelled,
    RunEvent,
    RunRequest,
    RunResult,
    StepEvent,
)
from schemas.statuses import ResultStatus, StepStatus
from schemas.stored_json import StoredJson

RUN, TASK = UUID(int=1), UUID(int=2)
AT = datetime(2030, 1, 2, tzinfo=UTC)


def branch(**fields: Any) -> StepExecution:
    given = {
        "run_id": RUN,
        "step_id": "step-a",
        "status": StepStatus.QUEUED,
        "parent_step_id": "block",
        "branch_name": "step-a",
        "agent_name": "research",
        "attempt": 1,
        "task_id": TASK,
        "input": {"größe": [1, None]},
    }
    return StepExecution(**given | fields)


def test_a_task_goes_to_its_agent_and_carries_what_the_worker_needs() -> None:
    row = outbox_row(RUN, SendTask(branch(timeout_seconds=2.5)), uuid4)
    assert (row.exchange, row.routing_key, row.type) == ("orchestrator.tasks", "research", "AgentTask")
    assert (row.run_id, row.step_id, row.task_id, row.correlation_id) == (RUN, "step-a", TASK, str(TASK))
    assert decode(AgentTask, row.body) == AgentTask(
        task_id=TASK,
        run_id=RUN,
        step_id="step-a",
        parent_step_id="block",
        branch_name="step-a",
        agent_name="research",
        attempt=1,
        input={"größe": [1, None]},
        timeout_seconds=2.5,
    )


def test_a_task_leaves_out_what_it_has_not_but_never_its_input() -> None:
    row = outbox_row(RUN, SendTask(branch(parent_step_id=None, branch_name=None, input=None)), uuid4)
    body = json.loads(row.body)
    assert body["input"] is None
    assert not {"parent_step_id", "branch_name", "timeout_seconds"} & body.keys()


def test_a_ticket_goes_to_the_gate_of_its_block_and_is_no_task() -> None:
    row = outbox_row(RUN, SendTicket(branch(status=StepStatus.PENDING, task_id=None, attempt=0)), uuid4)
    assert (row.exchange, row.routing_key) == ("orchestrator.gates", topology.gate_key(RUN, "block"))
    assert row.task_id is None
    assert json.loads(row.body) == {"version": 1, "run_id": str(RUN), "block_id": "block", "step_id": "step-a"}


@pytest.mark.parametrize("correlation_id", [None, "mine-17"])
def test_a_result_goes_to_the_queue_that_the_client_named(correlation_id: str | None) -> None:
    error = ErrorInfo(code="step_failed", message="no")
    result = RunResult(run_id=RUN, status=ResultStatus.FAILED, output=None, error=error)
    row = outbox_row(RUN, SendResult(ReplyAddress("my-replies", correlation_id), result), uuid4)
    assert (row.exchange, row.routing_key, row.correlation_id) == ("", "my-replies", correlation_id)
    assert decode(RunResult, row.body) == result
    assert json.loads(row.body)["output"] is None


def test_a_stored_output_travels_in_its_own_text() -> None:
    text = '{"z":1.50,"a":"\\u00f6 \\"output\\":null"}'
    result = RunResult(run_id=RUN, status=ResultStatus.COMPLETED, output=StoredJson(text), error=None)
    row = outbox_row(RUN, SendResult(ReplyAddress("my-replies", None), result), uuid4)
    assert text.encode() in row.body
    assert decode(RunResult, row.body).output == json.loads(text)
    assert json.loads(row.body).keys() == {"version", "run_id", "status", "output", "error"}


def changes(number: int) -> list[StatusChange]:
    return [StatusChange(f"b{place}", None, None, StepStatus.QUEUED, 1, AT, None) for place in range(number)]


def test_many_events_share_messages_and_keep_their_order() -> None:
    rows = list(event_rows(RUN, changes(2 * EVENTS_PER_MESSAGE + 1), uuid4))
    bodies = [decode(RunEvent, row.body) for row in rows]
    assert [len(body.events) for body in bodies] == [EVENTS_PER_MESSAGE, EVENTS_PER_MESSAGE, 1]
    assert [event.step_id for body in bodies for event in body.events] == [
        change.step_id for change in changes(2 * EVENTS_PER_MESSAGE + 1)
    ]
    assert {(row.exchange, row.routing_key) for row in rows} == {("orchestrator.events", f"run.{RUN}")}


def test_an_event_is_written_as_the_model_of_the_contract_would_be() -> None:
    error = ErrorInfo(code="timeout", message="too long")
    told = [
        StatusChange("a", "block", "a", StepStatus.FAILED, 1, AT, error),
        StatusChange(None, None, None, StepStatus.RUNNING, 0, AT, None),
    ]
    (row,) = event_rows(RUN, told, uuid4)
    assert row.body == encode(RunEvent(run_id=RUN, events=[StepEvent(**change._asdict()) for change in told]))


@pytest.mark.parametrize("fields", [{}, {"parent_step_id": None, "branch_name": None}, {"timeout_seconds": 2.5}])
def test_a_task_is_written_as_the_model_of_the_contract_would_be(fields: dict[str, Any]) -> None:
    row = outbox_row(RUN, SendTask(branch(**fields)), uuid4)
    assert row.body == encode(decode(AgentTask, row.body))


def test_no_events_are_no_message() -> None:
    assert list(event_rows(RUN, [], uuid4)) == []


def test_every_message_has_an_id_of_its_own() -> None:
    rows = [outbox_row(RUN, SendTask(branch()), uuid4) for _ in range(3)] + list(event_rows(RUN, changes(1_000), uuid4))
    assert len({row.message_id for row in rows}) == len(rows)


def test_a_cancellation_goes_to_all_workers() -> None:
    row = outbox_row(RUN, SendCancellation(RUN), uuid4)
    assert (row.exchange, row.routing_key, row.type) == ("orchestrator.workers", "cancelled", "RunCancelled")
    assert (row.run_id, row.step_id, row.task_id) == (RUN, None, None)
    assert decode(RunCancelled, row.body) == RunCancelled(run_id=RUN)


def test_only_events_and_cancellations_may_find_nobody_who_wants_them() -> None:
    result = RunResult(run_id=RUN, status=ResultStatus.COMPLETED, output=1, error=None)
    rows = [
        outbox_row(RUN, SendTask(branch()), uuid4),
        outbox_row(RUN, SendTicket(branch()), uuid4),
        outbox_row(RUN, SendResult(ReplyAddress("q", "c"), result), uuid4),
        outbox_row(RUN, SendCancellation(RUN), uuid4),
        *event_rows(RUN, changes(1), uuid4),
    ]
    assert [to_message(row).mandatory for row in rows] == [True, True, True, False, False]


def test_a_message_is_its_row() -> None:
    row = outbox_row(uuid4(), SendTask(branch()), uuid4)
    message = to_message(row)
    assert (message.exchange, message.routing_key, message.type, message.body) == (
        row.exchange,
        row.routing_key,
        row.type,
        row.body,
    )
    assert (message.message_id, message.correlation_id) == (str(row.message_id), row.correlation_id)
    assert message.persistent


def replayed(row_id: UUID = RUN, **properties: Any) -> OutgoingMessage:
    known = {"message_id": "m-1", "reply_to": "replies", "headers": {}, "exchange": "e", "routing_key": "k"}
    return to_message(
        OutboxRow(
            message_id=row_id,
            run_id=None,
            step_id=None,
            task_id=None,
            exchange="",
            routing_key="agent.a",
            type="AgentTask",
            correlation_id="c",
            body=b"{}",
            replay=json.dumps(known | properties),
        )
    )


def test_a_replay_is_the_original_message_addressed_to_its_queue() -> None:
    assert replayed(headers={"kept": {"$time": "2026-01-02T00:00:00+00:00"}}) == OutgoingMessage(
        exchange="", routing_key="agent.a", type="AgentTask", message_id="m-1", body=b"{}", correlation_id="c",
        reply_to="replies", headers={"kept": datetime(2026, 1, 2, tzinfo=UTC)}, mandatory=True,
    )  # fmt: skip


def test_a_replay_without_an_id_has_that_of_its_row_each_time_it_is_sent() -> None:
    assert replayed(message_id=None).message_id == str(RUN)


def test_a_replay_leaves_behind_what_would_send_it_elsewhere_or_count_on() -> None:
    names = ["CC", "BCC", "x-death", "x-first-death-queue", "x-last-death-reason", "x-delivery-count"]
    headers = dict.fromkeys([*names, "x-forkjoin-unreadable-headers"], "gone") | {"x-kept": 1, "cc": 2}
    assert replayed(headers=headers).headers == {"x-kept": 1, "cc": 2}


def test_a_replay_has_only_headers_that_can_be_written() -> None:
    message = replayed(headers={"bytes": {"$bytes": "/w=="}, "huge": {"$float": "1e+300"}})
    encode_message(message, 1, 131_072)
    assert message.headers["bytes"] == b"\xff"


@pytest.mark.parametrize("version", [None, "2.0"])
def test_a_sub_workflow_goes_out_as_a_request_whose_result_comes_back_for_its_attempt(version: str | None) -> None:
    step = branch(agent_name=None, sub_workflow_id="below", sub_workflow_version=version)
    row = outbox_row(RUN, SendTask(step), uuid4)
    assert (row.exchange, row.routing_key, row.type) == ("orchestrator.submit", "orchestrator.runs", "RunRequest")
    assert (row.run_id, row.step_id, row.task_id, row.correlation_id) == (RUN, "step-a", TASK, f"{RUN}/{TASK}")
    assert decode(RunRequest, row.body) == RunRequest(
        run_id=TASK,
        workflow_id="below",
        workflow_version=version,
        input={"größe": [1, None]},
        parent_run_id=RUN,
    )
    message = to_message(row)
    assert (message.reply_to, message.correlation_id, message.mandatory) == (
        topology.RESULTS_QUEUE.name,
        f"{RUN}/{TASK}",
        True,
    )


def test_a_run_that_nobody_waits_for_is_stopped_as_an_operator_would() -> None:
    row = outbox_row(RUN, SendCancelRun(TASK, "enough"), uuid4)
    assert (row.exchange, row.routing_key, row.type) == ("", "orchestrator.commands", "CancelRun")
    assert decode(CancelRun, row.body) == CancelRun(run_id=TASK, reason="enough")
    assert to_message(row).mandatory
