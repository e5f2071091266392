"""What is due: attempts whose time is up, by the database's clock."""

from collections.abc import Sequence
from typing import Final

from orchestrator.engine.inputs import AttemptOverdue
from orchestrator.storage.database import Database

_OVERDUE: Final = """
    SELECT run_id, step_id, task_id FROM step_executions WHERE due_at <= now() ORDER BY due_at LIMIT $1
"""


async def overdue_attempts(database: Database, limit: int) -> Sequence[AttemptOverdue]:
    """Return attempts that are overdue, the longest first. Nothing is locked: deciding about them looks again."""
    async with database.connection() as connection:
        return [AttemptOverdue(*row) for row in await connection.fetch(_OVERDUE, limit)]
