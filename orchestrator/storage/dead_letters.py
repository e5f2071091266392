"""The dead letters: messages that could not be processed, kept until somebody replays or drops them.

A replay is one statement: the dead letter goes, and the original message is in the outbox. So of two operators who
replay the same one only the first finds it, and from there on the message is sent as all others are, at least once.
"""

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from orchestrator.errors import UnknownDeadLetter
from orchestrator.storage.database import Connection, Database, Row

PAGE: Final = 500  # replayed or dropped in one transaction

_TYPES: Final = {
    "key": "text", "dead_lettered_at": "timestamptz", "queue": "text", "exchange": "text", "routing_key": "text",
    "code": "text", "message": "text", "type": "text", "message_id": "text", "correlation_id": "text",
    "reply_to": "text", "headers": "jsonb", "body": "bytea", "run_id": "uuid", "step_id": "text",
}  # fmt: skip
_COLUMNS: Final = ", ".join(_TYPES)
_ARRAYS: Final = ", ".join(
    f"${number}::{'text' if kind == 'jsonb' else kind}[]" for number, kind in enumerate(_TYPES.values(), 1)
)
_VALUES: Final = ", ".join(
    f"n.{name}::jsonb" if kind == "jsonb" else f"n.{name}" for name, kind in _TYPES.items() if name != "key"
)
# A key that is taken means the same dead letter once more, unless the broker says that this is its first delivery.
_STORE: Final = f"""
    INSERT INTO dead_letters ({_COLUMNS})
    SELECT CASE
        WHEN n.is_new AND EXISTS (SELECT FROM dead_letters AS d WHERE d.key = n.key)
        THEN n.key || '.' || gen_random_uuid() ELSE n.key END, {_VALUES}
    FROM unnest({_ARRAYS}, ${len(_TYPES) + 1}::boolean[]) AS n({_COLUMNS}, is_new)
    ON CONFLICT (key) DO NOTHING
"""  # noqa: S608
_MATCHES: Final = """($1::text IS NULL OR queue = $1) AND ($2::text IS NULL OR code = $2)
        AND ($3::interval IS NULL OR received_at < now() - $3::interval)"""
