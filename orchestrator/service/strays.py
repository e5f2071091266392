"""Sub-workflows and their steps find each other again where a message between them was lost.

Three messages hold a step and the run that carries it out together: the RunRequest, its RunResult, and a CancelRun
where the step does not wait any more. Queues are purged, and dead letters lie about. So each replica looks at times for
steps and runs that do not fit together, and does what the lost message would have done (`orchestrator.storage.strays`).

A request that is sent again is harmless: it bears the id of the run. But one that our own code fails on becomes a dead
letter each time, so the pause doubles.
"""

import asyncio
from collections import OrderedDict
from typing import Final
from uuid import UUID

import structlog

from orchestrator.engine.decision import Verdict
from orchestrator.engine.inputs import TaskMissing
from orchestrator.errors import RunLocked
from orchestrator.service.driver import Driver
from orchestrator.storage.port import Storage
from orchestrator.storage.strays import Stray

log = structlog.get_logger(__name__)

PAGE: Final = 100  # of each kind; where there are more, the next look finds them
REMEMBERED: Final = 10_000  # requests of which we know how often we sent them again


class Strays:
    """Brings sub-workflows and their steps together again.

    Args:
        storage: Where both are.
        driver: Told what the lost messages would have said.
        silent_after: Seconds for which a request or a result may travel.
    """

    def __init__(self, storage: Storage, driver: Driver, *, silent_after: float) -> None:
        self._storage = storage
        self._driver = driver
        self._silent_after = silent_after
        self._sent_again: OrderedDict[UUID, int] = OrderedDict()

    async def run(self) -> None:
        """Look for ever: once in the time that a message may take."""
        while True:
            # First: a replica that starts has messages to take that came while none was there.
            await asyncio.sleep(self._silent_after)
            await self.run_once()

    async def run_once(self) -> int:
        """Look once; return for how many something was done."""
        done = 0
        for stray in await self._storage.find_strays(self._silent_after, PAGE):
            if self._is_time(stray):
                done += await self._make_up_for(stray)
        return done

    def _is_time(self, stray: Stray) -> bool:
        if not isinstance(stray.event, TaskMissing):
            return True
        times = self._sent_again.get(stray.event.task_id, 0)
        return stray.silent_for.total_seconds() >= self._silent_after * 2.0**times

    async def _make_up_for(self, stray: Stray) -> bool:
        try:
            [answer] = await self._driver.drive([stray.event])
        except RunLocked:
            return False  # the next look finds it
        if answer.verdict is not Verdict.APPLIED:
            return False
        if isinstance(stray.event, TaskMissing):
            self._remember(stray.event.task_id)
        log.warning(
            "A message between a step and its sub-workflow was lost; what it would have said was done",
            action="stray_found",
            input=type(stray.event).__name__,
            run_id=str(stray.event.run_id),
        )
        return True

    def _remember(self, task_id: UUID) -> None:
        self._sent_again[task_id] = self._sent_again.pop(task_id, 0) + 1
        if len(self._sent_again) > REMEMBERED:
            self._sent_again.popitem(last=False)
