"""What is due: attempts whose time is up, and steps whose next attempt starts, by the database's clock."""

from collections.abc import Sequence
from typing import Final

from orchestrator.engine.inputs import AttemptOverdue, RetryDue
from orchestrator.storage.database import Database

# A step without a task waits for its next attempt.
_DUE: Final = """
    SELECT run_id, step_id, task_id FROM step_executions WHERE due_at <= now() ORDER BY due_at LIMIT $1
"""


async def due_steps(database: Database, limit: int) -> Sequence[AttemptOverdue | RetryDue]:
    """Return what is due, the longest first. Nothing is locked: deciding about it looks again."""
    async with database.connection() as connection:
        rows = await connection.fetch(_DUE, limit)
    return [RetryDue(row["run_id"], row["step_id"]) if row["task_id"] is None else AttemptOverdue(*row) for row in rows]
