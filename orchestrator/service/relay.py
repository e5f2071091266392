"""The outbox relay: messages go out after the commit that caused them, at least once.

A commit hands its messages over in memory and they are published at once; the rows are deleted when the broker has
confirmed them. Whatever is left in the outbox — a block too large to hand over, messages of a process that died, what
the broker did not confirm or could not route — is found by the sweep when it is due (`lookout`). Both ways share one
`_settle`: recovery is the same path, entered later.

A message that was handed over is left alone by all sweeps for a while (`HAND_OVER_SECONDS` from the beginning of its
transaction). What cannot be sent in that time is given up well before its end, so that no two processes send it: only
what was written and not confirmed can arrive twice.
"""

import asyncio
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Final, NamedTuple, assert_never
from uuid import UUID

import structlog

from messaging import topology
from messaging.crash_points import reach
from messaging.port import Broker, PublishOutcome
from orchestrator.engine import codes
from orchestrator.engine.inputs import TaskUndeliverable
from orchestrator.service.batch import Committed
from orchestrator.service.driver import Driver
from orchestrator.service.origins import QUEUE_MISSING
from orchestrator.service.outgoing import to_message, without_output
from orchestrator.storage.changes import OutboxRow
from orchestrator.storage.database import is_lost_connection
from orchestrator.storage.dead_letters import Undeliverable
from orchestrator.storage.port import Outbox, Storage
from schemas.messages import AgentTask, RunResult

log = structlog.get_logger(__name__)

PAGE: Final = 500
RETRY_SECONDS: Final = 1.0
FORGET_SECONDS: Final = 0.05  # sent rows are deleted together; a crash before that sends them twice, which is harmless
EVENTS_SECONDS: Final = 0.05  # events wait for each other: in one write they cost the broker a fraction
SEND_SECONDS: Final = 4.0  # a message that is not on its way so long after its transaction began is left to the sweep
PUBLISH_SECONDS: Final = 4.0  # and so is one without an answer; both together end well within HAND_OVER_SECONDS
SENDERS: Final = 4  # publishing at once; what is committed meanwhile goes out with the next one that is free
_OUR_QUEUES: Final = frozenset(queue.name for queue in topology.QUEUES)
MAX_PENDING_BYTES: Final = 32 * 1024 * 1024  # what a slow broker keeps waiting beyond that is left to the sweep


class HandedOver(NamedTuple):
    """A message that this process may send, and when its transaction began."""

    row: OutboxRow
    begun: float


