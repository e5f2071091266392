"""Tasks that the broker itself gave up.

A policy may give the agents' queues a delivery limit and a dead-letter exchange. Where that limit is reached before a
worker's own (`FORKJOIN_WORKER_MAX_DELIVERIES`), no worker reports the failure, and the branch would wait for ever. The
dead letter is then the only trace, and what it says ends the attempt as lost.

But a task that is given up may be running all the same: a consumer_timeout shorter than the agent makes it come back
again and again. So an attempt that was heard of lately is judged again later, until it is silent or over. That is kept
in memory; should the process die meanwhile, the reconciler sends the silent attempt's task once more, and a task that
kills its worker then becomes a dead letter once more.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from typing import Any, Final
from uuid import UUID

import structlog

from messaging.dead_letters import REASON_HEADER
from messaging.port import Delivery
from orchestrator.engine import codes
from orchestrator.engine.inputs import TaskUndeliverable
from orchestrator.service.driver import Driver
from orchestrator.storage.silent import PATIENCE_WITH_WORKERS
from schemas.codec import decode
from schemas.errors import MessageRefused
from schemas.messages import AgentTask

DEATHS_HEADER: Final = "x-death"  # the broker's: one table for each queue and reason, the latest first
DELIVERY_LIMIT: Final = "delivery_limit"  # the reason that a quorum queue gives
PAGE: Final = 500  # judged in one transaction
LOOK_AGAIN_SECONDS: Final = 10.0

log = structlog.get_logger(__name__)


class LostTasks:
    """Judges the attempts whose tasks the broker gave up, until each is over.

    Args:
        driver: Told of the lost tasks.
        silent_after: Seconds; the reconciler's, and as there a worker that has spoken has a multiple of it.
    """

    def __init__(self, driver: Driver, *, silent_after: float = 30.0) -> None:
        self._driver = driver
        self._silent_after = timedelta(seconds=PATIENCE_WITH_WORKERS * silent_after)
        self._pending: dict[UUID, TaskUndeliverable] = {}
        self._any = asyncio.Event()

    def add(self, dead_letters: Iterable[Delivery]) -> None:
        """Take the lost tasks among *dead_letters*; to be called before these are acked, and again is harmless."""
        for lost in lost_tasks(dead_letters):
            log.warning(
                "RabbitMQ gave a task up after too many deliveries",
                action="task_given_up",
                run_id=str(lost.run_id),
                step_id=lost.step_id,
                task_id=str(lost.task_id),
            )
            self._pending[lost.task_id] = replace(lost, silent_after=self._silent_after)
        if self._pending:
            self._any.set()

    async def run(self) -> None:
        """Judge for ever: at once, and again while a worker is heard of."""
        while True:
            await self._any.wait()
            if await self.run_once():
                await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def run_once(self) -> int:
        """Judge each pending attempt once; return how many are pending still, because a worker is heard of."""
        self._any.clear()
        events = iter(list(self._pending.values()))
        while page := list(islice(events, PAGE)):
            answers = await self._driver.drive(page)
            for event, answer in zip(page, answers, strict=True):
                if answer.code != codes.HEARD_FROM:
                    self._pending.pop(event.task_id, None)
        if self._pending:
            self._any.set()
        return len(self._pending)


def lost_tasks(dead_letters: Iterable[Delivery]) -> list[TaskUndeliverable]:
    """Return what to drive for those dead letters that are tasks beyond their queue's delivery limit.

    All others are left out: what a service refused says so in our own header, and what expired, was rejected or did
    not fit into its queue was never in a worker's hands. Driving the same input again is harmless: the attempt is over
    then, or it was heard of and is judged anew.
    """
    return [_undeliverable(task) for letter in dead_letters if (task := _task_of(letter)) is not None]


def _task_of(letter: Delivery) -> AgentTask | None:
    if REASON_HEADER in letter.headers or _latest_reason(letter.headers) != DELIVERY_LIMIT:
        return None
    try:
        return decode(AgentTask, letter.body)
    except MessageRefused:
        return None


def _latest_reason(headers: Mapping[str, Any]) -> object:
    deaths = headers.get(DEATHS_HEADER)
    latest = deaths[0] if isinstance(deaths, list) and deaths else None
    return latest.get("reason") if isinstance(latest, Mapping) else None


def _undeliverable(task: AgentTask) -> TaskUndeliverable:
    return TaskUndeliverable(task.run_id, task.step_id, task.task_id, "worker_lost")
