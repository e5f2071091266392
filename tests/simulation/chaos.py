"""Which faults happen, and when: drawn from the seed, within a budget, and none after a while.

A fault has a probability at every step of every process. So the same few hundred steps of a run are hit in ever other
places, and in ever other combinations, by ever other seeds.
"""

import asyncio
from typing import Final

from tests.simulation.entropy import Dice

LAST_FAULT_AT: Final = 40.0  # virtual seconds: afterwards everything must come to its end


class Chaos:
    """The dice of one simulation, and what they have brought."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.trace: list[str] = []
        self.faults: list[str] = []
        self.storage_is_down = False
        self._budget = dice.pick([0, 1, 2, 3, 4, 6, 9])
        self._rate = dice.pick([0.003, 0.01, 0.03])
        self._slowness = dice.pick([0.0, 0.005, 0.05])

    @property
    def now(self) -> float:
        """The virtual time in seconds."""
        return asyncio.get_running_loop().time()

    @property
    def is_over(self) -> bool:
        """Whether no fault will happen any more."""
        return self._budget <= 0 or self.now >= LAST_FAULT_AT

    def note(self, who: str, what: str) -> None:
        """Write a line into the trace."""
        self.trace.append(f"{self.now:9.3f} {who:12} {what}")

    def strikes(self, what: str, weight: float = 1.0) -> bool:
        """Return whether a fault happens at this step; it is counted."""
        return self._happens(what, self._rate * weight)

    def befalls(self, what: str) -> bool:
        """Return whether an accident happens, of which there are few occasions; it is counted."""
        return self._happens(what, 0.25)

    async def delay(self) -> None:
        """Let some time pass, mostly none."""
        if self._slowness and self.dice.happens(0.3):
            await asyncio.sleep(self.dice.uniform(0, self._slowness))
        elif self.dice.happens(0.1):
            await asyncio.sleep(0)

    def _happens(self, what: str, probability: float) -> bool:
        if self.is_over or not self.dice.happens(probability):
            return False
        self._budget -= 1
        self.faults.append(f"{self.now:.3f} {what}")
        self.note("fault", what)
        return True
