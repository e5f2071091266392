"""The runs that a worker knows to be cancelled."""

from collections import OrderedDict
from typing import Final
from uuid import UUID

MAX_RUNS: Final = 10_000


class CancelledRuns:
    """The runs that were cancelled last, so that tasks of theirs that are delivered later are known. Bounded."""

    def __init__(self, max_runs: int = MAX_RUNS) -> None:
        self._max_runs = max_runs
        self._ids: OrderedDict[int, None] = OrderedDict()  # by the ids' numbers: UUIDs hash slowly

    def add(self, run_id: UUID) -> None:
        """Remember a run; the one that was heard of longest ago goes when there are too many."""
        self._ids[run_id.int] = None
        self._ids.move_to_end(run_id.int)
        if len(self._ids) > self._max_runs:
            self._ids.popitem(last=False)

    def __contains__(self, run_id: UUID) -> bool:
        return run_id.int in self._ids
