"""What a worker hears beside its tasks: what is cancelled, and what other workers ask and answer.

All of it comes to a queue that is this worker's own and dies with its connection. What is said while nobody listens is
not repeated, so nothing may depend on it: an agent that goes on after its run was cancelled costs time, not truth.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final

import structlog

from agent_worker.cancelled_work import Cancelled
from agent_worker.colleagues import PATIENCE, Colleagues
from messaging.port import Broker, BrokerError, Consumer, Delivery, OutgoingMessage
from messaging.topology import WORKERS, WORKERS_EXCHANGE, worker_queue
from schemas.codec import decode
from schemas.errors import MessageRefused
from schemas.messages import BranchesCancelled, RunCancelled

PREFETCH: Final = 1_000

log = structlog.get_logger(__name__)


class Listener:
    """Hears what is said to all workers, and to this one.

    Args:
        broker: Connected.
        colleagues: Given what other workers say.
        on_cancelled: Called for whatever is cancelled, more than once where that is said again.
    """

    def __init__(self, broker: Broker, colleagues: Colleagues, on_cancelled: Callable[[Cancelled], None]) -> None:
        self._broker = broker
        self._colleagues = colleagues
        self._on_cancelled = on_cancelled
        self._consumer: Consumer | None = None

    async def start(self, agent_names: Iterable[str]) -> None:
        """Begin to hear, also questions about tasks of these agents; where the broker forbids it, nothing is heard."""
        try:
            await self._broker.declare([WORKERS], [])
            queue = worker_queue(self._colleagues.me, agent_names)
            self._consumer = await self._broker.consume(queue, prefetch=PREFETCH)
        except BrokerError as error:
            log.warning(
                "Other workers cannot be asked about tasks that come again, and nobody says which runs are cancelled: "
                "such tasks may run twice, and agents of such runs go on. Give this user the permissions that the "
                "worker's README names",
                action="colleagues_unreachable",
                exchange=WORKERS_EXCHANGE,
                error=str(error),
            )
        else:
            self._colleagues.reachable = True

    async def run(self) -> None:
        """Hear until the consumer is closed."""
        while self._consumer is not None:
            deliveries = await self._consumer.receive(PREFETCH)
            answers = [answer for delivery in deliveries if (answer := self._heard(delivery)) is not None]
            await self._consumer.ack(deliveries)
            if answers:
                with suppress(TimeoutError):  # later than that nobody waits for them
                    async with asyncio.timeout(PATIENCE):
                        await self._broker.publish(answers)

    async def close(self) -> None:
        """Hear nothing any more, and answer nobody."""
        if self._consumer is not None:
            await self._consumer.close()

    def _heard(self, delivery: Delivery) -> OutgoingMessage | None:
        try:
            match delivery.type:
                case RunCancelled.__name__:
                    self._on_cancelled(Cancelled(decode(RunCancelled, delivery.body).run_id))
                case BranchesCancelled.__name__:
                    told = decode(BranchesCancelled, delivery.body)
                    self._on_cancelled(Cancelled(told.run_id, told.block_id))
                case _:
                    return self._colleagues.heard(delivery)
        except MessageRefused as refused:
            log.warning(
                "A message to the workers cannot be understood",
                action="hearsay_refused",
                code=refused.code,
                error=str(refused)[:500],
            )
        return None
