"""One look a second at all that may be due; the loops that do something about it sleep until there is a reason.

Messages whose sender died, attempts that take too long, gates whose holder is gone: nobody tells of those, so each
replica looks for all of them with one cheap statement. It says only that there is something. Who is woken looks for
itself, and takes what nobody else is at. Should a wake be lost, for instance by an error, the next look wakes again.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from orchestrator.service.health import DatabaseWatch
from orchestrator.storage.due import Due
from orchestrator.storage.port import Storage

LOOK_SECONDS: Final = 1.0

Wake = Callable[[], None]


class Lookout:
    """Wakes the loops of one replica.

    Args:
        storage: Where things become due.
        replica_id: Whose gates to look after.
        database: Told whether Postgres is in reach: of all loops this one notices first.
        wakes: What to call when something of a kind is due; it may be called again before anything was done.
    """

    def __init__(self, storage: Storage, replica_id: str, database: DatabaseWatch, wakes: Mapping[Due, Wake]) -> None:
        self._storage = storage
        self._replica_id = replica_id
        self._database = database
        self._wakes = wakes

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await self.run_once()
            await asyncio.sleep(LOOK_SECONDS)

    async def run_once(self) -> frozenset[Due]:
        """Look once, wake whom it concerns, and return what is due."""
        with self._database.using():
            due = await self._storage.what_is_due(self._replica_id)
        for kind, wake in self._wakes.items():
            if kind in due:
                wake()
        return due
