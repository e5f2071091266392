"""Takes the tasks of one agent from its queue and starts as many of them as may run at once."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog
from tenacity import retry, retry_if_exception_type, wait_random_exponential

from agent_worker.attempts import Attempt, Held, by_consumer
from agent_worker.cancelled_work import Cancelled
from agent_worker.desk import Desk
from agent_worker.execution import task_ids, tell_abandoned
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
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Attempt] = deque()
        self._unsettled: set[Attempt] = set()
        self._running: dict[Attempt, asyncio.Task[None]] = {}
        self._abandoned: dict[Attempt, asyncio.Task[None]] = {}  # kept here: the event loop holds tasks weakly
        self._settling: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    @property
    def running(self) -> int:
        """How many attempts take one of its places."""
        return len(self._running)

    async def run(self) -> None:
        """Take tasks until cancelled, or until the consumer is closed."""
        while True:
            for delivery in await self._consumer.receive(self._concurrency):
                self._take(delivery)

    def cancel(self, cancelled: Cancelled) -> None:
        """Drop what has not started of what is cancelled, and cancel the agents that run; repeating it is harmless."""
        self._waiting = deque(attempt for attempt in self._waiting if not cancelled.covers(attempt.task))
        for attempt in [attempt for attempt in self._unsettled if cancelled.covers(attempt.task)]:
            if attempt.untouched:
                self._drop(attempt)
            elif attempt.can_be_cancelled:
                self._cancel(attempt)

    async def give_back_waiting(self) -> None:
        """Take and start nothing more, and return what has not started: others can have it at once."""
        self._draining = True
        # First: the broker would hand what is given back to us again.
        await self._consumer.cancel()
        unstarted = [attempt for attempt in self._unsettled if attempt.untouched]
        self._waiting.clear()
        for attempt in unstarted:
            self._desk.drop(attempt)
            self._stop(attempt)
        for consumer, deliveries in by_consumer(held for attempt in unstarted for held in attempt.held).items():
            await consumer.requeue(deliveries)
        for attempt in unstarted:
            self._settled(attempt)

    async def drained(self) -> None:
        """Wait until every task that was taken is settled."""
        await self._idle.wait()

    async def close(self) -> None:
        """Give back what is unsettled, then cancel what runs, and wait for it no longer than the grace."""
        self._draining = True
        await self._close_source()
        given_up = dict(self._running)
        for attempt in given_up:
            self._stop(attempt)
        for settling in self._settling:
            settling.cancel()
        if left := [*given_up.values(), *self._settling]:
            await asyncio.wait(left, timeout=self._desk.cancel_grace)
        for attempt, running in given_up.items():
            if not running.done():
                tell_abandoned(attempt.task)

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
        if self._desk.cancelled.covers(task):
            self._drop(attempt)
        elif len(self._running) < self._concurrency:
            self._start(attempt)
        else:
            self._waiting.append(attempt)

    def _start(self, attempt: Attempt) -> None:
        self._running[attempt] = self._loop.create_task(self._work(attempt))

    async def _work(self, attempt: Attempt) -> None:
        try:
            await self._desk.work(attempt)
        except Exception as bug:
            self._on_bug(bug)
        finally:
            self._ended(attempt)

    def _ended(self, attempt: Attempt) -> None:
        self._abandoned.pop(attempt, None)
        if self._running.pop(attempt, None) is not None:
            self._start_next()
        if attempt.cancelled and not attempt.dropped and not attempt.given_up:
            self._leave(attempt)

    def _settled(self, attempt: Attempt) -> None:
        self._unsettled.discard(attempt)
        if not attempt.given_up and (going_on := self._running.pop(attempt, None)) is not None:
            self._abandoned[attempt] = going_on  # its agent ignored its timeout, or that its run was cancelled
            self._start_next()
        self._note_idle()

    def _start_next(self) -> None:
        if self._waiting and not self._draining:
            self._start(self._waiting.popleft())

    def _stop(self, attempt: Attempt) -> None:
        attempt.give_up()
        if (running := self._running.get(attempt)) is not None and not attempt.cancelled:
            running.cancel()

    def _drop(self, attempt: Attempt) -> None:
        log.info(
            "Nobody waits for a task any more; it is not run",
            action="task_dropped",
            **task_ids(attempt.task),
        )
        if (waiting := self._running.pop(attempt, None)) is not None:  # for a colleague, or to run alone
            waiting.cancel()
            self._start_next()
        self._leave(attempt)

    def _cancel(self, attempt: Attempt) -> None:
        log.info(
            "Nobody waits for an agent any more; it is cancelled",
            action="attempt_cancelled",
            **task_ids(attempt.task),
        )
        self._desk.cancel(attempt)
        if (running := self._running.get(attempt)) is not None:
            running.cancel()
            self._loop.call_later(self._desk.cancel_grace, self._abandon, attempt)

    def _abandon(self, attempt: Attempt) -> None:
        if attempt in self._running and not attempt.given_up:
            tell_abandoned(attempt.task)
            self._leave(attempt)

    def _leave(self, attempt: Attempt) -> None:
        self._desk.drop(attempt)
        self._settle_soon(attempt.settle())

    def _note_idle(self) -> None:
        if not self._unsettled and not self._settling:
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
        self._settle_soon(_dead_letter(self._consumer, delivery, reason))

    def _settle_soon(self, settle: Coroutine[Any, Any, None]) -> None:
        self._idle.clear()
        settling = self._loop.create_task(settle)
        self._settling.add(settling)
        settling.add_done_callback(self._settled_one)

    def _settled_one(self, settling: asyncio.Task[None]) -> None:
        self._settling.discard(settling)
        self._note_idle()


# A dead letter that is not confirmed leaves the delivery unsettled, and nobody else will settle it.
@retry(retry=retry_if_exception_type(BrokerUnavailable), wait=wait_random_exponential(multiplier=0.1, max=5))
async def _dead_letter(consumer: Consumer, delivery: Delivery, reason: DeadLetterReason) -> None:
    await consumer.dead_letter(delivery, reason)
