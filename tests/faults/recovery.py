"""How long it takes to go on after a fault: the figures that orchestrator/FAILURES.md gives to operators."""

import time
from dataclasses import dataclass

import pytest

from tests import summary


@dataclass
class Recovery:
    """One fault, and the times that follow it; times are seconds."""

    config: pytest.Config
    fault: str
    began: float = 0.0
    over: float = 0.0

    def injected(self) -> None:
        """Note that the fault begins now."""
        self.began = self.over = time.monotonic()

    def ended(self) -> None:
        """Note that what was taken away is there again; the system may recover from now on."""
        self.over = time.monotonic()

    def note(self, *reached: tuple[str, float]) -> None:
        """Keep what was reached, each with the time at which it was, for the end of pytest's output."""
        times = [f"{what} after {at - self.over:.1f} s" for what, at in reached]
        if self.over > self.began:
            times.insert(0, f"lasted {self.over - self.began:.1f} s")
        line = f"{self.fault}: {', '.join(times)}"
        print(line)
        summary.note(self.config, "recovery", line)
