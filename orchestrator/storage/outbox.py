"""The outbox, from the sender's side: what is due, what is done, what no queue takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.storage.writes import OutboxRow

_DUE: Final = text("""
    SELECT message_id, run_id, step_id, task_id, exchange, routing_key, type, correlation_id, body
    FROM outbox WHERE due_at <= now() ORDER BY due_at, created_at LIMIT :limit FOR UPDATE SKIP LOCKED
""")
_DELETE: Final = text("DELETE FROM outbox WHERE message_id = ANY(CAST(:ids AS uuid[]))")
_DELETE_TASKS: Final = text("DELETE FROM outbox WHERE task_id = ANY(CAST(:tasks AS uuid[]))")
_POSTPONE: Final = text("""
    UPDATE outbox SET due_at = now() + make_interval(secs => :delay),
        returned_at = CASE WHEN :returned THEN COALESCE(returned_at, now()) ELSE returned_at END
    WHERE message_id = ANY(CAST(:ids AS uuid[]))
    RETURNING message_id, COALESCE(now() - returned_at, interval '0') AS unroutable_for
""")


@dataclass(frozen=True, slots=True)
class Postponed:
    """A message that stays in the outbox, and for how long no queue has taken it."""

    message_id: UUID
    unroutable_for: timedelta


async def lock_due(connection: AsyncConnection, limit: int) -> Sequence[OutboxRow]:
    """Return up to *limit* messages that are due and that nobody else is sending, the oldest first.

    The rows stay locked until the transaction ends; should this process die, its locks go with it.
    """
    rows = (await connection.execute(_DUE, {"limit": limit})).all()
    return [OutboxRow(*row) for row in rows]


async def delete_sent(connection: AsyncConnection, ids: Sequence[UUID]) -> None:
    """Forget messages that have been sent, or never can be."""
    await connection.execute(_DELETE, {"ids": list(ids)})


async def postpone(
    connection: AsyncConnection, ids: Sequence[UUID], *, delay: float, returned: bool
) -> Sequence[Postponed]:
    """Leave these for another try in *delay* seconds; *returned* when the broker said that no queue takes them."""
    rows = await connection.execute(_POSTPONE, {"ids": list(ids), "delay": delay, "returned": returned})
    return [Postponed(row.message_id, row.unroutable_for) for row in rows]


async def delete_tasks(connection: AsyncConnection, task_ids: Sequence[UUID]) -> None:
    """Forget the messages of attempts that were given up."""
    await connection.execute(_DELETE_TASKS, {"tasks": list(task_ids)})
