"""The limit of the agent that all steps have: drawn from the seed, changed while runs go on, and its oracle.

A limit is there from the start or never: what a transaction sends that began before there was one would be beyond it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

from orchestrator.engine.agent_limit import AgentLimit, burst
from orchestrator.engine.records import StepExecution
from tests.simulation.entropy import Dice
from tests.simulation.oracles import require
from tests.simulation.storage import Commit

AGENT: Final = "x"
LIMITED: Final = 0.4  # of all seeds
LIFTED_AFTER: Final = 60.0  # virtual seconds: a rate that is slow enough to be noticed is too slow for long runs


class Limits:
    """What operators say of the agent in one simulation.

    Args:
        seed: Draws it; the rest of the simulation takes the same course whatever it draws.
        set_limit: Has taken effect when it returns.
        note: Writes a line into the trace.
    """

    def __init__(
        self, seed: int, set_limit: Callable[[AgentLimit], Awaitable[None]], note: Callable[[str], None]
    ) -> None:
        self._dice = Dice(f"limits {seed}")
        self._set_limit = set_limit
        self._note = note
        self._limit = AgentLimit()
        self._under_way: set[UUID] = set()  # attempts that were let through, or were sent while there was no limit
        self._starts: list[float] = []  # since the rate was last changed

    async def change(self) -> None:
        """Limit the agent at once, if at all; say something else now and then, and nothing in the end."""
        if not self._dice.happens(LIMITED):
            return
        begun = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < begun + LIFTED_AFTER:
            await self._change(self._drawn())
            await asyncio.sleep(self._dice.pick([1.0, 5.0, 2 * LIFTED_AFTER]))
        await self._change(AgentLimit())

    def committed(self, commit: Commit) -> None:
        """Check what a commit let through. Raises Violation."""
        for before, after in commit.steps:
            if before is not None and _is_over(before, after):
                self._under_way.discard(_task(before.task_id))
        sent = {_task(row.task_id) for row in commit.sent if row.type == "AgentTask" and row.routing_key == AGENT}
        if self._limit.holds:
            require(sent <= self._under_way, "O4 limit", "tasks went past the limit of their agent:", commit.sent)
        self._under_way |= sent
        times = {step.task_id: step.queued_at for _, step in commit.steps}
        for row in commit.let_through:
            at = times[row.task_id]  # when that was decided; it may take a while until it is committed, and sent
            assert at is not None, "a step that is let through is QUEUED from then on"
            self._let_through(_task(row.task_id), at.timestamp())

    def _let_through(self, task_id: UUID, at: float) -> None:
        require(task_id not in self._under_way, "O4 limit", "a task was let through twice:", task_id)
        self._under_way.add(task_id)
        self._starts.append(at)
        most, rate = self._limit
        if most is not None:
            open_ones = len(self._under_way)
            require(open_ones <= most, "O4 limit", open_ones, "attempts of the agent are under way, not", most)
        if rate is None:
            return
        for number, first in enumerate(self._starts):
            starts, seconds = len(self._starts) - number, at - first
            require(starts <= rate * seconds + burst(rate) + 1e-6, "O4 rate", starts, "starts in", seconds, "seconds")

    async def _change(self, limit: AgentLimit) -> None:
        await self._set_limit(limit)
        if limit.rate_per_second != self._limit.rate_per_second:
            self._starts.clear()
        self._limit = limit
        self._note(f"agent {AGENT}: {limit}")

    def _drawn(self) -> AgentLimit:
        return self._dice.pick(
            [AgentLimit(most) for most in (1, 1, 2, 3)] + [AgentLimit(2, 1.0), AgentLimit(None, 2.0)]
        )


def _is_over(before: StepExecution, after: StepExecution) -> bool:
    return before.is_dispatched and (not after.is_dispatched or after.task_id != before.task_id)


def _task(task_id: UUID | None) -> UUID:
    return task_id or UUID(int=0)
