"""When an attempt's time is over: its agent is cancelled, and left to itself when it goes on regardless."""

import asyncio
from collections.abc import Callable


class Deadline:
    """The end of the time that the current asyncio task has; begins at once.

    Args:
        seconds: Until the task is cancelled.
        grace: Seconds that it then has to clean up.
        ignored: Called when it goes on for longer than that.
    """

    __slots__ = ("_grace", "_ignored", "_loop", "_running", "_timer", "passed")

    def __init__(self, seconds: float, grace: float, ignored: Callable[[], None]) -> None:
        self.passed = False
        self._grace = grace
        self._ignored = ignored
        self._running = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(seconds, self._pass)

    def stop(self) -> None:
        """The task has done what it had time for."""
        self._timer.cancel()

    def _pass(self) -> None:
        self.passed = True
        if self._running is not None:
            self._running.cancel()
        self._timer = self._loop.call_later(self._grace, self._ignored)
