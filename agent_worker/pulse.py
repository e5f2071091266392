"""The signs of life of one attempt: STARTED when it runs for a while, then HEARTBEATs."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from schemas.statuses import ReportStatus

BEAT_SPACING: Final = 1.0  # seconds: an agent that beats in a tight loop must not flood the broker


@dataclass(frozen=True, slots=True)
class PulseTiming:
    """When signs of life are due, in seconds."""

    started_after: float
    heartbeat_interval: float


class AttemptPulse:
    """Sends signs of life until it is stopped, and never after: the result is the last word.

    A short attempt sends none, because its result says when it started. The first sign is always STARTED.
    """

    __slots__ = ("_last_beat", "_loop", "_send", "_started", "_timer", "_timing", "over")

    def __init__(self, send: Callable[[ReportStatus], None], timing: PulseTiming) -> None:
        self.over = False
        self._send = send
        self._timing = timing
        self._started = False
        self._last_beat = float("-inf")
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(timing.started_after, self._due)

    def beat(self) -> None:
        """Send a heartbeat for the agent, unless it just did. Safe to call from any thread."""
        now = time.monotonic()
        if self.over or now - self._last_beat < BEAT_SPACING:
            return
        self._last_beat = now
        try:
            self._loop.call_soon_threadsafe(self._beat)
        except RuntimeError:  # the loop is closed, and this is a thread that outlived its attempt
            self.over = True

    def stop(self) -> None:
        """Send nothing any more."""
        self.over = True
        self._timer.cancel()

    def _due(self) -> None:
        if not self._tell_started():
            self._send(ReportStatus.HEARTBEAT)
        self._timer = self._loop.call_later(self._timing.heartbeat_interval, self._due)

    def _beat(self) -> None:
        if self.over:
            return
        if self._tell_started():
            self._timer.cancel()
            self._timer = self._loop.call_later(self._timing.heartbeat_interval, self._due)
        self._send(ReportStatus.HEARTBEAT)

    def _tell_started(self) -> bool:
        first, self._started = not self._started, True
        if first:
            self._send(ReportStatus.STARTED)
        return first
