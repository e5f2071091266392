"""What the results queue holds, and what the log says of it."""

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from messaging.port import Delivery
from orchestrator.engine.inputs import ChildEnded, TaskReported
from orchestrator.service.intake import Refused
from orchestrator.service.readers import ResultReader
from schemas.codec import encode
from schemas.messages import AgentResult, RunResult
from schemas.statuses import ReportStatus, ResultStatus


def result(**fields: Any) -> AgentResult:
    return AgentResult(
        task_id=uuid.uuid4(),
        run_id=uuid.uuid4(),
        status=ReportStatus.COMPLETED,
        worker_id="worker-1",
        finished_at=datetime(2030, 1, 1, tzinfo=UTC),
        **fields,
    )


def delivery(body: bytes) -> Delivery:
    return Delivery("orchestrator.results", "", "", "AgentResult", "m", body, None, None, {}, False, (1, 1))


async def test_a_result_is_read_and_nothing_logged() -> None:
    report = result()
    with capture_logs() as lines:
        assert await ResultReader().read(delivery(encode(report))) == TaskReported(report)
    assert lines == []


async def test_a_result_that_took_longer_than_consumer_timeout_names_the_setting_in_the_log() -> None:
    report = result(consumer_timeout=1800.0)
    with capture_logs() as lines:
        assert await ResultReader().read(delivery(encode(report))) == TaskReported(report)
    (line,) = lines
    assert (line["action"], line["log_level"]) == ("agent_outlived_consumer_timeout", "warning")
    assert (line["setting"], line["seconds"], line["worker_id"]) == ("consumer_timeout", 1800.0, "worker-1")
    assert line["run_id"] == str(report.run_id)
    assert "rabbitmq.conf" in line["event"]


async def test_what_is_no_result_is_refused() -> None:
    with pytest.raises(Refused, match="JSON"):
        await ResultReader().read(delivery(b"nonsense"))


RUN, TASK = uuid.UUID(int=1), uuid.UUID(int=2)
ENDED = RunResult(run_id=TASK, status=ResultStatus.COMPLETED, output={"n": 1}, error=None)


def run_result(correlation_id: str | None, body: bytes | None = None) -> Delivery:
    content = encode(ENDED) if body is None else body
    return Delivery("orchestrator.results", "", "", "RunResult", "m", content, correlation_id, None, {}, False, (1, 1))


async def test_how_the_run_of_a_sub_workflow_ended_is_for_the_attempt_that_asked_for_it() -> None:
    assert await ResultReader().read(run_result(f"{RUN}/{TASK}")) == ChildEnded(RUN, TASK, ENDED)


@pytest.mark.parametrize("correlation_id", [None, "", "/", f"{RUN}", f"{RUN}/", f"{RUN}/{TASK}/{TASK}", "a/b"])
async def test_a_run_result_for_nobody_is_refused(correlation_id: str | None) -> None:
    with pytest.raises(Refused, match="correlation_id") as refused:
        await ResultReader().read(run_result(correlation_id))
    assert refused.value.reason.code == "unknown_correlation"


async def test_a_run_result_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(Refused, match="JSON"):
        await ResultReader().read(run_result(f"{RUN}/{TASK}", b"nonsense"))
