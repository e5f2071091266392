"""All that was found out, and its JSON."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_messaging import Cost
from tests.benchmarks.goals import Figure, figures
from tests.benchmarks.idle import Idle
from tests.benchmarks.machine import Machine
from tests.benchmarks.measurement import Failure, Sample
from tests.benchmarks.summary import Row


@dataclass(frozen=True)
class Results:
    """What one run of the benchmarks found.

    Attributes:
        date: When it began, RFC 3339.
        servers: Where each server came from.
        systems: The settings of each.
        left_out: Systems that were wanted and are not there, and why.
        messages: What a message costs in each adapter, to publish and to receive.
        profiled: A profiler ran, so the figures are too high.
    """

    date: str
    machine: Machine
    servers: Sequence[str]
    systems: Mapping[str, str]
    left_out: Mapping[str, str]
    rounds: int
    reference: str  # the system to which ratios are
    samples: Sequence[Sample] = ()
    failures: Sequence[Failure] = ()
    rows: Sequence[Row] = ()
    idle: Idle | None = None
    messages: Mapping[str, tuple[Cost, Cost]] = field(default_factory=dict)
    profiled: bool = False

    @property
    def foreign(self) -> float:
        """Return the share of the machine that others used, the median of the samples."""
        return statistics.median([sample.usage.foreign for sample in self.samples] or [0.0])

    @property
    def figures(self) -> list[Figure]:
        """Return the figures that have goals."""
        return figures(self.rows, self.idle)

    def as_json(self) -> dict[str, Any]:
        """Return all of it for machines; seconds, bytes, and microseconds where a name says so."""
        return {
            **asdict(self),
            "machine": asdict(self.machine),
            "foreign": self.foreign,
            "rows": [{**asdict(row), "load": row.load.name, "title": row.load.title} for row in self.rows],
            "messages": {
                adapter: {"publish": asdict(publish), "receive": asdict(receive)}
                for adapter, (publish, receive) in self.messages.items()
            },
            "figures": [asdict(figure) for figure in self.figures],
        }

    def write(self, file: Path) -> None:
        """Write the JSON."""
        file.write_text(json.dumps(self.as_json(), indent=1) + "\n")
