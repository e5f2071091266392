"""What is due: attempts whose time is up, by the database's clock."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import text

from orchestrator.engine.inputs import AttemptOverdue
from orchestrator.storage.database import Database

_OVERDUE: Final = text("""
    SELECT run_id, step_id, task_id FROM step_executions WHERE due_at <= now() ORDER BY due_at LIMIT :limit
""")


async def overdue_attempts(database: Database, limit: int) -> Sequence[AttemptOverdue]:
    """Return attempts that are overdue, the longest first. Nothing is locked: deciding about them looks again."""
    async with database.transaction() as connection:
        rows = await connection.execute(_OVERDUE, {"limit": limit})
        return [AttemptOverdue(row.run_id, row.step_id, row.task_id) for row in rows]
