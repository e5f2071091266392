"""The signs of life of attempts: STARTED when one runs for a while, then HEARTBEATs."""

import asyncio
import math
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


class Rhythm:
    """Tells the pulses of a worker when they are due, with one timer: most attempts end long before their first sign.

    All pulses wait equally long for their first sign, and those with the same interval equally long between two
    heartbeats. So each group is in the order of what is due, and only its first members need a look.
    """

    def __init__(self, timing: PulseTiming) -> None:
        self._timing = timing
        self._starting: dict[AttemptPulse, float] = {}  # when its first sign is due, on the event loop's clock
        self._beating: dict[float, dict[AttemptPulse, float]] = {}  # by interval: when its next heartbeat is due
        self._timer: asyncio.TimerHandle | None = None
        self._next = math.inf  # when the timer goes off

    def begin(self, pulse: "AttemptPulse") -> None:
        """Have *pulse* say that it started, when that is due."""
        self._add(self._starting, pulse, self._timing.started_after)

    def go_on(self, pulse: "AttemptPulse") -> None:
        """Have *pulse* beat when the next heartbeat is due, counted from now."""
        self.end(pulse)
        interval = self._interval(pulse)
        self._add(self._beating.setdefault(interval, {}), pulse, interval)

    def end(self, pulse: "AttemptPulse") -> None:
        """Leave *pulse* alone. The timer stays as it is: it may find nothing to do, once."""
        if self._starting.pop(pulse, None) is None:
            interval = self._interval(pulse)
            group = self._beating.get(interval, {})
            group.pop(pulse, None)
            if not group:
                self._beating.pop(interval, None)

    def _interval(self, pulse: "AttemptPulse") -> float:
        return min(self._timing.heartbeat_interval, pulse.longest_silence)

    def _add(self, group: dict["AttemptPulse", float], pulse: "AttemptPulse", seconds: float) -> None:
        loop = asyncio.get_running_loop()
        due = group[pulse] = loop.time() + seconds
        if due < self._next:
            self._wake_at(due, loop)

    def _wake_at(self, due: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = due
        self._timer = loop.call_at(due, self._look, loop) if due < math.inf else None

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            for pulse in [pulse for group in self._groups() for pulse in _due(group, loop.time())]:
                pulse.due()
        finally:
            self._wake_at(min(map(_first, self._groups())), loop)

    def _groups(self) -> "list[dict[AttemptPulse, float]]":
        return [self._starting, *self._beating.values()]


class AttemptPulse:
    """Sends signs of life until it is stopped, and never after: the result is the last word.

    A short attempt sends none, because its result says when it started. The first sign is always STARTED.

    Args:
        send: Sends one.
        rhythm: Of the worker.
        longest_silence: Seconds between two heartbeats at most, whatever the worker's interval.
    """

    __slots__ = ("_last_beat", "_loop", "_rhythm", "_send", "_started", "cancelled", "longest_silence", "over")

    def __init__(self, send: Callable[[ReportStatus], None], rhythm: Rhythm, longest_silence: float = math.inf) -> None:
        self.longest_silence = longest_silence
        self.over = False
        self.cancelled = False
        self._send = send
        self._rhythm = rhythm
        self._started = False
        self._last_beat = -math.inf
        self._loop = asyncio.get_running_loop()
        rhythm.begin(self)

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
        self._rhythm.end(self)

    def cancel(self) -> None:
        """Send nothing any more, because the run is cancelled."""
        self.cancelled = True  # first: a thread that sees that it is over may ask why
        self.stop()

    def due(self) -> None:
        """Send what is due: STARTED, then a heartbeat each time."""
        self._rhythm.go_on(self)  # first: what cannot be sent must not be due for ever
        if not self._tell_started():
            self._send(ReportStatus.HEARTBEAT)

    def _beat(self) -> None:
        if self.over:
            return
        if self._tell_started():
            self._rhythm.go_on(self)
        self._send(ReportStatus.HEARTBEAT)

    def _tell_started(self) -> bool:
        first, self._started = not self._started, True
        if first:
            self._send(ReportStatus.STARTED)
        return first


def _due(group: dict[AttemptPulse, float], now: float) -> list[AttemptPulse]:
    found = []
    for pulse, due in group.items():
        if due > now:
            break
        found.append(pulse)
    return found


def _first(group: dict[AttemptPulse, float]) -> float:
    return next(iter(group.values()), math.inf)
