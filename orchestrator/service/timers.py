"""Time: attempts whose due time has passed, found by every replica and decided like any other input."""

import asyncio
from typing import Final

from messaging.crash_points import reach
from orchestrator.service.driver import Driver
from orchestrator.storage.port import Storage

PAGE: Final = 100


class Timers:
    """Sweeps for what is due."""

    def __init__(self, storage: Storage, driver: Driver, interval: float = 1.0) -> None:
        self._storage = storage
        self._driver = driver
        self._interval = interval

    async def run(self) -> None:
        """Sweep every *interval* seconds."""
        while True:
            while await self.run_once():
                pass
            await asyncio.sleep(self._interval)

    async def run_once(self) -> bool:
        """End a page of overdue attempts; return whether there may be more."""
        overdue = await self._storage.overdue_attempts(PAGE)
        if overdue:
            reach("timers.overdue_found", overdue)
            await self._driver.drive(overdue)
        return len(overdue) == PAGE
