"""What the results queue holds, and what the log says of it."""

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from structlog.testing import capture_logs

from messaging.port import Delivery
from orchestrator.engine import codes
from orchestrator.engine.decision import Verdict
from orchestrator.engine.inputs import ChildEnded, TaskReported
from orchestrator.service.batch import Answer
from orchestrator.service.identities import Identities
from orchestrator.service.intake import Item, Refused
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


def delivery(body: bytes, user_id: str | None = None) -> Delivery:
    return Delivery("orchestrator.results", "", "", "AgentResult", "m", body, None, None, {}, False, (1, 1), user_id)


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


async def test_the_result_of_another_run_than_the_one_that_the_step_waits_for_is_refused() -> None:
    with pytest.raises(Refused, match="not the one that the step waits for") as refused:
        await ResultReader().read(run_result(f"{RUN}/{TASK}", encode(ENDED.model_copy(update={"run_id": RUN}))))
    assert refused.value.reason.code == "unknown_correlation"


async def test_of_a_request_that_could_not_be_read_its_step_hears_all_the_same() -> None:
    rejected = RunResult(run_id=None, status=ResultStatus.REJECTED, output=None, error=None)
    read = await ResultReader().read(run_result(f"{RUN}/{TASK}", encode(rejected)))
    assert read == ChildEnded(RUN, TASK, rejected)


async def test_a_run_result_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(Refused, match="JSON"):
        await ResultReader().read(run_result(f"{RUN}/{TASK}", b"nonsense"))


IDENTITIES = Identities({"analysts": {"keywords"}}, "orchestrators")


async def test_a_report_that_is_signed_speaks_for_the_agents_of_its_user() -> None:
    report = result()
    read = await ResultReader(IDENTITIES).read(delivery(encode(report), "analysts"))
    assert read == TaskReported(report, frozenset({"keywords"}))


@pytest.mark.parametrize("user_id", [None, "", "somebody", "orchestrators"])
async def test_a_report_of_nobody_who_may_report_is_refused_and_told(user_id: str | None) -> None:
    with capture_logs() as lines, pytest.raises(Refused) as refused:
        await ResultReader(IDENTITIES).read(delivery(encode(result()), user_id))
    assert refused.value.reason.code == "forged_result"
    [line] = lines
    assert (line["action"], line["code"], line["security"]) == ("forged_message", "forged_result", True)
    assert line["user_id"] == user_id


async def test_a_report_on_an_attempt_of_another_agent_is_refused_and_told() -> None:
    report = result()
    sent = delivery(encode(report), "analysts")
    answer = Answer(Verdict.REJECTED, codes.FORGED_RESULT)
    with capture_logs() as lines, pytest.raises(Refused, match="does not serve the agent"):
        await ResultReader(IDENTITIES).answered(Item(sent, TaskReported(report)), answer)
    assert [line["code"] for line in lines] == ["forged_result"]


@pytest.mark.parametrize("user_id", [None, "analysts"])
async def test_only_orchestrators_tell_how_the_run_of_a_sub_workflow_has_ended(user_id: str | None) -> None:
    ended = run_result(f"{RUN}/{TASK}")
    assert await ResultReader(IDENTITIES).read(ended._replace(user_id="orchestrators")) == ChildEnded(RUN, TASK, ENDED)
    with pytest.raises(Refused, match="only orchestrators"):
        await ResultReader(IDENTITIES).read(ended._replace(user_id=user_id))
