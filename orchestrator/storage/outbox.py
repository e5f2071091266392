"""The outbox, from the sender's side: what is due, what is done, what no queue takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from orchestrator.storage.changes import OutboxRow
from orchestrator.storage.database import Connection
from orchestrator.storage.dead_letters import Undeliverable, put_back

HAND_OVER_SECONDS: Final = 10.0  # for so long a sweeper leaves a message to the process that wrote it

# In the order of the index and no other: what has to be sorted has to be read first, and that may be 100,000 rows.
_DUE: Final = """
    SELECT message_id, run_id, step_id, task_id, exchange, routing_key, type, correlation_id, body,
        traceparent, replay
    FROM outbox WHERE due_at <= now() ORDER BY due_at LIMIT $1 FOR UPDATE SKIP LOCKED
"""
_DELETE: Final = "DELETE FROM outbox WHERE message_id = ANY($1::uuid[])"
_DELETE_TASKS: Final = "DELETE FROM outbox WHERE task_id = ANY($1::uuid[])"
_POSTPONE: Final = """
    UPDATE outbox SET due_at = now() + make_interval(secs => $2),
        returned_at = CASE WHEN $3 THEN COALESCE(returned_at, now()) ELSE returned_at END
    WHERE message_id = ANY($1::uuid[])
    RETURNING message_id, COALESCE(now() - returned_at, interval '0') AS unroutable_for
"""


@dataclass(frozen=True, slots=True)
class Postponed:
    """A message that stays in the outbox, and for how long no queue has taken it."""

    message_id: UUID
    unroutable_for: timedelta


class PostgresOutbox:
    """The outbox in one transaction; see `orchestrator.storage.port.Outbox`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def lock_due(self, limit: int) -> Sequence[OutboxRow]:
        """Return up to *limit* messages that are due and that nobody else is sending, the oldest first."""
        return [OutboxRow(*row) for row in await self._connection.fetch(_DUE, limit)]

    async def delete(self, ids: Sequence[UUID]) -> None:
        """Forget messages that have been sent, or never can be."""
        await self._connection.execute(_DELETE, ids)

    async def delete_tasks(self, task_ids: Sequence[UUID]) -> None:
        """Forget the messages of attempts that were given up."""
        await self._connection.execute(_DELETE_TASKS, task_ids)

    async def postpone(self, ids: Sequence[UUID], *, delay: float, returned: bool) -> Sequence[Postponed]:
        """Leave these for another try in *delay* seconds; *returned* when the broker said that no queue takes them."""
        return [Postponed(*row) for row in await self._connection.fetch(_POSTPONE, ids, delay, returned)]

    async def put_back(self, undeliverable: Sequence[Undeliverable]) -> None:
        """Make dead letters of replays that the broker does not take."""
        await put_back(self._connection, undeliverable)
