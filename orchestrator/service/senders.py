"""What the properties of a delivery tell of a client that asks for a run: where it listens, and which run it means.

A client must not have us write into queues that only our services may write to, so it cannot name one in `reply_to`.
The exception are our own requests, for the runs of sub-workflows: their results go where workers report.
"""

from typing import Final
from uuid import UUID, uuid4, uuid5

from messaging import topology
from messaging.port import DeadLetterReason, Delivery
from orchestrator.engine.records import ReplyAddress
from orchestrator.service.intake import Refused
from orchestrator.service.outgoing import child_correlation
from schemas.display import quoted
from schemas.messages import RunRequest

RUN_ID_NAMESPACE: Final = UUID("9f0f5a5e-5f0c-4f5b-9d5e-0c1c2f3b7a10")


def reply_address(delivery: Delivery) -> ReplyAddress | None:
    """Return where the client awaits the RunResult; None where it does not.

    Raises:
        Refused: It names a queue of our services.
    """
    if delivery.reply_to and topology.is_for_services(delivery.reply_to):
        message = (
            f"reply_to names {quoted(delivery.reply_to)}, which is a queue of the services: "
            f"name one that the client reads, such as {topology.reply_queue('<id>').name}"
        )
        raise Refused(DeadLetterReason("invalid_reply_to", message))
    return _address(delivery)


def requester_address(delivery: Delivery, request: RunRequest) -> ReplyAddress | None:
    """Return where the RunResult for *request* is awaited, which may be with the step whose sub-workflow it is.

    Raises:
        Refused: It names a queue of our services, and is no request of an orchestrator.
    """
    if request.parent_run_id is None or request.run_id is None or delivery.reply_to != topology.RESULTS_QUEUE.name:
        return reply_address(delivery)
    if delivery.correlation_id != child_correlation(request.parent_run_id, request.run_id):
        message = "a request for a sub-workflow bears as correlation_id the run and the attempt that it is for"
        raise Refused(DeadLetterReason("unknown_correlation", message))
    return _address(delivery)


def _address(delivery: Delivery) -> ReplyAddress | None:
    return ReplyAddress(delivery.reply_to, delivery.correlation_id) if delivery.reply_to else None


def run_id_of(delivery: Delivery) -> UUID:
    """Return an id for a run whose client chose none; the same message delivered again gets the same id."""
    return uuid5(RUN_ID_NAMESPACE, delivery.message_id) if delivery.message_id else uuid4()
