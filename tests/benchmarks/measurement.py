"""What is measured, and the arithmetic on it: medians, percentiles, ratios. No clock and no I/O."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """Whose CPU time and memory it is."""

    CLIENT = "client"
    ORCHESTRATOR = "orchestrator"
    WORKERS = "workers"
    RABBITMQ = "rabbitmq"
    POSTGRES = "postgres"
    REDIS = "redis"


@dataclass(frozen=True)
class Usage:
    """What the processes used during one sample. A role that cannot be seen from here, or has no process, is absent.

    Attributes:
        peak_bytes: The sum of a role's processes.
        foreign: Share of the machine's CPU time, over all cores, that went to processes of no role.
    """

    cpu_seconds: Mapping[Role, float] = field(default_factory=dict)
    peak_bytes: Mapping[Role, int] = field(default_factory=dict)
    foreign: float = 0.0


@dataclass(frozen=True)
class Sample:
    """One system did one load once, and all its results were there and right.

    Attributes:
        branches: Of all runs together.
        wall_seconds: From the first publish to the last result.
        times: Seconds; of each run, where runs are timed one by one, or of each refill of a freed slot.
    """

    system: str
    load: str
    round: int
    branches: int
    wall_seconds: float
    times: tuple[float, ...] = ()
    usage: Usage = Usage()

    @property
    def rate(self) -> float:
        """Branches per second."""
        return self.branches / self.wall_seconds


@dataclass(frozen=True)
class Failure:
    """One system did not do one load: too slow, wrong, or broken."""

    system: str
    load: str
    round: int
    reason: str


@dataclass(frozen=True)
class Spread:
    """A figure over all rounds."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Return the spread of at least one value."""
        known = list(values)
        return cls(statistics.median(known), min(known), max(known))


@dataclass(frozen=True)
class Percentiles:
    """Of times, in seconds."""

    p50: float
    p95: float
    p99: float
    highest: float

    @classmethod
    def of(cls, times: Sequence[float]) -> "Percentiles":
        """Return the percentiles of at least one time."""
        return cls(percentile(times, 0.50), percentile(times, 0.95), percentile(times, 0.99), max(times))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least *share* of *values* do not exceed: nearest rank, never interpolated."""
    return sorted(values)[max(0, math.ceil(len(values) * share) - 1)]


def refills(spans: Iterable[tuple[float, float]], limit: int) -> list[float]:
    """Return how long each freed slot stayed free.

    Of a block with *limit* slots, the k-th end makes the (limit + k)-th start possible, whichever branches those are.

    Args:
        spans: Start and end of each branch, in any order.
        limit: The block's `max_parallelism`.
    """
    known = list(spans)
    starts = sorted(start for start, _ in known)
    ends = sorted(end for _, end in known)
    return [start - end for start, end in zip(starts[limit:], ends, strict=False)]
