"""Takes the tasks of one agent from its queue and starts as many of them as may run at once."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

import structlog
from tenacity import retry, retry_if_exception_type, wait_random_exponential

from agent_worker.attempts import Attempt, Held, by_consumer
from agent_worker.desk import Desk
from messaging.crash_points import reach
from messaging.port import BrokerUnavailable, Consumer, DeadLetterReason, Delivery
from schemas.codec import decode
from schemas.errors import MessageRefused
from schemas.messages import AgentTask

CLOSE_TIMEOUT: Final = 5.0  # seconds
LONGEST_REASON: Final = 2_000  # characters; it travels in a header

log = structlog.get_logger(__name__)


class AgentConsumer:
    """The flow of one agent's tasks through a worker.

    The broker hands over at most *concurrency* unsettled tasks, so usually each starts at once. Only after a lost
    connection can there be more: what was running still runs here while the broker has handed out others. Those wait.
    """

    def __init__(
        self, consumer: Consumer, desk: Desk, *, concurrency: int, on_bug: Callable[[BaseException], None]
    ) -> None:
        self._consumer = consumer
        self._desk = desk
        self._concurrency = concurrency
        self._on_bug = on_bug
        self._waiting: deque[Attempt] = deque()
        self._unsettled: set[Attempt] = set()
        self._running: dict[asyncio.Task[None], Attempt] = {}
        self._refusing: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    async def run(self) -> None:
        """Take tasks until cancelled, or until the consumer is closed."""
        while True:
            for delivery in await self._consumer.receive(self._concurrency):
                self._take(delivery)

    async def give_back_waiting(self) -> None:
        """Take and start nothing more, and return what has not started: others can have it at once."""
        self._draining = True
        # First: the broker would hand what is given back to us again.
        await self._consumer.cancel()
        unstarted = [attempt for attempt in self._unsettled if attempt.untouched]
        for running, attempt in self._running.items():
            if attempt.untouched:
                running.cancel()
        self._waiting.clear()
        for attempt in unstarted:
            self._desk.drop(attempt)
        for consumer, deliveries in by_consumer(held for attempt in unstarted for held in attempt.held).items():
            await consumer.requeue(deliveries)
        for attempt in unstarted:
            self._settled(attempt)

    async def drained(self) -> None:
        """Wait until every task that was taken is settled."""
        await self._idle.wait()

    async def close(self) -> None:
        """Give back what is unsettled, then cancel what runs."""
        self._draining = True
        await self._close_source()
        left = [*self._running, *self._refusing]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)

    async def _close_source(self) -> None:
        try:
            await asyncio.wait_for(self._consumer.close(), CLOSE_TIMEOUT)
        except TimeoutError:  # a half-open connection; the broker takes the tasks back when it notices
            log.warning("The broker did not close a consumer in time", action="close_timed_out")

    def _take(self, delivery: Delivery) -> None:
        try:
            task = decode(AgentTask, delivery.body)
        except MessageRefused as refused:
            self._refuse(delivery, refused)
            return
        attempt = self._desk.admit(task, Held(self._consumer, delivery), self._settled)
        if attempt is None:
            return
        reach("worker.task_taken", task.agent_name)
        self._unsettled.add(attempt)
        self._idle.clear()
        if attempt.answer is not None:
            return
        if len(self._running) < self._concurrency:
            self._start(attempt)
        else:
            self._waiting.append(attempt)

    def _start(self, attempt: Attempt) -> None:
        running = asyncio.create_task(self._desk.work(attempt))
        self._running[running] = attempt
        running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Task[None]) -> None:
        del self._running[running]
        if not running.cancelled() and (bug := running.exception()) is not None:
            self._on_bug(bug)
        if self._waiting and not self._draining:
            self._start(self._waiting.popleft())

    def _settled(self, attempt: Attempt) -> None:
        self._unsettled.discard(attempt)
        self._note_idle()

    def _note_idle(self) -> None:
        if not self._unsettled and not self._refusing:
            self._idle.set()

    def _refuse(self, delivery: Delivery, refused: MessageRefused) -> None:
        log.warning(
            "A message is no task; it goes to the dead letters",
            action="task_refused",
            code=refused.code,
            error=str(refused)[:LONGEST_REASON],
            queue=delivery.queue,
            message_id=delivery.message_id,
        )
        reason = DeadLetterReason(refused.code, str(refused)[:LONGEST_REASON])
        self._idle.clear()
        refusing = asyncio.create_task(_dead_letter(self._consumer, delivery, reason))
        self._refusing.add(refusing)
        refusing.add_done_callback(self._refused)

    def _refused(self, refusing: asyncio.Task[None]) -> None:
        self._refusing.discard(refusing)
        self._note_idle()


# A dead letter that is not confirmed leaves the delivery unsettled, and nobody else will settle it.
@retry(retry=retry_if_exception_type(BrokerUnavailable), wait=wait_random_exponential(multiplier=0.1, max=5))
async def _dead_letter(consumer: Consumer, delivery: Delivery, reason: DeadLetterReason) -> None:
    await consumer.dead_letter(delivery, reason)
