"""An event loop whose time is virtual: when nothing is left to do now, it is at once the time of what comes next.

So a run with timeouts of hours takes milliseconds, and every run of the same seed takes the same course: nothing here
waits for a socket, a thread or a clock of the machine.
"""

import asyncio
import selectors
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

EPOCH: Final = datetime(2030, 1, 1, tzinfo=UTC)


class Stuck(Exception):
    """Nothing is left to do, now or later, and the simulation has not ended."""


class _Skipping(selectors.BaseSelector):
    """A selector that finds nothing, and skips the time that it was to wait."""

    def __init__(self) -> None:
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("every task waits for another one")
        self.now += max(timeout, 0.0)
        return []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which starts at zero."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._skipping.now


def virtual_now() -> datetime:
    """Return the time of day in the simulation."""
    return EPOCH + timedelta(seconds=asyncio.get_running_loop().time())


class VirtualDatetime(datetime):
    """What a module under simulation takes for `datetime`."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        """Return the time of day in the simulation."""
        return virtual_now()
