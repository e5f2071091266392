"""What of a process works, and since when something does not. Both services keep such a book.

One line tells of each change (`health_changed`), and `HealthBook.health` tells whoever asks (`messaging.monitoring`).
"""

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import structlog

from messaging.port import Broker

log = structlog.get_logger(__name__)

BROKER: Final = "broker"
LOOK_SECONDS: Final = 1.0  # between looks at the connection


class HealthStatus(StrEnum):
    """Whether a process can do all of its work."""

    OK = "ok"
    DEGRADED = "degraded"  # it lives and goes on by itself; meanwhile some of its work waits


@dataclass(frozen=True, slots=True)
class Trouble:
    """A part that does not work."""

    part: str  # "broker", "database", or a loop
    since: datetime
    reason: str  # for people

    def __str__(self) -> str:
        return f"{self.part}: {self.reason}, since {self.since:%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True, slots=True)
class Health:
    """The health of a process at one moment."""

    troubles: tuple[Trouble, ...] = ()

    @property
    def status(self) -> HealthStatus:
        """OK where there is no trouble."""
        return HealthStatus.DEGRADED if self.troubles else HealthStatus.OK


class HealthBook:
    """Notes which parts of this process are in trouble."""

    def __init__(self) -> None:
        self.outages: Counter[str] = Counter()  # how often a part got into trouble
        self._troubles: dict[str, Trouble] = {}

    @property
    def health(self) -> Health:
        """The health as far as it was noted."""
        return Health(tuple(self._troubles.values()))

    def trouble(self, part: str, reason: str) -> bool:
        """Note that *part* does not work; return whether that is news."""
        if part in self._troubles:
            return False
        self._troubles[part] = Trouble(part, datetime.now(UTC), reason)
        self.outages[part] += 1
        self._tell()
        return True

    def well(self, part: str) -> bool:
        """Note that *part* works; return whether that is news."""
        if self._troubles.pop(part, None) is None:
            return False
        self._tell()
        return True

    def look_at(self, broker: Broker) -> None:
        """Note whether the broker is connected."""
        if broker.connected:
            self.well(BROKER)
        else:
            self.trouble(BROKER, "out of reach")

    async def watch(self, broker: Broker) -> None:
        """Look at the broker's connection for ever; the adapter keeps it, and tells nobody."""
        while True:
            self.look_at(broker)
            await asyncio.sleep(LOOK_SECONDS)

    def _tell(self) -> None:
        health = self.health
        log.info(
            "The health of this process has changed",
            action="health_changed",
            status=health.status.value,
            reasons=[str(trouble) for trouble in health.troubles],
        )
