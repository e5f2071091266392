"""Dead letters in: from the broker's queue to the table where operators find them.

The queue is drained as every other: take what has arrived, store it with one statement, then ack. But this is the end
of the line. A dead letter is never dead-lettered, and never handed back in order to wait: RabbitMQ 4 drops a message
that came back twenty times. So while Postgres is out of reach the deliveries are held; and before the broker takes a
delivery that is held too long for a sign of death (`consumer_timeout`, 30 minutes by default) they are given back all
at once, and nothing more is taken until Postgres answers. An outage costs each message one return, however long it is.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

import structlog
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_delay,
    stop_never,
    wait_random_exponential,
)

from messaging import topology
from messaging.crash_points import reach
from messaging.port import Broker, BrokerError, Consumer, ConsumerClosed, Delivery
from orchestrator.service.lost_tasks import LostTasks
from orchestrator.service.origins import bare, to_dead_letters
from orchestrator.storage.database import is_lost_connection, is_transient
from orchestrator.storage.dead_letters import NewDeadLetter
from orchestrator.storage.port import Storage

log = structlog.get_logger(__name__)

BATCH: Final = 50  # bodies may be large, and dead letters are rare
BATCH_BYTES: Final = 8 * 1024 * 1024
LARGE_BODY: Final = 256 * 1024  # read in a thread, so that leases and heartbeats go on meanwhile
HOLD_SECONDS: Final = 600.0
LONGEST_PAUSE: Final = 5.0

Pair = tuple[Delivery, NewDeadLetter]


class DeadLetterIntake:
    """Consumes the dead-letter queue."""

    def __init__(
        self, storage: Storage, broker: Broker, lost_tasks: LostTasks, *, hold_seconds: float = HOLD_SECONDS
    ) -> None:
        """Prepare it; `start` begins to consume.

        Args:
            storage: Where dead letters are stored.
            broker: Where they come from.
            lost_tasks: Told of them: some are tasks that the broker gave up.
            hold_seconds: For so long deliveries are held while Postgres is out of reach.
        """
        self._storage = storage
        self._broker = broker
        self._lost_tasks = lost_tasks
        self._hold_seconds = hold_seconds
        self._consumer: Consumer | None = None
        self._closed = False

    async def start(self) -> None:
        """Begin to consume."""
        self._consumer = await self._broker.consume(topology.DEAD_LETTERS_QUEUE, prefetch=BATCH)

    async def run(self) -> None:
        """Store batch after batch until `close`."""
        while not self._closed:
            try:
                await self.run_once()
            except ConsumerClosed:
                return
            except Exception as error:
                if not is_transient(error):
                    raise
                await self._let_go()

    async def run_once(self) -> None:
        """Wait for deliveries, store them, ack them."""
        consumer = self._started()
        for deliveries in _pieces(await consumer.receive(BATCH)):
            await self._store(consumer, list(zip(deliveries, await _read(deliveries), strict=True)))

    async def close(self) -> None:
        """Stop; what is not stored goes back to the queue."""
        self._closed = True
        if self._consumer is not None:
            await self._consumer.close()

    def _started(self) -> Consumer:
        assert self._consumer is not None, "start() comes first"
        return self._consumer

    async def _store(self, consumer: Consumer, pairs: Sequence[Pair]) -> None:
        """Store all, or find the one that cannot be stored. Raises what may pass when that took too long."""
        letters = [letter for _, letter in pairs]
        try:
            await _patiently(lambda: self._storage.store_dead_letters(letters), seconds=self._hold_seconds)
        except Exception as error:
            if is_transient(error):
                raise
            await self._store_apart(consumer, pairs, error)
            return
        log.info("Dead letters were stored", action="dead_letters_stored", count=len(pairs))
        deliveries = [delivery for delivery, _ in pairs]
        self._lost_tasks.add(deliveries)
        reach("dead_letters.stored")
        await consumer.ack(deliveries)

    async def _store_apart(self, consumer: Consumer, pairs: Sequence[Pair], error: Exception) -> None:
        if len(pairs) > 1:
            middle = len(pairs) // 2
            await self._store(consumer, pairs[:middle])
            await self._store(consumer, pairs[middle:])
            return
        [(delivery, letter)] = pairs
        least = bare(letter)
        if letter != least:
            log.exception("A dead letter is stored without its properties", action="dead_letter_bared", exc_info=error)
            await self._store(consumer, [(delivery, least)])
            return
        # It stays unsettled: given back, it would come again at once, and after twenty times be lost.
        log.exception("A dead letter cannot be stored", action="dead_letter_held", key=letter.key, exc_info=error)

    async def _let_go(self) -> None:
        """Give everything back, and consume again when Postgres answers."""
        await self._started().close()
        log.warning("Dead letters stay with the broker until Postgres answers", action="dead_letters_wait")
        await _patiently(self._storage.check)
        if not self._closed:
            await _patiently(self.start)


async def _patiently(work: Callable[[], Awaitable[object]], *, seconds: float | None = None) -> None:
    """Do *work*, again and again while its error may pass; give up after *seconds*."""

    def interrupted(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if error is None or is_lost_connection(error):
            return  # the whole process is told of that once, by those who look all the time
        if state.attempt_number in {1, 10} or state.attempt_number % 60 == 0:
            log.warning("Dead letters cannot be stored now", action="dead_letters_interrupted", error=str(error))

    async for attempt in AsyncRetrying(
        retry=retry_if_exception(lambda error: is_transient(error) or isinstance(error, BrokerError)),
        stop=stop_never if seconds is None else stop_after_delay(seconds),
        wait=wait_random_exponential(multiplier=0.1, max=LONGEST_PAUSE),
        before_sleep=interrupted,
        reraise=True,
    ):
        with attempt:
            await work()


async def _read(deliveries: Sequence[Delivery]) -> Sequence[NewDeadLetter]:
    if sum(len(delivery.body) for delivery in deliveries) > LARGE_BODY:
        return await asyncio.to_thread(to_dead_letters, deliveries)
    return to_dead_letters(deliveries)


def _pieces(deliveries: Sequence[Delivery]) -> Iterator[Sequence[Delivery]]:
    """Yield *deliveries* in pieces that one statement can carry."""
    piece: list[Delivery] = []
    size = 0
    for delivery in deliveries:
        if piece and size + len(delivery.body) > BATCH_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(delivery)
        size += len(delivery.body)
    yield piece
