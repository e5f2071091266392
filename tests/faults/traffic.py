"""Runs that are under way while something fails, and what they must come to all the same."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from tests.acceptance.cluster import PATIENCE, Cluster, wait_until
from tests.faults import wire
from tests.faults.oracles import Expected, check, fetch, record_history
from tests.faults.recovery import Recovery
from tests.faults.scene import logs

# What a look at Postgres raises while Postgres is away; the next look may succeed.
AWAY = (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, asyncpg.OperatorInterventionError,
        asyncpg.TooManyConnectionsError, asyncpg.InterfaceError)  # fmt: skip


_COMPLETED = "SELECT count(*) AS number FROM step_executions WHERE parent_step_id <> '' AND status = 'COMPLETED'"


@dataclass
class Traffic:
    """Equal runs in one cluster: a step, a block with a limit, and a step that takes the whole block.

    Attributes:
        branches: Of each block.
        limit: Its max_parallelism; None is without limit.
        seconds: For which each branch naps.
    """

    cluster: Cluster
    branches: int = 6
    limit: int | None = 2
    seconds: float = 0.05
    runs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        record_history(self.cluster.database_url)

    @property
    def names(self) -> list[str]:
        """The branches, in the order of the definition."""
        return [f"b{number}" for number in range(self.branches)]

    @property
    def output(self) -> dict[str, Any]:
        """What each run gives where nothing fails."""
        return {"all": {name: {"n": number} for number, name in enumerate(self.names)}}

    def workflow(self) -> dict[str, Any]:
        """Return the document."""
        limit = {} if self.limit is None else {"max_parallelism": self.limit}
        block = {"type": "parallel", "parallel_steps": self.names, "next_step": "after", **limit}
        steps: dict[str, Any] = {"before": {"agent_name": "echo", "next_step": "block"}, "block": block}
        for number, name in enumerate(self.names):
            steps[name] = {"agent_name": "nap", "input_mapping": {"n": number, "seconds": self.seconds}}
        steps["after"] = {"agent_name": "echo", "input_mapping": {"all": "${block.output}"}}
        return {"name": "traffic", "start_step": "before", "steps": steps}

    def submit(self, count: int) -> None:
        """Submit so many runs over the wire, each confirmed by the broker."""
        workflow, new = self.workflow(), [str(uuid.uuid4()) for _ in range(count)]
        wire.publish(
            self.cluster, wire.SUBMIT, "RunRequest", ({"run_id": run_id, "workflow": workflow} for run_id in new)
        )
        self.runs += new

    def completed_branches(self) -> int:
        """Return how many branches Postgres counts as completed; -1 while it cannot be asked."""
        try:
            return int(fetch(self.cluster, _COMPLETED)[0]["number"])
        except AWAY:
            return -1

    def is_under_way(self, share: float = 0.1, *, seconds: float = PATIENCE) -> None:
        """Wait until this share of all branches has completed; much is left to do then."""
        wanted = share * self.branches * len(self.runs)
        wait_until(lambda: self.completed_branches() >= wanted, seconds, lambda: logs(self.cluster))
        assert self.unfinished(), "the fault comes too late: all runs have ended"

    def unfinished(self) -> list[str]:
        """Return the runs that are not final, or unknown; all of them while Postgres cannot be asked."""
        final = "SELECT id::text FROM runs WHERE status IN ('COMPLETED', 'FAILED', 'CANCELLED')"
        try:
            known = {row["id"] for row in fetch(self.cluster, final)}
        except AWAY:
            return list(self.runs)
        return [run_id for run_id in self.runs if run_id not in known]

    def recovers(self, recovery: Recovery, *, seconds: float = PATIENCE) -> None:
        """Wait for the first branch that completes after the fault, then for the end of all runs; note the times."""
        before = -1
        while before < 0:  # what was completed when the fault was over
            before = self.completed_branches()
        wait_until(
            lambda: self.completed_branches() > before or not self.unfinished(),
            seconds,
            lambda: f"nothing goes on: {logs(self.cluster)}",
        )
        first = time.monotonic()
        self.ends(seconds=seconds)
        recovery.note(("first progress", first), (f"all {len(self.runs)} runs", time.monotonic()))

    def ends(self, *, seconds: float = PATIENCE) -> None:
        """Wait until all runs are final (O1)."""
        wait_until(
            lambda: not self.unfinished(), seconds, lambda: f"open: {self.unfinished()[:5]}; {logs(self.cluster)}"
        )

    def check(self, *, repeats: int = 0, dead_letters: Sequence[str] = ()) -> None:
        """Check the oracles, O1 to O5 and O7; ends all services.

        Args:
            repeats: How many things happened that may have redelivered a task.
            dead_letters: The predicted codes.
        """
        expected = dict.fromkeys(self.runs, self.expected())
        # Where a gate was taken over at its end, the next lease round removes its queue.
        wait_until(lambda: not any(self._gates()), PATIENCE, lambda: f"gate queues are left: {list(self._gates())}")
        check(self.cluster, expected, repeats=repeats, dead_letters=dead_letters, agents=("nap", "echo"))

    def expected(self) -> Expected:
        """Return what each run comes to."""
        steps = dict.fromkeys(["before", "block", *self.names, "after"], "COMPLETED")
        limits = {} if self.limit is None else {"block": self.limit}
        return Expected("COMPLETED", self.output, steps, limits, self.names)

    def _gates(self) -> Iterator[str]:
        queues = (f"orchestrator.gate.{run_id}.block" for run_id in self.runs)
        return (queue for queue in queues if wire.exists(self.cluster, queue))
