"""Where a client may have its RunResult sent, and where only an orchestrator may."""

from uuid import UUID

import pytest

from messaging.port import Delivery
from orchestrator.engine.records import ReplyAddress
from orchestrator.service.intake import Refused
from orchestrator.service.senders import reply_address, requester_address
from schemas.messages import RunRequest

PARENT, CHILD = UUID(int=1), UUID(int=2)
ASKED = RunRequest(workflow_id="w", run_id=CHILD)
ASKED_BY_A_STEP = RunRequest(workflow_id="w", run_id=CHILD, parent_run_id=PARENT)


def delivery(reply_to: str | None, correlation_id: str | None = "c-1") -> Delivery:
    return Delivery(
        "orchestrator.runs", "", "", "RunRequest", "m", b"", correlation_id, reply_to, {}, False, (1, 1), None
    )


@pytest.mark.parametrize(
    "queue", ["replies", "orchestrator.reply.1", "amq.rabbitmq.reply-to.g1h2", "agents", "my.agent.x"]
)
def test_a_client_names_any_queue_of_its_own(queue: str) -> None:
    assert reply_address(delivery(queue)) == ReplyAddress(queue, "c-1")
    assert requester_address(delivery(queue), ASKED) == ReplyAddress(queue, "c-1")


@pytest.mark.parametrize("queue", [None, ""])
def test_a_client_that_does_not_listen_names_none(queue: str | None) -> None:
    assert reply_address(delivery(queue)) is None


OURS = [
    "orchestrator.results",
    "orchestrator.commands",
    "orchestrator.runs",
    "orchestrator.dead-letters",
    "orchestrator.replica.1",
    "orchestrator.worker.1",
    "orchestrator.watch.1",
    "orchestrator.gate.1.block",
    "orchestrator.reply",
    "agent.research",
]


@pytest.mark.parametrize("queue", OURS)
def test_a_client_cannot_have_us_write_into_a_queue_of_the_services(queue: str) -> None:
    for correlation_id in ("c-1", f"{PARENT}/{CHILD}"):
        forged = delivery(queue, correlation_id)
        with pytest.raises(Refused, match=queue) as refused:
            reply_address(forged)
        assert refused.value.reason.code == "invalid_reply_to"
        with pytest.raises(Refused, match=queue):
            requester_address(forged, ASKED)


def test_the_result_of_a_sub_workflow_goes_where_workers_report() -> None:
    asked = delivery("orchestrator.results", f"{PARENT}/{CHILD}")
    assert requester_address(asked, ASKED_BY_A_STEP) == ReplyAddress("orchestrator.results", f"{PARENT}/{CHILD}")


@pytest.mark.parametrize("correlation_id", [None, "c-1", f"{CHILD}/{PARENT}", f"{PARENT}/{PARENT}"])
def test_it_is_for_the_step_that_asks_and_for_no_other(correlation_id: str | None) -> None:
    with pytest.raises(Refused, match="correlation_id") as refused:
        requester_address(delivery("orchestrator.results", correlation_id), ASKED_BY_A_STEP)
    assert refused.value.reason.code == "unknown_correlation"


@pytest.mark.parametrize("queue", [queue for queue in OURS if queue != "orchestrator.results"])
def test_it_goes_to_no_other_queue_of_the_services(queue: str) -> None:
    with pytest.raises(Refused, match=queue):
        requester_address(delivery(queue, f"{PARENT}/{CHILD}"), ASKED_BY_A_STEP)
