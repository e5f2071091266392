"""What is counted and measured: plain numbers, which cost an update of a dictionary each.

They belong to the event loop's thread, so nothing is locked. Labels are bounded: names of agents and codes come from
documents and messages, and so are anybody's choice, while each series costs memory here and in whatever reads it.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

OTHER: Final = "(other)"  # what comes beyond the limit of series
MAX_SERIES: Final = 100

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0)
LAGS: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)

Labels = tuple[str, ...]  # the values, in the order of the names


@dataclass(frozen=True, slots=True)
class Description:
    """What an instrument is called, and what its numbers mean."""

    name: str  # as Prometheus knows it; a count gets "_total" behind it
    help: str
    labels: Labels = ()  # their names


@dataclass(frozen=True, slots=True)
class Gauge:
    """Numbers as they are at this moment."""

    description: Description
    values: Mapping[Labels, float]


class Count:
    """Numbers that only grow."""

    def __init__(self, name: str, help: str, *labels: str, max_series: int = MAX_SERIES) -> None:
        self.description = Description(name, help, labels)
        self.values: dict[Labels, float] = {} if labels else {(): 0}
        self._max_series = max_series

    def add(self, number: float, *labels: str) -> None:
        """Add to the series of these labels."""
        known = _known(self.values, labels, self._max_series)
        self.values[known] = self.values.get(known, 0) + number


@dataclass(slots=True)
class Tally:
    """How many values fell up to each bound and not up to the one before, and beyond the last; and their sum."""

    counts: list[int]
    sum: float = 0.0


class Spread:
    """How values are spread over ranges."""

    def __init__(
        self, name: str, help: str, *labels: str, bounds: Sequence[float] = SECONDS, max_series: int = MAX_SERIES
    ) -> None:
        self.description = Description(name, help, labels)
        self.bounds = tuple(bounds)
        self.tallies: dict[Labels, Tally] = {}
        self._max_series = max_series
        if not labels:
            self._tally(())

    def observe(self, value: float, *labels: str) -> None:
        """Add a value to the series of these labels."""
        tally = self.tallies.get(labels) or self._tally(labels)
        tally.counts[bisect_left(self.bounds, value)] += 1
        tally.sum += value

    def _tally(self, labels: Labels) -> Tally:
        known = _known(self.tallies, labels, self._max_series)
        return self.tallies.setdefault(known, Tally([0] * (len(self.bounds) + 1)))


Instrument = Gauge | Count | Spread


def bounded(values: Mapping[Labels, float], max_series: int = MAX_SERIES) -> dict[Labels, float]:
    """Return the largest of *values*, with the sum of all others in one series."""
    if len(values) <= max_series:
        return dict(values)
    ordered = sorted(values.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(ordered[:max_series])
    for labels, value in ordered[max_series:]:
        other = (OTHER,) * len(labels)
        kept[other] = kept.get(other, 0) + value
    return kept


def _known(series: Mapping[Labels, object], labels: Labels, max_series: int) -> Labels:
    if labels in series or len(series) < max_series:
        return labels
    return (OTHER,) * len(labels)