_LIST: Final = f"""
    SELECT id, received_at, dead_lettered_at, queue, code, message, type, message_id, run_id, step_id,
        length(body) AS size
    FROM dead_letters WHERE {_MATCHES} ORDER BY id DESC LIMIT $4
"""  # noqa: S608
_COUNT: Final = f"""
    SELECT count(*) AS number, count(queue) AS addressed, COALESCE(max(id), 0) AS newest
    FROM dead_letters WHERE {_MATCHES}
"""  # noqa: S608
_GET: Final = "SELECT *, length(body) AS size FROM dead_letters WHERE id = $1"
# Locked in one order, so that two operators never wait for each other.
_CHOSEN: Final = "SELECT id FROM dead_letters WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE"
_PAGE: Final = f"SELECT id FROM dead_letters WHERE {_MATCHES} AND id <= $4 AND id > $5 ORDER BY id LIMIT $6"  # noqa: S608
_DROP: Final = f"DELETE FROM dead_letters WHERE id IN ({_CHOSEN}) RETURNING id"  # noqa: S608
_REPLAY: Final = f"""
    WITH gone AS (
        DELETE FROM dead_letters WHERE id IN ({_CHOSEN}) AND queue IS NOT NULL RETURNING *
    ), sent AS (
        INSERT INTO outbox
            (message_id, run_id, exchange, routing_key, type, correlation_id, body, due_at, replay)
        SELECT gen_random_uuid(), run_id, '', queue, COALESCE(type, ''), correlation_id, body, clock_timestamp(),
            jsonb_build_object(
                'message_id', message_id, 'reply_to', reply_to, 'headers', headers,
                'exchange', exchange, 'routing_key', routing_key, 'step_id', step_id)
        FROM (SELECT * FROM gone ORDER BY id) AS ordered
    )
    SELECT id FROM gone
"""  # noqa: S608
_PUT_BACK: Final = """
    WITH gone AS (
        DELETE FROM outbox AS o USING unnest($1::uuid[], $2::text[], $3::text[]) AS n(message_id, code, message)
        WHERE o.message_id = n.message_id AND o.replay IS NOT NULL
        RETURNING o.*, n.code, n.message
    )
    INSERT INTO dead_letters (key, dead_lettered_at, queue, exchange, routing_key, code, message, type, message_id,
        correlation_id, reply_to, headers, body, run_id, step_id)
    SELECT 'replay.' || message_id, now(), routing_key, replay ->> 'exchange', replay ->> 'routing_key', code, message,
        NULLIF(type, ''), replay ->> 'message_id', correlation_id, replay ->> 'reply_to', replay -> 'headers', body,
        run_id, replay ->> 'step_id'
    FROM gone ON CONFLICT (key) DO NOTHING
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDeadLetter:
    """A dead letter to store."""

    key: str
    dead_lettered_at: datetime | None
    queue: str | None
    exchange: str | None
    routing_key: str | None
    code: str
    message: str
    type: str | None
    message_id: str | None
    correlation_id: str | None
    reply_to: str | None
    headers: str  # JSON
    body: bytes
    run_id: UUID | None
    step_id: str | None
    is_new: bool  # whether it is certain that it was not delivered before


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterSummary:
    """A dead letter without its content."""

    id: int
    received_at: datetime
    dead_lettered_at: datetime | None
    queue: str | None
    code: str
    message: str
    type: str | None
    message_id: str | None
    run_id: UUID | None
    step_id: str | None
    size: int  # of the body, in bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A stored dead letter."""

    summary: DeadLetterSummary
    exchange: str | None
    routing_key: str | None
    correlation_id: str | None
    reply_to: str | None
    headers: Any  # as `headers_to_json` writes them
    body: bytes


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters are meant: all that match."""

    queue: str | None = None
    code: str | None = None
    older_than: timedelta | None = None  # since they were stored


@dataclass(frozen=True, slots=True)
class Extent:
    """How many dead letters a selection has."""

    number: int
    addressed: int  # of which the queue is known, so that they can be replayed
    newest: int  # the highest id; what comes later is not meant


@dataclass(frozen=True, slots=True)
class Undeliverable:
    """A replay that the broker does not take, and why."""

    message_id: UUID  # of the outbox row
    code: str
    message: str


async def store(database: Database, letters: Sequence[NewDeadLetter]) -> None:
    """Store dead letters; those that are stored already stay as they are."""
    columns = [list(column) for column in zip(*map(astuple, letters), strict=True)]
    async with database.connection() as connection:
        await connection.execute(_STORE, *columns)


async def list_dead_letters(database: Database, selection: Selection, limit: int) -> Sequence[DeadLetterSummary]:
    """Return the newest of a selection."""
    async with database.connection() as connection:
        rows = await connection.fetch(_LIST, *astuple(selection), limit)
    return [_summary(row) for row in rows]


async def measure(database: Database, selection: Selection) -> Extent:
    """Return how large a selection is now."""
    async with database.connection() as connection:
        [row] = await connection.fetch(_COUNT, *astuple(selection))
    return Extent(*row)


async def get_dead_letter(database: Database, number: int) -> DeadLetter:
    """Return one dead letter.

    Raises:
        UnknownDeadLetter: There is none of that id.
    """
    async with database.connection() as connection:
        row = await connection.fetchrow(_GET, number)
    if row is None:
        raise UnknownDeadLetter(
            f"there is no dead letter {number}: it was replayed or dropped, or never was; "
            "`forkjoin dead-letters list` shows those that exist"
        )
    return DeadLetter(
        summary=_summary(row),
        exchange=row["exchange"],
        routing_key=row["routing_key"],
        correlation_id=row["correlation_id"],
        reply_to=row["reply_to"],
        headers=json.loads(row["headers"]),
        body=row["body"],
    )


async def replay(database: Database, ids: Sequence[int]) -> frozenset[int]:
    """Put the original messages into the outbox, addressed to their queues; return whose.

    The others are gone, or nobody knows the queue that they came from.
    """
    return await _take(database, _REPLAY, ids)


async def drop(database: Database, ids: Sequence[int]) -> frozenset[int]:
    """Delete dead letters for good; return which: the others are gone."""
    return await _take(database, _DROP, ids)


async def page(database: Database, selection: Selection, extent: Extent, after: int) -> Sequence[int]:
    """Return the ids of the next dead letters behind id *after*, the oldest first.

    Those that came after *extent* was measured are left out: a replay that fails again would else go round for ever.
    """
    async with database.connection() as connection:
        rows = await connection.fetch(_PAGE, *astuple(selection), extent.newest, after, PAGE)
    return [row["id"] for row in rows]


async def put_back(connection: Connection, undeliverable: Sequence[Undeliverable]) -> None:
    """Make replays dead letters again."""
    columns = [list(column) for column in zip(*map(astuple, undeliverable), strict=True)]
    await connection.execute(_PUT_BACK, *columns)


async def _take(database: Database, statement: str, ids: Sequence[int]) -> frozenset[int]:
    async with database.connection() as connection:
        return frozenset(row["id"] for row in await connection.fetch(statement, ids))


def _summary(row: Row) -> DeadLetterSummary:
    return DeadLetterSummary(**{field.name: row[field.name] for field in fields(DeadLetterSummary)})
