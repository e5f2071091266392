"""In which condition a process is: it starts, works, works in part, or stops."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from messaging.health import Trouble


class Phase(StrEnum):
    """Where a process is in its life."""

    STARTING = "starting"  # it waits for the broker or the database
    WORKING = "working"
    STOPPING = "stopping"  # it takes nothing more, and finishes what is under way


class Status(StrEnum):
    """What a process says of itself."""

    OK = "ok"
    DEGRADED = "degraded"
    STARTING = "starting"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Condition:
    """A process at one moment."""

    phase: Phase
    troubles: tuple[Trouble, ...] = ()

    @property
    def status(self) -> Status:
        """The phase, and while it works whether all of it does."""
        match self.phase:
            case Phase.STARTING:
                return Status.STARTING
            case Phase.STOPPING:
                return Status.DRAINING
            case Phase.WORKING:
                return Status.DEGRADED if self.troubles else Status.OK

    @property
    def ready(self) -> bool:
        """Whether it does all of its work."""
        return self.status is Status.OK

    def as_json(self) -> dict[str, Any]:
        """Return what /readyz shows."""
        troubles = [
            {"part": trouble.part, "reason": trouble.reason, "since": trouble.since.isoformat(timespec="seconds")}
            for trouble in self.troubles
        ]
        return {"status": self.status.value, "troubles": troubles}


def awaited(part: str, since: datetime) -> Trouble:
    """Return the trouble of a process that starts: it waits for *part*, and nothing has failed yet."""
    return Trouble(part, since, "not reached yet")
