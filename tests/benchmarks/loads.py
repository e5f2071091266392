"""The loads: what every system is asked to do."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

TEXT: Final = "x" * 64  # what each branch is given, and gives back; 100,000 of them still fit a message of 16 MiB


class Group(StrEnum):
    """The kinds of loads, as ``--load`` takes them."""

    MESSAGES = "messages"
    BLOCK = "block"
    LOOP = "loop"
    RUNS = "runs"
    LATENCY = "latency"
    LIMITED = "limited"
    REFILL = "refill"
    IDLE = "idle"


@dataclass(frozen=True)
class Load:
    """So many runs of so many branches.

    Attributes:
        branches: Of each run.
        one_by_one: Each run is submitted when the one before it has ended, and timed; else all are submitted at once.
        limit: `max_parallelism` of the blocks.
        naps: Branches last some time, and the refills of the limit's slots are timed.
        seconds: After which a system has failed.
    """

    group: Group
    branches: int
    runs: int = 1
    one_by_one: bool = False
    limit: int | None = None
    naps: bool = False
    seconds: float = 120.0

    @property
    def name(self) -> str:
        """What it is called in results and on the command line."""
        many = "" if self.runs == 1 else f"{self.runs}x"
        limit = "" if self.limit is None else f"-by-{self.limit}"
        return f"{self.group}-{many}{self.branches}{limit}"

    @property
    def title(self) -> str:
        """What it is, for people."""
        limit = "" if self.limit is None else f", max_parallelism {self.limit}"
        naps = ", each 50 to 150 ms long" if self.naps else ""
        runs = f"{self.runs} runs" if self.runs > 1 else "1 run"
        kind = "iterations" if self.group is Group.LOOP else "branches"
        order = ", one after the other" if self.one_by_one else " at once" if self.runs > 1 else ""
        return f"{runs}{order}, of {self.branches:,} {kind}{limit}{naps}"

    @property
    def total(self) -> int:
        """Branches of all runs."""
        return self.branches * self.runs

    def items(self) -> list[dict[str, object]]:
        """Return what the loop goes through, where it is one."""
        return [self.given(branch) for branch in range(self.branches)] if self.group is Group.LOOP else []

    def given(self, branch: int) -> dict[str, object]:
        """Return the input of the branch with this number."""
        if self.naps:
            return {"n": branch, "seconds": (50 + branch * 37 % 101) / 1000}  # spread out, so that slots free singly
        return {"n": branch, "text": TEXT}


WARM_UP: Final = Load(Group.BLOCK, 1000)
QUICK_WARM_UP: Final = Load(Group.BLOCK, 10)


def all_loads(*, quick: bool, large: bool) -> list[Load]:
    """Return the loads in their order: *quick* ones show that it works, *large* ones take minutes."""
    if quick:
        return [
            Load(Group.BLOCK, 10),
            Load(Group.BLOCK, 50),
            Load(Group.LOOP, 20),
            Load(Group.RUNS, 4, runs=5),
            Load(Group.LATENCY, 4, runs=5, one_by_one=True),
            Load(Group.LIMITED, 20, limit=4),
            Load(Group.REFILL, 20, limit=4, naps=True),
        ]
    return [
        Load(Group.BLOCK, 100),
        Load(Group.BLOCK, 1000),
        Load(Group.BLOCK, 10_000),
        Load(Group.LOOP, 10_000),
        # The loop first: memory that a process has had once it may keep.
        *([Load(group, 100_000, seconds=600) for group in (Group.LOOP, Group.BLOCK)] if large else []),
        Load(Group.RUNS, 10, runs=200),
        Load(Group.LATENCY, 10, runs=100, one_by_one=True),
        Load(Group.LIMITED, 10_000, limit=100),
        Load(Group.REFILL, 2000, limit=100, naps=True),
    ]
