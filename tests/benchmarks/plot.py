"""The plots: throughput by block size, and how long single runs take."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.benchmarks.loads import Group
from tests.benchmarks.measurement import Sample
from tests.benchmarks.results import Results
from tests.benchmarks.summary import Row

_INCHES = (8, 4.5)


def draw(results: Results, directory: Path) -> list[Path]:
    """Write ``throughput.svg`` and ``latency.svg``, each where it has something to show; return what was written."""
    drawn = [
        _throughput(results.rows, results.machine.cores, directory / "throughput.svg"),
        _latency(results.samples, directory / "latency.svg"),
    ]
    return [file for file in drawn if file is not None]


def _throughput(rows: Sequence[Row], cores: int, file: Path) -> Path | None:
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row.load.group is Group.BLOCK and row.rate is not None:
            lines.setdefault(row.system, []).append(row)
    if not lines:
        return None
    figure, axes = _axes("branches in the block", "branches per second")
    axes.set_title(f"One block, all on {cores} cores: medians, bars from min to max")
    for system, points in lines.items():
        _line(axes, system, points)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    return _save(figure, axes, file)


def _line(axes: Axes, system: str, rows: Sequence[Row]) -> None:
    spreads = [(row.load.branches, row.rate) for row in rows if row.rate is not None]
    below = [rate.median - rate.lowest for _, rate in spreads]
    above = [rate.highest - rate.median for _, rate in spreads]
    sizes, medians = [size for size, _ in spreads], [rate.median for _, rate in spreads]
    axes.errorbar(sizes, medians, yerr=[below, above], label=system, marker="o", capsize=3)


def _latency(samples: Sequence[Sample], file: Path) -> Path | None:
    times = _times(samples)
    if not times:
        return None
    figure, axes = _axes("milliseconds from publish to result", "share of runs that took no longer")
    axes.set_title("Single runs, one after the other")
    for system, seconds in times.items():
        ordered = [value * 1000 for value in sorted(seconds)]
        axes.step(ordered, [(rank + 1) / len(ordered) for rank in range(len(ordered))], where="post", label=system)
    axes.set_xscale("log")
    axes.set_ylim(0, 1)
    return _save(figure, axes, file)


def _times(samples: Sequence[Sample]) -> Mapping[str, list[float]]:
    times: dict[str, list[float]] = {}
    for sample in samples:
        if sample.load.startswith(Group.LATENCY):
            times.setdefault(sample.system, []).extend(sample.times)
    return times


def _axes(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(visible=True, alpha=0.3)
    return figure, axes


def _save(figure: Figure, axes: Axes, file: Path) -> Path:
    axes.legend()
    figure.savefig(file, metadata={"Date": None})
    return file
