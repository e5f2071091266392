"""Silent attempts: open ones of which nothing has been heard for a while, by the database's clock.

Only the steps of unfinished runs are looked at. An index on the status of steps would be faster to read, but would cost
every status change its place on the page (HOT).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from orchestrator.engine.inputs import TaskMissing
from orchestrator.storage.database import Database

# A worker that has reported an attempt speaks at an interval of its own, so it may be silent for longer.
PATIENCE_WITH_WORKERS: Final = 3

# NOT IN, for that is hashed whatever the planner believes of the outbox, which is empty whenever it is analyzed.
_OPEN: Final = f"""
    WITH open AS (
        SELECT s.run_id, s.step_id, s.task_id, s.agent_name, s.queued_at, s.status = 'QUEUED' AS unclaimed,
            greatest(s.queued_at, s.heartbeat_at) AS last_sign,
            greatest(s.queued_at, s.heartbeat_at) <= now() - make_interval(
                secs => $1::double precision * CASE WHEN s.status = 'QUEUED' THEN 1 ELSE {PATIENCE_WITH_WORKERS} END
            ) AS silent
        FROM runs AS r JOIN step_executions AS s ON s.run_id = r.id
        WHERE r.status = 'RUNNING' AND s.status IN ('QUEUED', 'RUNNING') AND s.agent_name IS NOT NULL
            AND s.task_id NOT IN (SELECT task_id FROM outbox WHERE task_id IS NOT NULL)
    )
"""  # noqa: S608 - only our own number is put in
_COUNTS: Final = f"""{_OPEN}
    SELECT agent_name,
        count(*) FILTER (WHERE silent) AS silent, count(*) FILTER (WHERE unclaimed AND NOT silent) AS fresh
    FROM open GROUP BY agent_name HAVING bool_or(silent) ORDER BY agent_name
"""  # noqa: S608
# What nobody has claimed comes first: a purge takes what waits, and not what workers have.
_OLDEST: Final = f"""{_OPEN}
    SELECT run_id, step_id, task_id, last_sign, now() - last_sign AS silent_for FROM open
    WHERE silent AND agent_name = $2 ORDER BY unclaimed DESC, queued_at, task_id LIMIT $3
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class Silence:
    """How many attempts of one agent are open although their tasks were sent, and nobody has reported them."""

    agent_name: str
    silent: int  # for so long that their tasks should be in the queue; with those whose worker has fallen silent
    fresh: int  # sent a moment ago: in the queue, or with a worker that is about to speak


@dataclass(frozen=True, slots=True)
class SilentAttempt:
    """An attempt whose task may be missing."""

    missing: TaskMissing
    silent_for: timedelta


async def count_silent(database: Database, seconds: float) -> Sequence[Silence]:
    """Return the agents that have attempts without a sign of life for *seconds*, by name."""
    async with database.connection() as connection:
        return [Silence(*row) for row in await connection.fetch(_COUNTS, seconds)]


async def oldest_silent(database: Database, agent_name: str, seconds: float, limit: int) -> Sequence[SilentAttempt]:
    """Return up to *limit* silent attempts of an agent, those that were sent first."""
    async with database.connection() as connection:
        rows = await connection.fetch(_OLDEST, seconds, agent_name, limit)
    return [
        SilentAttempt(TaskMissing(row["run_id"], row["step_id"], row["task_id"], row["last_sign"]), row["silent_for"])
        for row in rows
    ]
