"""Whether Postgres is in reach, as all loops of a replica find out together.

Each loop tries again by itself, with pauses that grow. But an outage is one event for the whole process: one line says
that Postgres is lost, and one that it is back.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from messaging.health import HealthBook
from orchestrator.storage.database import is_lost_connection

log = structlog.get_logger(__name__)

DATABASE: Final = "database"
CALM_SECONDS: Final = 1.0  # without a failure, and Postgres is back: its connections are not all lost in one instant


class DatabaseWatch:
    """What became of the last uses of the database.

    Args:
        book: Where its troubles are noted.
    """

    def __init__(self, book: HealthBook | None = None) -> None:
        self._book = book if book is not None else HealthBook()
        self._last_failure = float("-inf")

    @contextmanager
    def using(self) -> Iterator[None]:
        """Note whether what is done meanwhile finds the database in reach."""
        try:
            yield
        except Exception as error:
            self.failed(error)
            raise
        self._works()

    def failed(self, error: BaseException) -> None:
        """Note an error; only a lost connection is the database's."""
        if not is_lost_connection(error):
            return
        self._last_failure = asyncio.get_running_loop().time()
        reason = str(error).partition("\n")[0] or type(error).__name__
        if self._book.trouble(DATABASE, f"out of reach ({reason})"):
            log.warning("Postgres is out of reach; trying again", action="database_lost", error=reason)

    def _works(self) -> None:
        calm = asyncio.get_running_loop().time() - self._last_failure
        if calm >= CALM_SECONDS and self._book.well(DATABASE):
            log.info("Postgres is back", action="database_restored")
