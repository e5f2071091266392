"""What the results queue and the commands queue hold."""

from messaging.port import DeadLetterReason, Delivery
from orchestrator.engine.inputs import CancelRequested, ExternalInput, TaskReported
from orchestrator.service.batch import Answer
from orchestrator.service.intake import Item, Refused
from schemas.codec import decode
from schemas.errors import MessageRefused
from schemas.messages import AgentResult, CancelRun


class ResultReader:
    """Reads AgentResults."""

    async def read(self, delivery: Delivery) -> ExternalInput:
        """Return what a worker reports."""
        try:
            return TaskReported(decode(AgentResult, delivery.body))
        except MessageRefused as refused:
            raise Refused(DeadLetterReason(refused.code, str(refused))) from refused

    async def answered(self, item: Item, answer: Answer) -> None:
        """Nothing: the transaction said it all."""


class CommandReader:
    """Reads CancelRuns."""

    async def read(self, delivery: Delivery) -> ExternalInput:
        """Return what an operator asks for."""
        try:
            command = decode(CancelRun, delivery.body)
        except MessageRefused as refused:
            raise Refused(DeadLetterReason(refused.code, str(refused))) from refused
        return CancelRequested(command.run_id, command.reason)

    async def answered(self, item: Item, answer: Answer) -> None:
        """Nothing: the transaction said it all."""
