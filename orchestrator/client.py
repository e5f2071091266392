"""A client of the orchestrator: it speaks the public protocol, over any broker, as any other client may."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

from messaging import topology
from messaging.port import Broker, BrokerUnavailable, Consumer, OutgoingMessage, PublishOutcome, QueueMissing
from messaging.tracing.context import current_traceparent, headers_of
from orchestrator.errors import WrongUse
from schemas.codec import decode, encode
from schemas.messages import CancelRun, Message, RetryRun, RunEvent, RunRequest, RunResult

_RECEIVE = 500


class Client:
    """Submits runs, awaits and watches them, cancels them, and retries them.

    Args:
        broker: Connected.
        traceparent: The W3C Trace Context that requests go with; None: that of the span that is current then, if any.
    """

    def __init__(self, broker: Broker, traceparent: str | None = None) -> None:
        self._broker = broker
        self._traceparent = traceparent

    async def submit(self, request: RunRequest) -> None:
        """Publish a request and return when the broker has it on disk.

        Raises:
            WrongUse: It is larger than the broker takes.
            QueueMissing: No orchestrator has ever run on this broker.
            BrokerUnavailable: It is not known whether the request arrived; with its `run_id` it may be repeated.
        """
        await self._send(topology.SUBMIT_EXCHANGE, topology.RUNS_KEY, request)

    async def cancel(self, run_id: UUID, reason: str | None) -> None:
        """Ask that a run stop; raises as `submit` does."""
        command = CancelRun(run_id=run_id, reason=reason)
        await self._send(topology.DEFAULT_EXCHANGE, topology.COMMANDS_QUEUE.name, command)

    async def retry(self, command: RetryRun) -> None:
        """Ask for a new run that does again what another did not complete; raises as `submit` does."""
        await self._send(topology.DEFAULT_EXCHANGE, topology.COMMANDS_QUEUE.name, command)

    async def run(self, request: RunRequest | RetryRun) -> RunResult:
        """Ask for a run, or for a retry of one, and wait for the result; raises as `submit` does."""
        if isinstance(request, RunRequest):
            run_id, exchange, key = request.run_id, topology.SUBMIT_EXCHANGE, topology.RUNS_KEY
        else:
            run_id, exchange, key = request.new_run_id, topology.DEFAULT_EXCHANGE, topology.COMMANDS_QUEUE.name
        assert run_id is not None, "a request that is awaited names its run"
        queue = topology.reply_queue(uuid4().hex)  # of this call alone: others may await their results meanwhile
        replies = await self._broker.consume(queue, prefetch=1)
        try:
            await self._send(exchange, key, request, queue.name, str(run_id))
            delivery = (await replies.receive(1))[0]
            result = decode(RunResult, delivery.body)
            await replies.ack([delivery])
            return result
        finally:
            await replies.close()

    @asynccontextmanager
    async def events(self, run_id: UUID) -> AsyncIterator[AsyncIterator[Sequence[RunEvent]]]:
        """Yield the run's events from now on, in batches; none is missed once the block is entered."""
        queue = topology.events_queue(uuid4().hex, run_id)
        await self._broker.declare(topology.EXCHANGES, ())
        consumer = await self._broker.consume(queue, prefetch=2 * _RECEIVE)
        try:
            yield _batches(consumer)
        finally:
            await consumer.close()

    async def _send(
        self,
        exchange: str,
        routing_key: str,
        message: Message,
        reply_to: str | None = None,
        correlation_id: str | None = None,
    ) -> None:
        outgoing = OutgoingMessage(
            exchange=exchange,
            routing_key=routing_key,
            type=type(message).__name__,
            message_id=str(uuid4()),
            body=encode(message),
            reply_to=reply_to,
            correlation_id=correlation_id,
            headers=headers_of(self._traceparent or current_traceparent()),
        )
        await self._broker.declare(topology.EXCHANGES, ())
        outcome = (await self._broker.publish([outgoing]))[0]
        if outcome is PublishOutcome.RETURNED:
            raise QueueMissing("no orchestrator has ever run on this broker: start one with `forkjoin serve`")
        if outcome is PublishOutcome.TOO_LARGE:
            raise WrongUse(f"the message has {len(outgoing.body):,} bytes, more than the broker takes")
        if outcome is PublishOutcome.UNKNOWN:
            raise BrokerUnavailable("the broker did not confirm the message: it may have arrived or not")


async def _batches(consumer: Consumer) -> AsyncIterator[Sequence[RunEvent]]:
    while True:
        deliveries = await consumer.receive(_RECEIVE)
        yield [decode(RunEvent, delivery.body) for delivery in deliveries]
        await consumer.ack(deliveries)
