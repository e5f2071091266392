"""What the journal agents wrote down: who ran when, in all worker processes."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Execution:
    """One execution of one branch; times are seconds of the machine's monotonic clock."""

    run_id: str
    step_id: str
    attempt: int
    pid: int
    start: float
    end: float


@dataclass(frozen=True)
class Occupancy:
    """How many ran at once."""

    highest: int
    mean_while_more_remain: float  # from the first start until the last one, when nothing is left to start


def read_journal(path: Path) -> list[Execution]:
    """Return the executions that have ended, in the order of their ends."""
    return [Execution(**json.loads(line)) for line in path.read_text().splitlines()]


def without_repeats(executions: Iterable[Execution]) -> list[Execution]:
    """Return the first execution of each attempt: after a crash an agent may be executed again for one that is over."""
    first: dict[tuple[str, str, int], Execution] = {}
    for execution in sorted(executions, key=lambda execution: execution.start):
        first.setdefault((execution.run_id, execution.step_id, execution.attempt), execution)
    return list(first.values())


def occupancy(executions: list[Execution]) -> Occupancy:
    """Return how many of *executions* ran at once, at most and on average."""
    changes = sorted(
        [(execution.start, 1) for execution in executions] + [(execution.end, -1) for execution in executions]
    )
    counts = list(itertools.accumulate(change for _, change in changes))
    first, last = changes[0][0], max(execution.start for execution in executions)
    busy = sum(
        count * (min(after, last) - min(at, last))
        for count, (at, _), (after, _) in zip(counts, changes, changes[1:], strict=False)
    )
    return Occupancy(max(counts), busy / (last - first) if last > first else float(max(counts)))
