"""The reconciler: tasks that a purged or deleted queue has swallowed are sent again.

A task is somewhere: in the outbox, in its agent's queue, or with a worker, who speaks of it after a moment and then at
an interval. An attempt is *silent* when its task has left the outbox and nothing was heard of it for a while. Where an
agent has more silent attempts than its queue holds messages, the difference is missing. RabbitMQ does not say which its
queue holds; but a queue is FIFO and a purge takes whatever waits, so the oldest are the missing ones.

Sending a task again that is not lost costs a second execution. So it takes two looks in a row to believe it, and a look
that proves nothing does not count: while results wait to be applied, or the broker takes no messages from anybody (as
under a memory alarm), workers are not silent, only unheard. And each time that a task was sent again in vain, twice the
silence is needed for the next time: a worker that never says what it does is not given its task over and over.

Any number of replicas look. The first to send a task again ends its silence for all (`orchestrator.engine.silence`).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import groupby
from typing import Final
from uuid import UUID, uuid4

import structlog

from messaging import topology
from messaging.crash_points import reach
from messaging.port import Broker, BrokerError, OutgoingMessage, PublishOutcome, QueueDepth, QueueMissing
from orchestrator.engine.decision import Verdict
from orchestrator.engine.inputs import TaskMissing
from orchestrator.errors import RunLocked
from orchestrator.service.driver import Driver
from orchestrator.storage.port import Storage
from orchestrator.storage.silent import Silence, SilentAttempt

log = structlog.get_logger(__name__)

AGENTS: Final = 50  # looked at together; where there are more, they take turns
TASKS: Final = 5_000  # of an agent, suspected in one look; more than that are found in the next ones
PAGE: Final = 100  # sent again in one transaction, which holds their inputs in memory
REMEMBERED: Final = 10_000  # tasks of which we know how often we sent them again
BROKER_SECONDS: Final = 5.0  # for so long an answer is awaited
LOOKS_PER_PATIENCE: Final = 3
DOUBT: Final = 4  # times the patience

# Of a quorum queue whose leader does not answer within 250 ms, RabbitMQ says the same (rabbit_quorum_queue:stat).
_NOTHING: Final = QueueDepth(ready=0, consumers=0)


class Reconciler:
    """Compares what is open in Postgres with what RabbitMQ holds."""

    def __init__(self, storage: Storage, broker: Broker, driver: Driver, *, silent_after: float) -> None:
        """Prepare the reconciler.

        Args:
            storage: Where the attempts are.
            broker: Whose queues are asked.
            driver: Told of the tasks that are missing.
            silent_after: Seconds without a sign of life after which a task should be in its queue, or with a worker
                that has reported it. Of an attempt that was reported already, three times as long.
        """
        self._storage = storage
        self._broker = broker
        self._driver = driver
        self._silent_after = silent_after
        self._suspects: dict[str, frozenset[TaskMissing]] = {}  # by agent, those that the last look missed
        self._last_agent = ""  # whose turn was the last in the last look
        self._sent_again: OrderedDict[UUID, int] = OrderedDict()

    async def run(self) -> None:
        """Look for ever, a few times in the span after which an attempt counts as silent."""
        while True:
            # First: a replica that starts has results to apply that came while none was there.
            await asyncio.sleep(self._silent_after / LOOKS_PER_PATIENCE)
            await self.run_once()

    async def run_once(self) -> int:
        """Look once, and send again what the last look missed already; return how many tasks were sent again."""
        try:
            confirmed = await self._look()
            if not confirmed or not await self._broker_takes_messages():
                return 0
            reach("reconciler.missing_found", confirmed)
            return await self._send_again(confirmed)
        except (BrokerError, TimeoutError) as error:
            self._suspects.clear()
            log.debug("The queues could not be compared", action="reconciliation_skipped", error=str(error))
            return 0

    async def _look(self) -> Sequence[TaskMissing]:
        silences = await self._storage.count_silent(self._silent_after)
        if not silences or not await self._results_are_applied():
            self._suspects.clear()
            return []
        suspected = {}
        confirmed: list[TaskMissing] = []
        for silence in self._in_turn(silences):
            missing = await self._missing(silence)
            before = self._suspects.get(silence.agent_name, frozenset())
            confirmed += [task for task in missing if task in before]
            suspected[silence.agent_name] = frozenset(missing) - before
        present = {silence.agent_name for silence in silences}
        self._suspects = {name: some for name, some in self._suspects.items() if name in present} | suspected
        return confirmed

    def _in_turn(self, silences: Sequence[Silence]) -> Sequence[Silence]:
        """Return the agents to look at now: those that come after the last one, and round again."""
        turns = [silence for silence in silences if silence.agent_name > self._last_agent]
        turns = [*turns, *(silence for silence in silences if silence.agent_name <= self._last_agent)][:AGENTS]
        self._last_agent = turns[-1].agent_name
        return turns

    async def _missing(self, silence: Silence) -> Sequence[TaskMissing]:
        depth = await self._depth(topology.agent_queue(silence.agent_name).name)
        # A queue that still holds an old task holds all fresh ones too, behind it.
        count = silence.silent - max(depth.ready - silence.fresh, 0) if depth is not None else silence.silent
        if count <= 0:
            return []
        patience = self._silent_after * (DOUBT if depth == _NOTHING else 1)
        oldest = await self._storage.oldest_silent(silence.agent_name, self._silent_after, min(count, TASKS))
        return [attempt.missing for attempt in oldest if self._is_too_long(attempt, patience)]

    def _is_too_long(self, attempt: SilentAttempt, patience: float) -> bool:
        times_in_vain = self._sent_again.get(attempt.missing.task_id, 0)
        return attempt.silent_for >= timedelta(seconds=patience * 2**times_in_vain)

    async def _results_are_applied(self) -> bool:
        """Whether no report waits for us. We consume them, so an answer without consumers is no answer."""
        depth = await self._depth(topology.RESULTS_QUEUE.name)
        return depth is not None and depth.consumers > 0 and depth.ready == 0

    async def _depth(self, queue: str) -> QueueDepth | None:
        """Return what a queue holds; None where it does not exist."""
        try:
            async with asyncio.timeout(BROKER_SECONDS):
                return await self._broker.check_queue(queue)
        except QueueMissing:
            return None

    async def _broker_takes_messages(self) -> bool:
        """Send a message to nobody: under an alarm, the broker takes none from workers either."""
        probe = OutgoingMessage(
            exchange=topology.DEFAULT_EXCHANGE,
            routing_key="orchestrator.nobody",
            type="Probe",
            message_id=str(uuid4()),
            body=b"{}",
            persistent=False,
            mandatory=False,
        )
        async with asyncio.timeout(BROKER_SECONDS):
            outcome = (await self._broker.publish([probe]))[0]
        return outcome is PublishOutcome.CONFIRMED

    async def _send_again(self, missing: Sequence[TaskMissing]) -> int:
        sent = [
            task
            for start in range(0, len(missing), PAGE)
            for task in await self._send_page(missing[start : start + PAGE])
        ]
        for task in sent:
            self._remember(task)
        if sent:
            reach("reconciler.sent_again", sent)
            log.warning(
                "Tasks were neither in their queue nor with a worker that is heard of; they are sent again",
                action="tasks_sent_again",
                tasks=len(sent),
                runs=len({task.run_id for task in sent}),
            )
        return len(sent)

    async def _send_page(self, missing: Sequence[TaskMissing]) -> Sequence[TaskMissing]:
        try:
            answers = await self._driver.drive(missing)
        except RunLocked:
            return await self._send_by_run(missing)
        answered = zip(missing, answers, strict=True)
        return [task for task, answer in answered if answer.verdict is Verdict.APPLIED]

    async def _send_by_run(self, missing: Sequence[TaskMissing]) -> Sequence[TaskMissing]:
        """Leave out the runs that somebody keeps locked: reports about them may wait for the same lock."""
        sent: list[TaskMissing] = []
        for some in _by_run(missing):
            try:
                answers = await self._driver.drive(some)
            except RunLocked:
                continue
            sent += [task for task, answer in zip(some, answers, strict=True) if answer.verdict is Verdict.APPLIED]
        return sent

    def _remember(self, task: TaskMissing) -> None:
        self._sent_again[task.task_id] = self._sent_again.pop(task.task_id, 0) + 1
        if len(self._sent_again) > REMEMBERED:
            self._sent_again.popitem(last=False)
        log.info(
            "A task is sent again",
            action="task_sent_again",
            run_id=str(task.run_id),
            step_id=task.step_id,
            task_id=str(task.task_id),
            silent_since=task.last_sign.isoformat(),
        )


def _by_run(missing: Sequence[TaskMissing]) -> Iterator[Sequence[TaskMissing]]:
    ordered = sorted(missing, key=lambda task: task.run_id)
    for _, some in groupby(ordered, key=lambda task: task.run_id):
        yield list(some)
