"""Row locks: one owner each, the others in line, first come first served, until the owner's transaction ends."""

import asyncio
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field


class LockTimeout(TimeoutError):
    """Somebody kept a row locked for longer than the transaction waits."""


@dataclass(eq=False, slots=True)
class Owner:
    """A transaction as the locks know it."""

    held: list[Hashable] = field(default_factory=list)
    place: "_Place | None" = None  # in a line; a transaction does one thing at a time


@dataclass(eq=False, slots=True)
class _Place:
    key: Hashable
    owner: Owner
    granted: "asyncio.Future[None]"
    timer: asyncio.TimerHandle | None = None


@dataclass(eq=False, slots=True)
class _Lock:
    owner: Owner
    line: deque[_Place] = field(default_factory=deque)


class Locks:
    """The locks of all rows."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, _Lock] = {}

    @property
    def waiting(self) -> int:
        """How many transactions stand in line."""
        return sum(len(lock.line) for lock in self._locks.values())

    def is_free(self, key: Hashable, owner: Owner) -> bool:
        """Return whether nobody else holds it."""
        lock = self._locks.get(key)
        return lock is None or lock.owner is owner

    async def acquire(self, key: Hashable, owner: Owner, timeout: float) -> None:
        """Take a lock, waiting for others up to *timeout* seconds.

        Raises:
            LockTimeout: They kept it.
        """
        lock = self._locks.get(key)
        if lock is None:
            self._locks[key] = _Lock(owner)
            owner.held.append(key)
        elif lock.owner is not owner:
            await self._wait(lock, key, owner, timeout)

    def release(self, owner: Owner) -> None:
        """Let all locks of a transaction go, and leave the line that it stands in.

        Who waited there waits for ever: only a killed client ends a transaction that waits.
        """
        self._leave(owner)
        held, owner.held = owner.held, []
        for key in held:
            self._pass_on(key)

    async def _wait(self, lock: _Lock, key: Hashable, owner: Owner, timeout: float) -> None:
        loop = asyncio.get_running_loop()
        owner.place = place = _Place(key, owner, loop.create_future())
        place.timer = loop.call_later(timeout, self._time_out, place)
        lock.line.append(place)
        try:
            await place.granted
        finally:
            self._leave(owner)

    def _time_out(self, place: _Place) -> None:
        self._leave(place.owner)
        if not place.granted.done():
            place.granted.set_exception(LockTimeout(f"somebody keeps {place.key} locked"))

    def _leave(self, owner: Owner) -> None:
        place, owner.place = owner.place, None
        if place is None:
            return
        if place.timer is not None:
            place.timer.cancel()
        lock = self._locks.get(place.key)
        if lock is not None and place in lock.line:
            lock.line.remove(place)

    def _pass_on(self, key: Hashable) -> None:
        lock = self._locks[key]
        while lock.line:
            place = lock.line.popleft()
            if not place.granted.done():  # a waiter that was cancelled leaves at its next turn
                lock.owner = place.owner
                place.owner.held.append(key)
                place.granted.set_result(None)
                return
        del self._locks[key]
