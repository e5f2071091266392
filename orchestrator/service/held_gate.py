"""One gate that a replica holds: the tickets in its hands, and the questions about them.

A delivery stands for a branch. It stays unsettled while the branch waits or runs and is acked when the branch has
ended, and that ack makes RabbitMQ deliver the next.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

import structlog

from messaging.crash_points import reach
from messaging.port import Consumer, ConsumerClosed, DeadLetterReason, Delivery
from orchestrator.engine.decision import Verdict
from orchestrator.engine.inputs import BranchArrived
from orchestrator.errors import RunLocked
from orchestrator.service.driver import Driver
from orchestrator.service.notices import GateTicket
from schemas.codec import decode
from schemas.errors import MessageRefused

log = structlog.get_logger(__name__)

FINISH_SECONDS: Final = 1.0  # for a question that is under way when a gate is given up
ASK_SECONDS: Final = 0.25  # for so long a ticket may wait to hear whether its branch runs
MAX_TICKETS: Final = 500  # answered in one transaction

GateKey = tuple[UUID, str]  # run and block


class HeldGate:
    """One gate that this replica holds, and the tickets in its hands."""

    def __init__(self, key: GateKey, consumer: Consumer, driver: Driver) -> None:
        self.key = key
        self._consumer = consumer
        self._driver = driver
        self._held: dict[str, list[Delivery]] = {}  # a ticket that was sent twice is delivered twice
        self._dispatched: set[str] = set()  # known to run, whether or not their tickets have arrived
        self._asked = False
        self._closed = asyncio.Event()
        self._later: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._run(), name=f"gate {key[0]}.{key[1]}")

    @property
    def held(self) -> Sequence[str]:
        """The branches whose tickets are in hand."""
        return list(self._held)

    def branches_dispatched(self, step_ids: Iterable[str]) -> None:
        """Remember branches that got a slot: their tickets, when they arrive, are held without asking."""
        self._dispatched.update(step_ids)

    async def branches_ended(self, step_ids: Collection[str]) -> None:
        """Ack the tickets of branches that have ended; each ack lets RabbitMQ deliver the next."""
        self._dispatched.difference_update(step_ids)
        await self._consumer.ack([delivery for step_id in step_ids for delivery in self._held.pop(step_id, ())])
        reach("gate.tickets_acked", step_ids)

    async def close(self) -> None:
        """Let go: what is held goes back to the queue, for the next holder."""
        self._closed.set()
        await self._consumer.close()
        # A question that is being answered may have messages to send, which nobody else would for a while.
        tasks = (self._task, *self._later)
        _, unfinished = await asyncio.wait(tasks, timeout=FINISH_SECONDS)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def is_broken(self) -> bool:
        """Whether it stopped by an error, and must be opened anew."""
        return self._task.done()

    async def _run(self) -> None:
        try:
            while True:
                await self._take(await self._consumer.receive(MAX_TICKETS))
        except ConsumerClosed:
            return
        except Exception:
            log.exception(
                "A gate stopped; it is opened anew", action="gate_failed", run_id=str(self.key[0]), block_id=self.key[1]
            )
            raise

    async def _take(self, deliveries: Sequence[Delivery]) -> None:
        arrived = []
        for delivery in deliveries:
            try:
                ticket = decode(GateTicket, delivery.body)
            except MessageRefused as refused:
                await self._consumer.dead_letter(delivery, DeadLetterReason(refused.code, str(refused)))
                continue
            # In hand before anything is asked: its branch may end at any moment from now on.
            self._held.setdefault(ticket.step_id, []).append(delivery)
            reach("gate.ticket_held", ticket.step_id)
            if ticket.step_id not in self._dispatched:
                arrived.append(ticket.step_id)
        if arrived and self._asked:
            # A notice about them is probably on its way.
            task = asyncio.create_task(self._ask_later(arrived))
            self._later.add(task)
            task.add_done_callback(self._later.discard)
        elif arrived:
            self._asked = True
            await self._ask_unless_locked(arrived)

    async def _ask_later(self, arrived: Sequence[str]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(ASK_SECONDS):
                await self._closed.wait()
                return
        unknown = [step_id for step_id in arrived if step_id in self._held and step_id not in self._dispatched]
        if not unknown:
            return
        try:
            await self._ask_unless_locked(unknown)
        except Exception:
            # The tickets stay in hand, and the next lease round looks after them.
            log.exception(
                "Tickets could not be asked about",
                action="gate_question_failed",
                run_id=str(self.key[0]),
                block_id=self.key[1],
            )

    async def _ask_unless_locked(self, arrived: Sequence[str]) -> None:
        try:
            await self._ask(arrived)
        except RunLocked:
            # The tickets stay in hand, and the next lease round looks after them.
            log.info(
                "Somebody keeps a run locked; its gate waits",
                action="gate_waits",
                run_id=str(self.key[0]),
                block_id=self.key[1],
            )

    async def _ask(self, arrived: Sequence[str]) -> None:
        run_id, block_id = self.key
        answers = await self._driver.drive([BranchArrived(run_id, block_id, step_id) for step_id in arrived])
        answered = zip(arrived, answers, strict=True)
        await self.branches_ended([step_id for step_id, answer in answered if answer.verdict is Verdict.STALE])
