"""From samples to rows: one for each system and load, over all rounds."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tests.benchmarks.loads import Load
from tests.benchmarks.measurement import Failure, Percentiles, Role, Sample, Spread

_Result = TypeVar("_Result", Sample, Failure)


@dataclass(frozen=True)
class Row:
    """One system under one load.

    Attributes:
        rounds: That succeeded.
        rate: Branches per second; None when no round succeeded.
        ratio: To the reference's rate in the same round, the median of the rounds; None where the reference has none.
        cpu: Microseconds per branch, over all rounds: the kernel counts in steps of 10 ms, so single rounds are coarse.
        peak_bytes: The highest of the rounds.
        times: Of single runs, or refills, of all rounds together; None where the load does not time them.
        reasons: Why rounds failed.
    """

    system: str
    load: Load
    rounds: int
    rate: Spread | None
    ratio: float | None
    cpu: Mapping[Role, float]
    peak_bytes: Mapping[Role, int]
    times: Percentiles | None
    reasons: tuple[str, ...]

    @property
    def cpu_total(self) -> float:
        """Of all roles that could be seen."""
        return sum(self.cpu.values())


def summarise(
    loads: Sequence[Load], samples: Sequence[Sample], failures: Sequence[Failure], reference: str
) -> list[Row]:
    """Return the rows in the order of the loads, and within a load in that of the systems' first appearance."""
    systems = dict.fromkeys([*(sample.system for sample in samples), *(failure.system for failure in failures)])
    rows = []
    for load in loads:
        base = {sample.round: sample.rate for sample in _of(samples, reference, load)}
        for system in systems:
            done, failed = _of(samples, system, load), _of(failures, system, load)
            if done or failed:
                rows.append(_row(system, load, done, failed, base))
    return rows


def _of(results: Sequence[_Result], system: str, load: Load) -> list[_Result]:
    return [result for result in results if result.system == system and result.load == load.name]


def _row(
    system: str, load: Load, samples: Sequence[Sample], failures: Sequence[Failure], base: Mapping[int, float]
) -> Row:
    ratios = [sample.rate / base[sample.round] for sample in samples if sample.round in base]
    times = [seconds for sample in samples for seconds in sample.times]
    return Row(
        system,
        load,
        rounds=len(samples),
        rate=Spread.of(sample.rate for sample in samples) if samples else None,
        ratio=statistics.median(ratios) if ratios else None,
        cpu={role: _cpu_per_branch(samples, role) for role in Role if _seen(samples, role)},
        peak_bytes={
            role: max(sample.usage.peak_bytes.get(role, 0) for sample in samples)
            for role in Role
            if any(role in sample.usage.peak_bytes for sample in samples)
        },
        times=Percentiles.of(times) if times else None,
        reasons=tuple(dict.fromkeys(failure.reason for failure in failures)),
    )


def _seen(samples: Sequence[Sample], role: Role) -> bool:
    return bool(samples) and all(role in sample.usage.cpu_seconds for sample in samples)


def _cpu_per_branch(samples: Sequence[Sample], role: Role) -> float:
    used = sum(sample.usage.cpu_seconds[role] for sample in samples)
    return used / sum(sample.branches for sample in samples) * 1e6
