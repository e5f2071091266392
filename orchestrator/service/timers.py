"""Time: attempts whose due time has passed, ended by whichever replica comes first, like any other input."""

import asyncio
from typing import Final

from messaging.crash_points import reach
from orchestrator.service.driver import Driver
from orchestrator.storage.port import Storage

PAGE: Final = 100


class Timers:
    """Ends attempts that are overdue."""

    def __init__(self, storage: Storage, driver: Driver) -> None:
        self._storage = storage
        self._driver = driver
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Have attempts ended soon: some are overdue."""
        self._woken.set()

    async def run(self) -> None:
        """Sweep at once, and then whenever woken."""
        while True:
            self._woken.clear()
            while await self.run_once():
                pass
            await self._woken.wait()

    async def run_once(self) -> bool:
        """End a page of overdue attempts; return whether there may be more."""
        overdue = await self._storage.overdue_attempts(PAGE)
        if overdue:
            reach("timers.overdue_found", overdue)
            await self._driver.drive(overdue)
        return len(overdue) == PAGE