class Relay:
    """Sends what the outbox holds."""

    def __init__(self, storage: Storage, broker: Broker, driver: Driver, *, unknown_agent_after: float) -> None:
        """Prepare the relay.

        Args:
            storage: Where the outbox is.
            broker: Where its messages go.
            driver: Told of tasks that no queue takes.
            unknown_agent_after: Seconds for which such a task is tried before its step fails.
        """
        self._storage = storage
        self._broker = broker
        self._driver = driver
        self._unknown_agent_after = unknown_agent_after
        self._wake = asyncio.Event()
        self._pending: deque[HandedOver] = deque()
        self._events: list[HandedOver] = []
        self._pending_bytes = 0
        self._working = 0
        self._in_flight = 0
        self._senders: set[asyncio.Task[None]] = set()
        self._answered = True  # whether the broker answered the last sweep
        self._sent_ids: list[UUID] = []
        self._any_sent = asyncio.Event()
        self._forgetting = asyncio.Lock()

    @property
    def waiting(self) -> int:
        """How many messages were handed over and are not sent yet; should this process end, the sweep sends them."""
        return len(self._pending) + len(self._events) + self._in_flight

    def wake(self) -> None:
        """Sweep soon: something in the outbox is due."""
        self._wake.set()

    async def committed(self, batch: Committed) -> None:
        """Send a commit's messages; called right after it."""
        if batch.left_in_outbox:
            self._wake.set()
        size = sum(len(row.body) for row in batch.messages)
        if not batch.messages or self._pending_bytes + size > MAX_PENDING_BYTES:
            return
        self._pending_bytes += size
        events = [HandedOver(row, batch.begun) for row in batch.messages if row.exchange == topology.EVENTS_EXCHANGE]
        if events and not self._events:
            self._start_sender(self._send_events())
        self._events.extend(events)
        self._pending.extend(
            HandedOver(row, batch.begun) for row in batch.messages if row.exchange != topology.EVENTS_EXCHANGE
        )
        if self._pending and self._working < SENDERS:
            self._start_sender(self._send_pending())
            # One turn for it: tasks for workers get onto the wire before the acks that are written next.
            await asyncio.sleep(0)

    async def run(self) -> None:
        """Sweep at once, and then whenever there is reason to."""
        while True:
            self._wake.clear()
            while await self.run_once():
                pass
            await self._wake.wait()

    async def run_once(self) -> bool:
        """Send one page of what is due; return whether there may be more.

        Nothing is locked while the broker is out of reach: another replica may reach it. While it does not answer, one
        message goes ahead of the others: what it takes in without an answer, as under a memory alarm, arrives again
        with each try.
        """
        if not self._broker.connected:
            return False
        limit = PAGE if self._answered else 1
        async with self._storage.outbox() as outbox:
            rows = await outbox.lock_due(limit)
            if not rows:
                return False
            outcomes = await self._publish_unsent(rows)
            undeliverable = await self._settle(outbox, rows, outcomes)
        self._answered = any(outcome is not PublishOutcome.UNKNOWN for outcome in outcomes)
        await self._give_up(undeliverable)
        return self._answered and len(rows) == limit

    async def drain(self) -> None:
        """Wait until the messages that were handed over are sent, and forgotten."""
        await asyncio.gather(*self._senders, return_exceptions=True)
        await self._forget_sent()

    async def forget(self) -> None:
        """Delete the rows of sent messages, for ever."""
        while True:
            await self._any_sent.wait()
            await asyncio.sleep(FORGET_SECONDS)
            await self._forget_sent()

    async def _forget_sent(self) -> None:
        async with self._forgetting:
            self._any_sent.clear()
            ids = list(self._sent_ids)
            if not ids:
                return
            with self._driver.database.using():
                async with self._storage.outbox() as outbox:
                    await outbox.delete(ids)
            reach("outbox.forgotten")
            # Only now: while Postgres is out of reach they stay to be forgotten.
            del self._sent_ids[: len(ids)]

    def _start_sender(self, work: Coroutine[Any, Any, None]) -> None:
        sender = asyncio.create_task(work)
        self._senders.add(sender)
        sender.add_done_callback(self._sender_ended)

    async def _send_pending(self) -> None:
        self._working += 1
        try:
            while self._pending:
                await self._send_now([self._pending.popleft() for _ in range(min(len(self._pending), PAGE))])
        finally:
            self._working -= 1

    async def _send_events(self) -> None:
        await asyncio.sleep(EVENTS_SECONDS)
        events, self._events = self._events, []
        for start in range(0, len(events), PAGE):
            await self._send_now(events[start : start + PAGE])

    async def _send_now(self, messages: Sequence[HandedOver]) -> None:
        self._pending_bytes -= sum(len(message.row.body) for message in messages)
        too_late = asyncio.get_running_loop().time() - SEND_SECONDS
        rows = [message.row for message in messages if message.begun > too_late]
        if len(rows) < len(messages):
            log.debug("Messages were left to the sweep", action="messages_left", count=len(messages) - len(rows))
        if not rows:
            return
        self._in_flight += len(rows)
        try:
            outcomes = await self._publish(rows, timeout=PUBLISH_SECONDS)
        finally:
            self._in_flight -= len(rows)
        if all(outcome is PublishOutcome.CONFIRMED for outcome in outcomes):
            self._sent_ids.extend(row.message_id for row in rows)
            self._any_sent.set()
            return
        async with self._storage.outbox() as outbox:
            undeliverable = await self._settle(outbox, rows, outcomes)
        await self._give_up(undeliverable)

    def _sender_ended(self, task: asyncio.Task[None]) -> None:
        self._senders.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # The rows are still in the outbox, and the sweep sends them again when they are due.
        self._driver.database.failed(error)
        if not is_lost_connection(error):
            log.warning("Messages were left to the sweep", action="relay_interrupted", error=str(error))

    async def _publish_unsent(self, rows: Sequence[OutboxRow]) -> Sequence[PublishOutcome]:
        """Publish those that are not sent yet: a row stays when it could not be deleted at once."""
        sent = set(self._sent_ids)
        unsent = [row for row in rows if row.message_id not in sent]
        answers = iter(await self._publish(unsent) if unsent else ())
        return [PublishOutcome.CONFIRMED if row.message_id in sent else next(answers) for row in rows]

    async def _publish(self, rows: Sequence[OutboxRow], *, timeout: float | None = None) -> Sequence[PublishOutcome]:
        reach("outbox.before_publish", rows)
        outcomes = await self._broker.publish([to_message(row) for row in rows], timeout=timeout)
        reach("outbox.published", rows)
        return outcomes

    async def _settle(
        self, outbox: Outbox, rows: Sequence[OutboxRow], outcomes: Sequence[PublishOutcome]
    ) -> list[TaskUndeliverable]:
        done: list[UUID] = []
        unknown: list[UUID] = []
        returned: dict[UUID, OutboxRow] = {}
        given_up: list[TaskUndeliverable] = []
        put_back: list[Undeliverable] = []
        for row, outcome in zip(rows, outcomes, strict=True):
            match outcome:
                case PublishOutcome.CONFIRMED:
                    done.append(row.message_id)
                case PublishOutcome.UNKNOWN:
                    unknown.append(row.message_id)
                case PublishOutcome.RETURNED | PublishOutcome.TOO_LARGE if row.replay is not None:
                    put_back.append(_undeliverable(row, outcome))
                case PublishOutcome.RETURNED if _is_for_client(row):
                    log.warning("The client's reply queue is gone", action="reply_unroutable", run_id=str(row.run_id))
                    done.append(row.message_id)
                case PublishOutcome.RETURNED:
                    returned[row.message_id] = row
                case PublishOutcome.TOO_LARGE:
                    given_up += self._too_large(row)
                    (done if await self._send_smaller(row) else unknown).append(row.message_id)
                case _:
                    assert_never(outcome)
        if done:
            await outbox.delete(done)
        if unknown:
            await outbox.postpone(unknown, delay=RETRY_SECONDS, returned=False)
        if returned:
            given_up += await self._postpone_returned(outbox, returned)
        if put_back:
            await outbox.put_back(put_back)
        return given_up

    def _too_large(self, row: OutboxRow) -> list[TaskUndeliverable]:
        size = len(row.body)
        log.error(
            "A message exceeds the broker's limit",
            action="message_too_large",
            type=row.type,
            size=size,
            run_id=_text(row.run_id),
            step_id=row.step_id,
            task_id=_text(row.task_id),
        )
        if row.run_id is None or row.task_id is None or row.step_id is None:
            return []
        return [TaskUndeliverable(row.run_id, row.step_id, row.task_id, codes.PAYLOAD_TOO_LARGE)]

    async def _send_smaller(self, row: OutboxRow) -> bool:
        """Send what can be said in less; return whether the message as it was is done with.

        A task stays until its step has failed; should this process die first, the sweep comes by here again.
        """
        if row.type != RunResult.__name__:
            return row.task_id is None
        return (await self._publish([without_output(row)]))[0] is not PublishOutcome.UNKNOWN

    async def _postpone_returned(self, outbox: Outbox, returned: dict[UUID, OutboxRow]) -> list[TaskUndeliverable]:
        given_up: list[TaskUndeliverable] = []
        for late in await outbox.postpone(list(returned), delay=RETRY_SECONDS, returned=True):
            row = returned[late.message_id]
            if row.run_id is None or row.task_id is None or row.step_id is None or row.type != AgentTask.__name__:
                continue
            if late.unroutable_for.total_seconds() == 0:
                log.warning(
                    "No worker has declared the agent's queue yet; the task waits",
                    action="task_unroutable",
                    agent_name=row.routing_key,
                    run_id=str(row.run_id),
                    step_id=row.step_id,
                    task_id=str(row.task_id),
                )
            elif late.unroutable_for.total_seconds() >= self._unknown_agent_after:
                given_up.append(TaskUndeliverable(row.run_id, row.step_id, row.task_id, codes.UNKNOWN_AGENT))
        return given_up

    async def _give_up(self, undeliverable: Sequence[TaskUndeliverable]) -> None:
        if not undeliverable:
            return
        await self._driver.drive(undeliverable)
        async with self._storage.outbox() as outbox:
            await outbox.delete_tasks([event.task_id for event in undeliverable])


def _text(identity: UUID | None) -> str | None:
    return None if identity is None else str(identity)


def _is_for_client(row: OutboxRow) -> bool:
    """Whether it goes to a client's own queue, which ends with the client; ours are declared again."""
    return row.exchange == topology.DEFAULT_EXCHANGE and row.routing_key not in _OUR_QUEUES


def _undeliverable(row: OutboxRow, outcome: PublishOutcome) -> Undeliverable:
    if outcome is PublishOutcome.TOO_LARGE:
        message = f"replayed, but its {len(row.body):,} bytes are more than the broker takes by now"
        return Undeliverable(row.message_id, codes.PAYLOAD_TOO_LARGE, message)
    log.warning("The queue of a replayed message is gone", action="replay_unroutable", queue=row.routing_key)
    message = f'replayed, but there is no queue "{row.routing_key}": replay it again when there is one'
    return Undeliverable(row.message_id, QUEUE_MISSING, message)
