"""How late the event loop is: how much later than asked for it wakes one of its own tasks up."""

import asyncio
from typing import Final

from messaging.monitoring.instruments import LAGS, Spread

LOOK_SECONDS: Final = 0.25


class LoopLag:
    """Measures the lag of the loop that runs it."""

    def __init__(self) -> None:
        self.seconds = Spread(
            "forkjoin_event_loop_lag_seconds",
            "How late the event loop woke a task up that it was to wake.",
            bounds=LAGS,
        )

    async def run(self) -> None:
        """Measure for ever."""
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time() + LOOK_SECONDS
            await asyncio.sleep(LOOK_SECONDS)
            self.seconds.observe(max(loop.time() - asked, 0.0))
