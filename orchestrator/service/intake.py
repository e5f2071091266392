"""Work in: one queue, taken in batches, driven through the core, settled.

While one batch is in its transaction the next deliveries collect; the next transaction takes them all. That is the
whole of the batching: no timer, and nothing waits when there is little to do.

A delivery that cannot be read is dead-lettered with its reason. A batch that cannot be applied is halved until the
one that is to blame stands alone; that one is dead-lettered, the others are applied. Where somebody keeps a run locked,
the inputs of each run are set aside and go on by themselves, so that one run never stops the others. Whatever happens,
each delivery is settled: one that was forgotten would stay with this process until its end.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

import structlog
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential

from messaging.crash_points import reach
from messaging.port import Broker, BrokerUnavailable, Consumer, ConsumerClosed, DeadLetterReason, Delivery, Queue
from orchestrator.engine.inputs import ExternalInput
from orchestrator.errors import RunLocked
from orchestrator.service.batch import Answer
from orchestrator.service.driver import Driver
from orchestrator.storage.database import is_transient

log = structlog.get_logger(__name__)

BATCH: Final = 500
PREFETCH: Final = 2 * BATCH  # one batch in its transaction, one collecting
ASIDE_AT_ONCE: Final = 4  # transactions for runs that were set aside; the pool is for the others too
ACK_SECONDS: Final = 0.05  # acks wait for each other: together they cost the broker a fraction
ACKS: Final = 100  # so many need not wait


class Refused(Exception):
    """A delivery cannot be used: why its dead letter says so."""

    def __init__(self, reason: DeadLetterReason) -> None:
        super().__init__(reason.message)
        self.reason = reason


class Handled(Exception):
    """A delivery needs no transaction: it was answered while it was read."""


@dataclass(frozen=True, slots=True)
class Item:
    """A delivery and the input that it holds."""

    delivery: Delivery
    event: ExternalInput


class Reader(Protocol):
    """Turns deliveries of one queue into inputs."""

    async def read(self, delivery: Delivery) -> ExternalInput:
        """Return the input that *delivery* holds.

        Raises:
            Refused: It holds none.
            Handled: It was answered already.
        """

    async def answered(self, item: Item, answer: Answer) -> None:
        """Do what the answer asks for beyond the transaction.

        Raises:
            Refused: The answer is a refusal, and nobody could be told.
        """

    async def failed(self, delivery: Delivery, reason: DeadLetterReason) -> None:
        """Tell whoever waits for it that *delivery* becomes a dead letter, for a bug of ours."""


class Intake:
    """Consumes one queue."""

    def __init__(self, broker: Broker, queue: Queue, driver: Driver, reader: Reader) -> None:
        self._broker = broker
        self._queue = queue
        self._driver = driver
        self._reader = reader
        self._consumer: Consumer | None = None
        self._applying = 0
        self._acks: list[Delivery] = []
        self._acking: asyncio.Task[None] | None = None
        self._aside: dict[UUID, list[Item]] = {}  # by run, in their order, each with a task of its own
        self._aside_tasks: set[asyncio.Task[None]] = set()
        self._aside_turns = asyncio.Semaphore(ASIDE_AT_ONCE)

    async def start(self) -> None:
        """Begin to consume."""
        self._consumer = await self._broker.consume(self._queue, prefetch=PREFETCH)

    async def run(self) -> None:
        """Take batch after batch until `close`."""
        try:
            while True:
                await self.run_once()
        except ConsumerClosed:
            return

    async def run_once(self) -> None:
        """Wait for deliveries, apply them, settle them."""
        consumer = self._started()
        deliveries = await consumer.receive(BATCH)
        reach("intake.taken", self._queue.name)
        items = [item for delivery in deliveries if (item := await self._read(consumer, delivery)) is not None]
        self._applying = len(items)
        await self._apply(consumer, items)
        self._applying = 0

    async def cancel(self) -> None:
        """Take nothing more; `run` ends once the batch in hand is applied."""
        if self._consumer is not None:
            await self._consumer.cancel()

    @property
    def in_hand(self) -> int:
        """How many deliveries were taken and are not applied yet; `close` gives them back."""
        return self._applying + sum(len(items) for items in self._aside.values())

    async def close(self) -> None:
        """Stop; what is not settled goes back to the queue."""
        for task in self._aside_tasks:
            task.cancel()
        await asyncio.gather(*self._aside_tasks, return_exceptions=True)
        if self._consumer is not None:
            await self._ack(self._consumer)
            await self._consumer.close()

    def _started(self) -> Consumer:
        assert self._consumer is not None, "start() comes first"
        return self._consumer

    async def _read(self, consumer: Consumer, delivery: Delivery) -> Item | None:
        try:
            return Item(delivery, await self._patiently_read(delivery))
        except Refused as refused:
            await self._dead_letter(consumer, delivery, refused.reason)
        except Handled:
            await consumer.ack([delivery])
        except Exception as error:
            await self._blame(consumer, delivery, error)
        return None

    async def _patiently_read(self, delivery: Delivery) -> ExternalInput:
        try:
            return await self._reader.read(delivery)
        except Exception as error:
            if not is_transient(error):
                raise
            self._driver.database.failed(error)
        again = AsyncRetrying(
            retry=retry_if_exception(is_transient), wait=wait_random_exponential(multiplier=0.1, max=5), reraise=True
        )
        return await again(self._reader.read, delivery)

    async def _apply(self, consumer: Consumer, items: Sequence[Item]) -> None:
        items = [item for item in items if not self._follows_aside(item)]
        if not items:
            return
        try:
            await self._drive_or_halve(consumer, items)
        except RunLocked:
            self._set_aside(consumer, items)

    async def _drive_or_halve(self, consumer: Consumer, items: Sequence[Item]) -> None:
        """Apply what can be applied; applying some of it twice is harmless. Raises RunLocked."""
        try:
            await self._drive(consumer, items)
        except RunLocked:
            raise
        except Exception as error:
            if len(items) == 1:
                await self._blame(consumer, items[0].delivery, error)
                return
            middle = len(items) // 2
            await self._drive_or_halve(consumer, items[:middle])
            await self._drive_or_halve(consumer, items[middle:])

    async def _drive(self, consumer: Consumer, items: Sequence[Item]) -> None:
        answers = await self._driver.drive([item.event for item in items])
        answered = zip(items, answers, strict=True)
        await self._ack_soon(
            consumer, [item.delivery for item, answer in answered if await self._accepted(consumer, item, answer)]
        )

    async def _ack_soon(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> None:
        """Ack what is applied, soon: should it come again because this process died, it has no effect."""
        self._acks.extend(deliveries)
        if len(self._acks) >= ACKS:
            await self._ack(consumer)
        elif self._acking is None or self._acking.done():
            self._acking = asyncio.create_task(self._ack_later(consumer))

    async def _ack_later(self, consumer: Consumer) -> None:
        while self._acks:  # more may come while an ack is written
            await asyncio.sleep(ACK_SECONDS)
            await self._ack(consumer)

    async def _ack(self, consumer: Consumer) -> None:
        deliveries, self._acks = self._acks, []
        reach("intake.before_ack", self._queue.name)
        await consumer.ack(deliveries)
        reach("intake.acked", self._queue.name)

    def _follows_aside(self, item: Item) -> bool:
        earlier = self._aside.get(item.event.run_id)
        if earlier is None:
            return False
        earlier.append(item)
        return True

    def _set_aside(self, consumer: Consumer, items: Sequence[Item]) -> None:
        for item in items:
            if not self._follows_aside(item):
                self._aside[item.event.run_id] = [item]
                task = asyncio.create_task(self._apply_aside(consumer, item.event.run_id))
                self._aside_tasks.add(task)
                task.add_done_callback(self._aside_tasks.discard)

    async def _apply_aside(self, consumer: Consumer, run_id: UUID) -> None:
        while items := self._aside[run_id]:
            count = len(items)
            try:
                async with self._aside_turns:
                    await self._drive_or_halve(consumer, items[:count])
            except RunLocked:
                # Postgres has waited already, for as long as the lock timeout says.
                log.warning("Somebody keeps a run locked; trying again", action="run_locked", run_id=str(run_id))
                continue
            del items[:count]
        del self._aside[run_id]

    async def _accepted(self, consumer: Consumer, item: Item, answer: Answer) -> bool:
        try:
            await self._reader.answered(item, answer)
        except Refused as refused:
            await self._dead_letter(consumer, item.delivery, refused.reason)
            return False
        return True

    async def _blame(self, consumer: Consumer, delivery: Delivery, error: Exception) -> None:
        log.exception(
            "An input cannot be applied",
            action="input_failed",
            queue=self._queue.name,
            message_id=delivery.message_id,
            correlation_id=delivery.correlation_id,
            exc_info=error,
        )
        first_line = str(error).partition("\n")[0]
        reason = DeadLetterReason("internal_error", f"{type(error).__name__}: {first_line[:500]}")
        await self._reader.failed(delivery, reason)
        await self._dead_letter(consumer, delivery, reason)

    async def _dead_letter(self, consumer: Consumer, delivery: Delivery, reason: DeadLetterReason) -> None:
        log.warning(
            "A message was dead-lettered",
            action="dead_lettered",
            queue=delivery.queue,
            message_id=delivery.message_id,
            code=reason.code,
            reason=reason.message[:1000],
        )
        try:
            await consumer.dead_letter(delivery, reason)
        except BrokerUnavailable:
            # It stays unsettled and is delivered again when the broker is back.
            await consumer.requeue([delivery])
