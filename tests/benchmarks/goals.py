"""The figures that say whether it is fast enough, each beside its goal. They are shown; nothing fails by them."""

from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.idle import Idle
from tests.benchmarks.measurement import Role
from tests.benchmarks.summary import Row


@dataclass(frozen=True)
class Figure:
    """One figure and its goal.

    Attributes:
        value: As people read it.
        reached: Whether *goal* is.
    """

    name: str
    value: str
    goal: str
    reached: bool


def figures(rows: Sequence[Row], idle: Idle | None) -> list[Figure]:
    """Return the figures of those loads that were run."""
    ours = {row.load.name: row for row in rows if row.system == "forkjoin"}
    stored = {row.load.name: row for row in rows if row.system.startswith("forkjoin,")}
    return [
        *_ratios(ours),
        *_times(ours),
        *_shares(ours, stored),
        *_memory(ours),
        *([] if idle is None else _idle(idle)),
    ]


def _ratios(ours: dict[str, Row]) -> list[Figure]:
    wanted = [("block-1000", 2.0), ("block-10000", 2.0), ("runs-200x10", 1.3)]
    return [
        _at_least(f"{row.load.title}: ratio to bare request/reply", row.ratio, least, "x")
        for name, least in wanted
        if (row := ours.get(name)) is not None and row.ratio is not None
    ]


def _times(ours: dict[str, Row]) -> list[Figure]:
    found = []
    for name, limits in (("latency-100x10", {"p50": 10.0, "p99": 30.0}), ("refill-2000-by-100", {"p99": 50.0})):
        row = ours.get(name)
        if row is not None and row.times is not None:
            what = "a freed slot is refilled" if row.load.naps else f"a single run of {row.load.branches} branches"
            for which, most in limits.items():
                value = getattr(row.times, which) * 1000
                found.append(_at_most(f"{what}, {which}", value, most, "ms"))
    return found


def _shares(ours: dict[str, Row], stored: dict[str, Row]) -> list[Figure]:
    wanted = [
        ("limited block, of the unlimited one's rate", ours.get("limited-10000-by-100"), ours.get("block-10000"), 0.5),
        ("100,000 branches, of the rate of 10,000", ours.get("block-100000"), ours.get("block-10000"), 0.85),
        ("100,000 iterations, of the rate of 10,000", ours.get("loop-100000"), ours.get("loop-10000"), 0.85),
        ("with 100,000 runs stored, of the rate with none", stored.get("block-10000"), ours.get("block-10000"), 0.9),
    ]
    return [
        _at_least(name, row.rate.median / base.rate.median, least, "x")
        for name, row, base, least in wanted
        if row is not None and base is not None and row.rate is not None and base.rate is not None
    ]


def _memory(ours: dict[str, Row]) -> list[Figure]:
    return [
        _at_most(f"orchestrator's memory at {what}", row.peak_bytes[Role.ORCHESTRATOR] / 1e6, 300, "MB")
        for name, what in (("loop-100000", "100,000 iterations"), ("block-100000", "100,000 branches"))
        if (row := ours.get(name)) is not None and Role.ORCHESTRATOR in row.peak_bytes
    ]


def _idle(idle: Idle) -> list[Figure]:
    return [
        *(_at_most(f"idle, {role}: share of a core", share * 100, 1.0, "%") for role, share in idle.cores.items()),
        _at_most("idle: transactions per second", idle.transactions, 2.0, ""),
    ]


def _at_least(name: str, value: float, least: float, unit: str) -> Figure:
    return Figure(name, f"{value:.2f} {unit}".strip(), f"at least {least:g} {unit}".strip(), value >= least)


def _at_most(name: str, value: float, most: float, unit: str) -> Figure:
    return Figure(name, f"{value:.2f} {unit}".strip(), f"at most {most:g} {unit}".strip(), value <= most)
