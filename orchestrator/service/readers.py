"""What the results queue holds."""

import structlog

from messaging.port import DeadLetterReason, Delivery
from orchestrator.engine.inputs import ExternalInput, TaskReported
from orchestrator.service.batch import Answer
from orchestrator.service.intake import Item, Refused
from schemas.codec import decode
from schemas.errors import MessageRefused
from schemas.messages import AgentResult

log = structlog.get_logger(__name__)


class ResultReader:
    """Reads AgentResults."""

    async def read(self, delivery: Delivery) -> ExternalInput:
        """Return what a worker reports."""
        try:
            report = decode(AgentResult, delivery.body)
        except MessageRefused as refused:
            raise Refused(DeadLetterReason(refused.code, str(refused))) from refused
        if report.consumer_timeout is not None:
            _tell_of_timeout(report, report.consumer_timeout)
        return TaskReported(report)

    async def answered(self, item: Item, answer: Answer) -> None:
        """Nothing: the transaction said it all."""


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
