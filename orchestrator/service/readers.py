"""What the results queue holds."""

from uuid import UUID

import structlog

from messaging.port import DeadLetterReason, Delivery
from orchestrator.engine import codes
from orchestrator.engine.inputs import ChildEnded, ExternalInput, TaskReported
from orchestrator.service.batch import Answer
from orchestrator.service.identities import Identities, forged_result
from orchestrator.service.intake import Item, Refused
from schemas.codec import decode
from schemas.errors import MessageRefused
from schemas.messages import AgentResult, RunResult

log = structlog.get_logger(__name__)


class ResultReader:
    """Reads AgentResults, and the RunResults of sub-workflows; where there are identities, it heeds them."""

    def __init__(self, identities: Identities | None = None) -> None:
        self._identities = identities

    async def read(self, delivery: Delivery) -> ExternalInput:
        """Return what a worker reports, or how the run of a sub-workflow has ended."""
        if delivery.type == RunResult.__name__:
            if self._identities is not None:
                self._identities.require_our_result(delivery)
            return _child_ended(delivery)
        speaks_for = None if self._identities is None else self._identities.agents_of(delivery)
        try:
            report = decode(AgentResult, delivery.body)
        except MessageRefused as refused:
            raise Refused(DeadLetterReason(refused.code, str(refused))) from refused
        if report.consumer_timeout is not None:
            _tell_of_timeout(report, report.consumer_timeout)
        return TaskReported(report, speaks_for)

    async def answered(self, item: Item, answer: Answer) -> None:
        """Refuse what was forged, as the transaction found out; it said all else."""
        if answer.code == codes.FORGED_RESULT:
            raise forged_result(item.delivery, "its sender does not serve the agent of the attempt")

    async def failed(self, delivery: Delivery, reason: DeadLetterReason) -> None:
        """Nobody waits for an answer to a report."""


def _child_ended(delivery: Delivery) -> ChildEnded:
    try:
        result = decode(RunResult, delivery.body)
    except MessageRefused as refused:
        raise Refused(DeadLetterReason(refused.code, str(refused))) from refused
    run_id, _, task_id = (delivery.correlation_id or "").partition("/")
    try:
        ended = ChildEnded(UUID(run_id), UUID(task_id), result)
    except ValueError as error:
        message = "a RunResult bears here as correlation_id what its request did: the run and the attempt it is for"
        raise Refused(DeadLetterReason("unknown_correlation", message)) from error
    if result.run_id is not None and result.run_id != ended.task_id:  # a request that could not be read names no run
        message = f"it tells of the run {result.run_id}, which is not the one that the step waits for"
        raise Refused(DeadLetterReason("unknown_correlation", message))
    return ended


def _tell_of_timeout(report: AgentResult, seconds: float) -> None:
    log.warning(
        "An agent ran for longer than RabbitMQ's consumer_timeout, so its task was delivered again meanwhile. Set "
        "consumer_timeout (milliseconds, in rabbitmq.conf) above the longest time that an agent may take",
        action="agent_outlived_consumer_timeout",
        setting="consumer_timeout",
        seconds=seconds,
        run_id=str(report.run_id),
        task_id=str(report.task_id),
        worker_id=report.worker_id,
    )
