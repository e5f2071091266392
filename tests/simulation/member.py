"""A process of the simulation with its broker and its storage: at every call something can happen to it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context

from messaging.memory import MemoryServer
from tests.simulation.broker import SimulatedBroker
from tests.simulation.chaos import Chaos
from tests.simulation.process import Process
from tests.simulation.storage import MemoryStorage

Role = Callable[["Member"], Awaitable[None]]


class Member:
    """A replica or a worker.

    Args:
        name: Of the process.
        role: What it does.
        chaos: What happens to it.
        server: The broker.
        storage: The truth.
        on_death: Called when it was killed.
    """

    def __init__(
        self,
        name: str,
        role: Role,
        chaos: Chaos,
        *,
        server: MemoryServer,
        storage: MemoryStorage,
        on_death: Callable[["Member"], None],
    ) -> None:
        self.name = name
        self.role = role
        self.process = Process(name)
        self.broker = SimulatedBroker(server, name, self)
        self.storage = storage.client(name, self)
        self.told_to_stop = asyncio.Event()
        self.burial: asyncio.Future[None] | None = None
        self._chaos = chaos
        self._on_death = on_death
        self._frozen_until = 0.0

    def note(self, what: str) -> None:
        """Write a line into the trace."""
        self._chaos.note(self.name, what)

    def die(self) -> None:
        """Be killed, at once: nothing that it still does has an effect."""
        self.process.alive = False
        self.storage.kill()
        self.broker.inner.die()
        self._on_death(self)
        # Outside of its own context, or else the burial would be one of its tasks.
        asyncio.get_running_loop().call_soon(self._bury, context=Context())

    # What its broker and its storage ask

    def receives(self, available: int) -> int:
        """Return how many deliveries are handed over together."""
        return available if self._chaos.dice.happens(0.8) else 1

    async def before(self, operation: str) -> None:
        """Let an operation wait, or never happen."""
        self._require_alive()
        self.note(operation)
        await self._chaos.delay()
        await self._mishap(operation)

    async def after(self, operation: str) -> None:
        """Let something happen once an operation has had its effect."""
        self._require_alive()
        await self._mishap(f"after {operation}")

    def loses_confirm(self) -> bool:
        """Return whether the answer to a publish is lost."""
        return self._chaos.strikes(f"{self.name}: a confirm is lost")

    def loses_messages(self) -> bool:
        """Return whether a publish is lost on its way."""
        return self._chaos.strikes(f"{self.name}: a publish is lost")

    def repeats(self) -> bool:
        """Return whether a publish arrives twice."""
        return self._chaos.strikes(f"{self.name}: a publish arrives twice")

    def fails(self, operation: str) -> bool:
        """Return whether the connection to the storage is lost."""
        return self._chaos.storage_is_down or self._chaos.strikes(f"{self.name}: {operation} fails")

    async def _mishap(self, operation: str) -> None:
        if self._chaos.strikes(f"{self.name} is killed at: {operation}", 0.5):
            self.die()
            self._require_alive()
        if self._chaos.strikes(f"{self.name} loses its connection at: {operation}", 0.5):
            self.broker.inner.drop_connection()
        if self._chaos.strikes(f"{self.name} freezes at: {operation}", 0.25):
            self._frozen_until = self._chaos.now + self._chaos.dice.uniform(1, 12)
        if self._frozen_until > self._chaos.now:
            await asyncio.sleep(self._frozen_until - self._chaos.now)
        self._require_alive()

    def _require_alive(self) -> None:
        if not self.process.alive:
            raise asyncio.CancelledError

    def _bury(self) -> None:
        self.burial = asyncio.ensure_future(self.process.end())
