"""Requests that do not become a run, and whoever is to hear of that.

A client that named a `reply_to` gets a RunResult with status REJECTED. Where nobody can be told, the request goes to
the dead letters.
"""

from uuid import UUID, uuid4

import structlog

from messaging import topology
from messaging.port import Broker, DeadLetterReason, OutgoingMessage, PublishOutcome
from orchestrator.engine.records import ReplyAddress
from orchestrator.service.intake import Refused
from schemas.codec import encode
from schemas.messages import ErrorInfo, RunResult
from schemas.statuses import ResultStatus

log = structlog.get_logger(__name__)


class Refusals:
    """Tells clients that their requests are refused."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def refuse(self, client: ReplyAddress | None, run_id: UUID, error: ErrorInfo) -> None:
        """Log a refusal and tell the client.

        Raises:
            Refused: The client could not be told.
        """
        log.warning(
            "A run was refused",
            action="run_refused",
            run_id=str(run_id),
            code=error.code,
            reason=error.message[:2000],
        )
        if not await self.tell(client, run_id, error):
            raise Refused(DeadLetterReason(error.code, error.message))

    async def tell_of_bug(self, client: ReplyAddress | None, reason: DeadLetterReason) -> None:
        """Tell the client that its request met a bug of ours; it would wait for its result for ever."""
        message = f"{reason.message} (a bug in the orchestrator; the request is kept among the dead letters)"
        await self.tell(client, None, ErrorInfo(code=reason.code, message=message))

    async def tell(self, client: ReplyAddress | None, run_id: UUID | None, error: ErrorInfo) -> bool:
        """Send the refusal to the client; return whether it was told."""
        if client is None:
            return False
        result = RunResult(run_id=run_id, status=ResultStatus.REJECTED, output=None, error=error)
        message = OutgoingMessage(
            exchange=topology.DEFAULT_EXCHANGE,
            routing_key=client.queue,
            type=RunResult.__name__,
            message_id=str(uuid4()),
            body=encode(result),
            correlation_id=client.correlation_id,
        )
        return (await self._broker.publish([message]))[0] is PublishOutcome.CONFIRMED
