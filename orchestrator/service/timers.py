"""Time: what is overdue ends, and next attempts start, by whichever replica comes first."""

import asyncio
from typing import Final

from messaging.crash_points import reach
from orchestrator.service.driver import Driver
from orchestrator.storage.port import Storage

PAGE: Final = 100


class Timers:
    """Ends attempts and runs that are overdue, and starts attempts whose time has come."""

    def __init__(self, storage: Storage, driver: Driver) -> None:
        self._storage = storage
        self._driver = driver
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look soon: something is due."""
        self._woken.set()

    async def run(self) -> None:
        """Sweep at once, and then whenever woken."""
        while True:
            self._woken.clear()
            while await self.run_once():
                pass
            await self._woken.wait()

    async def run_once(self) -> bool:
        """Have a page of what is due decided; return whether there may be more."""
        due = await self._storage.due_inputs(PAGE)
        if due:
            reach("timers.due_found", due)
            await self._driver.drive(due)
        return len(due) == PAGE
