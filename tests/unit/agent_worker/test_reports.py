import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from agent_worker.execution import Outcome
from agent_worker.reports import ReportWriter
from schemas.codec import decode, encode
from schemas.messages import AgentError, AgentResult, AgentTask
from schemas.statuses import ReportStatus

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def writer() -> ReportWriter:
    return ReportWriter("worker-1", max_bytes=1_000)


def read(body: bytes) -> AgentResult:
    return decode(AgentResult, body)


def test_a_report_echoes_the_task_and_says_when_it_ran(writer: ReportWriter, task: Callable[..., AgentTask]) -> None:
    made = task()
    before = datetime.now(UTC)
    result = read(writer.final(made, Outcome(output={"a": 1}), STARTED))
    assert (result.task_id, result.run_id, result.worker_id) == (made.task_id, made.run_id, "worker-1")
    assert (result.status, result.output, result.error) == (ReportStatus.COMPLETED, {"a": 1}, None)
    assert result.started_at == STARTED
    assert result.finished_at is not None
    assert before <= result.finished_at <= datetime.now(UTC)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(output={"b": [1, None, "é"], "a": {"b": None}}),
        Outcome(output=None),
        Outcome(error=AgentError(type="quota", message="used up")),
        Outcome(error=AgentError(type="quota", message="used up", retryable=False, details={"a": None})),
    ],
)
@pytest.mark.parametrize("timeout", [None, 1800.0])
@pytest.mark.parametrize("started_at", [None, STARTED])
def test_a_report_is_written_as_the_message_that_it_is(
    writer: ReportWriter,
    task: Callable[..., AgentTask],
    outcome: Outcome,
    started_at: datetime | None,
    timeout: float | None,
) -> None:
    made = task()
    body = writer.final(made, outcome, started_at, timeout)
    result = read(body)
    assert (result.task_id, result.run_id, result.worker_id) == (made.task_id, made.run_id, "worker-1")
    assert (result.output, result.error) == (outcome.output, outcome.error)
    assert (result.started_at, result.consumer_timeout) == (started_at, timeout)
    assert body == encode(result)


def test_a_worker_id_that_no_reader_takes_is_refused_before_the_first_report() -> None:
    with pytest.raises(ValueError, match="worker_id"):
        ReportWriter("", max_bytes=1_000)


def test_a_sign_of_life_has_no_end(writer: ReportWriter, task: Callable[..., AgentTask]) -> None:
    body = writer.sign_of_life(task(), ReportStatus.STARTED, STARTED)
    assert read(body).started_at == STARTED
    assert "finished_at" not in json.loads(body)


def test_a_result_at_the_limit_is_sent_and_one_byte_more_is_too_large(task: Callable[..., AgentTask]) -> None:
    made, outcome = task(), Outcome(output="x" * 2_000)
    size = len(ReportWriter("worker-1", max_bytes=10_000).final(made, outcome, STARTED))
    assert read(ReportWriter("worker-1", size).final(made, outcome, STARTED)).status is ReportStatus.COMPLETED
    error = read(ReportWriter("worker-1", size - 1).final(made, outcome, STARTED)).error
    assert error is not None
    assert error.type == "payload_too_large"
    assert f"the result is {size:,} bytes long; the worker sends at most {size - 1:,}" in error.message


def test_a_failure_above_the_limit_loses_its_details_and_nothing_else(
    writer: ReportWriter, task: Callable[..., AgentTask]
) -> None:
    error = AgentError(type="quota", message="used up", retryable=False, details={"long": "x" * 2_000})
    told = read(writer.final(task(), Outcome(error=error), STARTED)).error
    assert told is not None
    assert (told.type, told.message, told.retryable) == ("quota", "used up", False)
    assert "details_dropped" in (told.details or {})


@pytest.mark.parametrize("output", [object(), float("nan"), "\ud800"])
def test_an_output_that_cannot_be_encoded_after_all_is_an_invalid_result(
    writer: ReportWriter, task: Callable[..., AgentTask], output: Any
) -> None:
    told = read(writer.final(task(), Outcome(output=output), STARTED)).error
    assert told is not None
    assert told.type == "invalid_result"


def test_a_report_that_the_broker_refused_for_its_size_is_replaced_by_a_failure(
    writer: ReportWriter, task: Callable[..., AgentTask]
) -> None:
    result = read(writer.refused_by_broker(task(), 123_456, STARTED))
    assert result.error is not None
    assert result.error.type == "payload_too_large"
    assert "123,456 bytes" in result.error.message
