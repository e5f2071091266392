"""What is due, by the database's clock: attempts and runs whose time is up, steps whose next attempt starts."""

from collections.abc import Sequence
from typing import Final

from orchestrator.engine.inputs import AttemptOverdue, DueInput, RetryDue, RunOverdue
from orchestrator.storage.database import Database, Row

# A step without a task waits for its next attempt; what is no step is a run.
_DUE: Final = """
    (SELECT due_at, run_id, step_id, task_id FROM step_executions WHERE due_at <= now() ORDER BY due_at LIMIT $1)
    UNION ALL
    (SELECT due_at, id, NULL, NULL FROM runs WHERE due_at <= now() ORDER BY due_at LIMIT $1)
    ORDER BY due_at LIMIT $1
"""


async def due_inputs(database: Database, limit: int) -> Sequence[DueInput]:
    """Return what is due, the longest first. Nothing is locked: deciding about it looks again."""
    async with database.connection() as connection:
        return [_due_input(row) for row in await connection.fetch(_DUE, limit)]


def _due_input(row: Row) -> DueInput:
    _, run_id, step_id, task_id = row
    if step_id is None:
        return RunOverdue(run_id)
    return AttemptOverdue(run_id, step_id, task_id) if task_id is not None else RetryDue(run_id, step_id)
