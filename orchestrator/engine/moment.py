"""The moment of a decision: what it may not fetch by itself."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Moment:
    """The time (the database's clock, UTC), fresh ids, and chance."""

    now: datetime
    new_id: Callable[[], UUID]
    draw: Callable[[], float]  # a random number in [0, 1)
