"""What the commands queue holds: CancelRuns and RetryRuns, told apart by their AMQP type."""

from contextlib import suppress
from typing import Final

from messaging.port import DeadLetterReason, Delivery
from orchestrator.engine import codes
from orchestrator.engine.decision import Verdict
from orchestrator.engine.inputs import CancelRequested, ExternalInput, RetryRequested
from orchestrator.service.batch import Answer
from orchestrator.service.intake import Item, Refused
from orchestrator.service.refusals import Refusals
from orchestrator.service.senders import reply_address, run_id_of
from orchestrator.service.traces import RunTraces
from orchestrator.storage.definitions import digest
from schemas.codec import decode
from schemas.display import quoted
from schemas.errors import MessageRefused
from schemas.messages import CancelRun, ErrorInfo, RetryRun

_CANCEL: Final = frozenset({CancelRun.__name__, "", None})  # for a while there was nothing else to ask for


class CommandReader:
    """Reads commands. A RetryRun that is refused is answered as a RunRequest is."""

    def __init__(self, refusals: Refusals, traces: RunTraces) -> None:
        self._refusals = refusals
        self._traces = traces

    async def read(self, delivery: Delivery) -> ExternalInput:
        """Return what an operator asks for."""
        try:
            if delivery.type == RetryRun.__name__:
                return await self._retry(delivery)
            if delivery.type in _CANCEL:
                command = decode(CancelRun, delivery.body)
                return CancelRequested(command.run_id, command.reason)
        except MessageRefused as refused:
            raise Refused(DeadLetterReason(refused.code, str(refused))) from refused
        message = f"the queue takes messages of the types CancelRun and RetryRun, not {quoted(delivery.type or '')}"
        raise Refused(DeadLetterReason("malformed_message", message))

    async def answered(self, item: Item, answer: Answer) -> None:
        """Tell whoever asked for a retry why there is none; everything else is told by the run itself."""
        if isinstance(item.event, RetryRequested) and answer.verdict is Verdict.REJECTED:
            error = ErrorInfo(code=answer.code, message=_why_refused(item.event, answer.code))
            await self._refusals.refuse(item.event.reply, item.event.run_id, error)

    async def failed(self, delivery: Delivery, reason: DeadLetterReason) -> None:
        """Tell the client, where there is one that waits."""
        with suppress(Refused):  # nobody that may be told
            await self._refusals.tell_of_bug(reply_address(delivery), reason)

    async def _retry(self, delivery: Delivery) -> RetryRequested:
        client = reply_address(delivery)
        try:
            command = decode(RetryRun, delivery.body)
        except MessageRefused as refused:
            await self._refusals.tell(client, None, ErrorInfo(code=refused.code, message=str(refused)))
            raise
        run_id = command.new_run_id or run_id_of(delivery)
        return RetryRequested(
            run_id=run_id,
            retry_of=command.run_id,
            request_digest=digest(["retry", str(command.run_id)]),
            reply=client,
            traceparent=self._traces.begin(delivery.headers, run_id),
        )


def _why_refused(event: RetryRequested, code: str) -> str:
    match code:
        case codes.UNKNOWN_RUN:
            return f"there is no run {event.retry_of}: `forkjoin runs list` shows those that exist"
        case codes.RUN_GOES_ON:
            return f"run {event.retry_of} has not ended yet: wait for its end, or cancel it first"
        case codes.RUN_COMPLETED:
            return f"run {event.retry_of} is COMPLETED: there is nothing to retry"
        case codes.RUN_ID_CONFLICT:
            return f"there is a run {event.run_id} that is no retry of {event.retry_of}: choose another new_run_id"
        case _:
            raise AssertionError(f"a retry is not refused as {code}")
