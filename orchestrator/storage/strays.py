"""Sub-workflows whose step and run have lost sight of each other, by the database's clock.

Parent and child stand in one database, so nothing is guessed: an open attempt whose run has ended, or does not exist
though its request has left the outbox, and a run that goes on though no open attempt waits for it. The first two are
normal for as long as a message travels, and so count after a while only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from orchestrator.engine.inputs import CancelRequested, ChildEnded, TaskMissing
from orchestrator.storage.database import Database, Row
from orchestrator.storage.rows import to_error, to_value
from schemas.messages import RunResult
from schemas.statuses import ResultStatus

NOT_AWAITED: Final = "the step that started it does not wait for it any more"

# NOT IN, as in `orchestrator.storage.silent`. The last part goes by the index on the status of runs.
_STRAYS: Final = """
    WITH open AS (
        SELECT s.run_id, s.step_id, s.task_id, s.queued_at
        FROM runs AS r JOIN step_executions AS s ON s.run_id = r.id
        WHERE r.status = 'RUNNING' AND s.sub_workflow_id IS NOT NULL AND s.status IN ('QUEUED', 'RUNNING')
    )
    (SELECT 'ended' AS kind, o.run_id, o.step_id, o.task_id, o.queued_at, now() - c.finished_at AS silent_for,
        c.status, c.output::text AS output, c.error::text AS error
    FROM open AS o JOIN runs AS c ON c.id = o.task_id
    WHERE c.finished_at <= now() - make_interval(secs => $1) LIMIT $2)
    UNION ALL
    (SELECT 'missing', o.run_id, o.step_id, o.task_id, o.queued_at, now() - o.queued_at, NULL, NULL, NULL
    FROM open AS o LEFT JOIN runs AS c ON c.id = o.task_id
    WHERE c.id IS NULL AND o.queued_at <= now() - make_interval(secs => $1)
        AND o.task_id NOT IN (SELECT task_id FROM outbox WHERE task_id IS NOT NULL) LIMIT $2)
    UNION ALL
    (SELECT 'not awaited', c.id, NULL, NULL, NULL, NULL, NULL, NULL, NULL
    FROM runs AS c LEFT JOIN step_executions AS s ON s.task_id = c.id
    WHERE c.status IN ('PENDING', 'RUNNING') AND c.parent_run_id IS NOT NULL
        AND (s.task_id IS NULL OR s.status NOT IN ('QUEUED', 'RUNNING')) LIMIT $2)
"""


@dataclass(frozen=True, slots=True)
class Stray:
    """What makes up for a message that was lost, and for how long that has been so."""

    event: ChildEnded | TaskMissing | CancelRequested
    silent_for: timedelta


async def find_strays(database: Database, seconds: float, limit: int) -> Sequence[Stray]:
    """Return up to *limit* strays of each kind; *seconds* is for how long messages may travel."""
    async with database.connection() as connection:
        return [_stray(row) for row in await connection.fetch(_STRAYS, seconds, limit)]


def _stray(row: Row) -> Stray:
    match row["kind"]:
        case "ended":
            result = RunResult(
                run_id=row["task_id"],
                status=ResultStatus(row["status"]),
                output=to_value(row["output"]),
                error=to_error(row["error"]),
            )
            return Stray(ChildEnded(row["run_id"], row["task_id"], result), row["silent_for"])
        case "missing":
            missing = TaskMissing(row["run_id"], row["step_id"], row["task_id"], row["queued_at"])
            return Stray(missing, row["silent_for"])
        case _:
            return Stray(CancelRequested(row["run_id"], NOT_AWAITED), timedelta(0))
