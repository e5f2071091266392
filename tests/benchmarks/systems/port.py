"""What a system under measurement offers; all of them look the same to the benchmarks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tests.benchmarks.loads import Load
from tests.benchmarks.measurement import Role


class WrongResults(Exception):
    """Results are missing, or are not what was asked for; says which."""


@dataclass(frozen=True)
class Outcome:
    """One load, done.

    Attributes:
        wall_seconds: From the first publish to the last result. Checking the results comes after.
        times: Seconds; of single runs, or of refills, where the load asks for them.
    """

    wall_seconds: float
    times: tuple[float, ...] = ()


class System(Protocol):
    """Something that forks, runs agents in two worker processes, and joins."""

    @property
    def name(self) -> str:
        """What it is called in results and on the command line."""

    @property
    def settings(self) -> str:
        """How it is set up, in one sentence."""

    def takes(self, load: Load) -> bool:
        """Whether the load makes sense for it."""

    def processes(self) -> Mapping[Role, Sequence[int]]:
        """Return its own processes, while it is started; the servers' are not its own."""

    async def start(self) -> None:
        """Start it on a fresh vhost and whatever else it needs, and return when it is ready."""

    async def run(self, load: Load) -> Outcome:
        """Do the load; the caller cuts it off when it takes too long.

        Raises:
            WrongResults: Not every result is there and right.
        """

    async def stop(self) -> None:
        """End its processes and delete what it made, in whatever state it is."""


def check(results: Sequence[Any], load: Load) -> None:
    """Compare the results of one run with what its branches were given.

    Args:
        results: Of all branches, in their order.
        load: What was asked for.

    Raises:
        WrongResults: They differ; names the first.
    """
    if len(results) != load.branches:
        raise WrongResults(f"{len(results)} results of {load.branches}")
    for branch, result in enumerate(results):
        given = load.given(branch)
        if any(result.get(key) != given[key] for key in given if key != "seconds"):
            raise WrongResults(f"branch {branch}: given {given}, got {result}")
