"""Whether anything is due, by the database's clock: one statement for all that a replica waits for."""

from enum import StrEnum
from typing import Final

from orchestrator.storage.agent_limits import WITH_ROOM
from orchestrator.storage.database import Database

# ORDER BY … LIMIT, and not EXISTS: that the planner answers by reading the whole table wherever it believes that most
# rows are due, as statistics from a busy moment say of the outbox.
_DUE: Final = f"""
    SELECT (SELECT true FROM outbox WHERE due_at <= now() ORDER BY due_at LIMIT 1) IS NOT NULL AS messages,
        (SELECT true FROM step_executions WHERE due_at <= now() ORDER BY due_at LIMIT 1) IS NOT NULL
            OR (SELECT true FROM runs WHERE due_at <= now() ORDER BY due_at LIMIT 1) IS NOT NULL AS times,
        EXISTS (SELECT FROM gates WHERE holder = $1 OR lease_until < now()) AS gates,
        EXISTS ({WITH_ROOM}) AS agents
"""  # noqa: S608 - only a statement of our own is put in


class Due(StrEnum):
    """A kind of thing that some replica should look after now."""

    MESSAGES = "messages"  # of the outbox: their sender had its time, or has failed
    TIMES = "times"  # of attempts, next attempts or runs have come
    GATES = "gates"  # are held by the replica that asks, or their lease has lapsed
    AGENTS = "agents"  # are limited, and their limit has room for tasks that it holds back


async def what_is_due(database: Database, replica_id: str) -> frozenset[Due]:
    """Return what a replica should look after. Nothing is locked: somebody may be at it already."""
    async with database.connection() as connection:
        [row] = await connection.fetch(_DUE, replica_id)
    return frozenset(due for due in Due if row[due])
