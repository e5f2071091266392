"""Limits of agents: what operators set, and which of the tasks that they hold back go out.

A task of a limited agent lies in the outbox with the time since which it waits (`held_at`), and is never due. Letting
tasks through is one transaction. It locks the agent's row, so that replicas take turns; counts the open attempts that
have slots; gives slots to the next in line, up to the limit; and makes their messages like any that are handed over.

Nobody tells of a slot that is free again: that of an attempt which is over goes when somebody counts. So results cost
nothing here, and no crash can leave a slot taken.

A transaction that began before a limit was set knows nothing of it, and sends tasks without slots. For a while after
each change such attempts are looked for, and get theirs. They may be more than the limit; none is let through then.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from orchestrator.engine.agent_limit import AgentLimit, Bucket, burst, let_through, next_token, refilled, room
from orchestrator.storage.changes import OutboxRow
from orchestrator.storage.database import Connection, Database, Row, is_locked_out
from orchestrator.storage.outbox import HAND_OVER_SECONDS
from orchestrator.storage.rows import STEP_COLUMNS, to_step

COUNT_SECONDS: Final = 60.0  # after a change, whoever began before it has ended; the last count is after that
COUNT_AGAIN_SECONDS: Final = 1.0
ASIDE: Final = 100  # places in line that are looked at beyond those that go: attempts may have ended while they waited

# Whoever lets tasks through holds up all others, so nobody may keep at it: a replica that is frozen loses its session.
_TAKE_TURNS: Final = "SET LOCAL lock_timeout = '500ms'; SET LOCAL idle_in_transaction_session_timeout = '5s'"
_LOCK: Final = f"""
    SELECT max_concurrency, rate_per_second, tokens, refilled_at, clock_timestamp() AS now,
        counted_at IS NULL OR (
            counted_at < changed_at + interval '{COUNT_SECONDS} seconds'
            AND counted_at < now() - interval '{COUNT_AGAIN_SECONDS} seconds'
        ) AS to_count
    FROM agent_limits WHERE agent_name = $1 FOR UPDATE
"""  # noqa: S608 - only our own numbers are put in
# Open attempts whose tasks went out without a slot. No index tells agents apart, so this goes by way of the runs.
_COUNT_OTHERS: Final = """
    WITH others AS (
        INSERT INTO agent_slots (task_id, agent_name)
        SELECT s.task_id, s.agent_name FROM runs AS r JOIN step_executions AS s ON s.run_id = r.id
        WHERE r.status = 'RUNNING' AND s.status IN ('QUEUED', 'RUNNING') AND s.agent_name = $1
            AND s.task_id NOT IN (SELECT task_id FROM outbox WHERE routing_key = $1 AND held_at IS NOT NULL)
        ON CONFLICT DO NOTHING
    )
    UPDATE agent_limits SET counted_at = now() WHERE agent_name = $1
"""
_TAKEN: Final = """
    WITH over AS (
        DELETE FROM agent_slots AS a WHERE agent_name = $1 AND NOT EXISTS (
            SELECT FROM step_executions AS s WHERE s.task_id = a.task_id AND s.status IN ('QUEUED', 'RUNNING')
        ) RETURNING task_id
    )
    SELECT (SELECT count(*) FROM agent_slots WHERE agent_name = $1) - (SELECT count(*) FROM over)
"""
# The next in line, with their steps. Those whose attempt is over are dropped. A step that somebody is changing just now
# is passed over: its attempt is about to end.
_NEXT: Final = f"""
    WITH line AS (
        SELECT message_id, task_id FROM outbox WHERE routing_key = $1 AND held_at IS NOT NULL
        ORDER BY held_at LIMIT $2::integer + {ASIDE}
    ), dropped AS (
        DELETE FROM outbox USING line WHERE outbox.message_id = line.message_id AND NOT EXISTS (
            SELECT FROM step_executions AS s WHERE s.task_id = line.task_id AND s.status = 'QUEUED'
        )
    )
    SELECT o.message_id, o.exchange, o.routing_key, o.type, o.correlation_id, o.body, o.traceparent,
        {STEP_COLUMNS}
    FROM line JOIN outbox AS o USING (message_id) JOIN step_executions AS s ON s.task_id = o.task_id
    WHERE o.held_at IS NOT NULL AND s.status = 'QUEUED'
    ORDER BY o.held_at LIMIT $2::integer FOR NO KEY UPDATE OF s SKIP LOCKED
"""  # noqa: S608
_LET_THROUGH: Final = """
    WITH steps AS (
        UPDATE step_executions AS s SET queued_at = $4, due_at = n.due_at
        FROM unnest($2::uuid[], $3::timestamptz[]) AS n(task_id, due_at) WHERE s.task_id = n.task_id
    ), messages AS (
        UPDATE outbox SET held_at = NULL, due_at = now() + make_interval(secs => $5) WHERE message_id = ANY($6::uuid[])
    ), slots AS (
        INSERT INTO agent_slots (task_id, agent_name) SELECT unnest($2::uuid[]), $1 WHERE $7 ON CONFLICT DO NOTHING
    )
    UPDATE agent_limits SET tokens = $8, refilled_at = $9 WHERE agent_name = $1
"""

# Agents with tasks that may go out, or are to be dropped. The next in line is read by way of the index, whatever the
# planner believes of the outbox (see `due`).
_FIRST: Final = """
    SELECT task_id FROM outbox WHERE routing_key = l.agent_name AND held_at IS NOT NULL ORDER BY held_at LIMIT 1
"""
WITH_ROOM: Final = f"""
    SELECT l.agent_name FROM agent_limits AS l CROSS JOIN LATERAL ({_FIRST}) AS first
    WHERE NOT EXISTS (SELECT FROM step_executions AS s WHERE s.task_id = first.task_id AND s.status = 'QUEUED') OR (
        (
            l.rate_per_second IS NULL
            OR l.tokens + l.rate_per_second * extract(epoch FROM now() - l.refilled_at) >= 1
        ) AND (
            l.max_concurrency IS NULL OR l.max_concurrency > (
                SELECT count(*) FROM agent_slots AS a JOIN step_executions AS s USING (task_id)
                WHERE a.agent_name = l.agent_name AND s.status IN ('QUEUED', 'RUNNING')
            )
        )
    )
"""  # noqa: S608

# A bucket that is new is full; one that there was keeps its tokens, so that a change never gives more.
_SET: Final = """
    INSERT INTO agent_limits AS l (agent_name, max_concurrency, rate_per_second, tokens, refilled_at, changed_at)
    VALUES ($1, $2, $3, $4, clock_timestamp(), clock_timestamp())
    ON CONFLICT (agent_name) DO UPDATE SET max_concurrency = excluded.max_concurrency,
        rate_per_second = excluded.rate_per_second, changed_at = excluded.changed_at, counted_at = NULL,
        tokens = CASE WHEN l.rate_per_second IS NULL THEN excluded.tokens ELSE least(l.tokens, excluded.tokens) END,
        refilled_at = CASE WHEN l.rate_per_second IS NULL THEN excluded.refilled_at ELSE l.refilled_at END
"""
_FORGET_SLOTS: Final = "DELETE FROM agent_slots WHERE agent_name = $1"
_GET: Final = "SELECT max_concurrency, rate_per_second FROM agent_limits WHERE agent_name = $1 FOR UPDATE"


@dataclass(frozen=True, slots=True)
class LetThrough:
    """Tasks that were let through: they are this process's to send, like those of a commit."""

    messages: Sequence[OutboxRow] = ()
    more: bool = False  # there may be others that can go at once
    next_token: timedelta | None = None  # until when others wait for nothing else


async def change_limit(database: Database, agent_name: str, change: Callable[[AgentLimit], AgentLimit]) -> AgentLimit:
    """Change an agent's limit for every transaction that begins from now on; return what it is now."""
    async with database.transaction() as connection:
        row = await connection.fetchrow(_GET, agent_name)
        limit = change(AgentLimit(*row) if row is not None else AgentLimit())
        tokens = burst(limit.rate_per_second) if limit.rate_per_second is not None else 0.0
        await connection.execute(_SET, agent_name, *limit, tokens)
        if limit.max_concurrency is None:
            await connection.execute(_FORGET_SLOTS, agent_name)
    return limit


async def agents_with_room(database: Database) -> Sequence[str]:
    """Return the agents of which held tasks may go out now, or are to be dropped."""
    async with database.connection() as connection:
        return [row["agent_name"] for row in await connection.fetch(WITH_ROOM)]


async def let_tasks_through(database: Database, agent_name: str, page: int) -> LetThrough:
    """Let the next of an agent's held tasks through, up to *page* of them, as far as its limit has room.

    Where another replica is at it for long, nothing happens: the agent is due again at the next look.
    """
    try:
        async with database.transaction() as connection:
            await connection.execute(_TAKE_TURNS)
            row = await connection.fetchrow(_LOCK, agent_name)
            return await _let_through(connection, agent_name, row, page) if row is not None else LetThrough()
    except Exception as error:
        if is_locked_out(error):
            return LetThrough()
        raise


async def _let_through(connection: Connection, agent_name: str, row: Row, page: int) -> LetThrough:
    limit = AgentLimit(row["max_concurrency"], row["rate_per_second"])
    bucket = refilled(Bucket(row["tokens"], row["refilled_at"]), limit.rate_per_second, row["now"])
    has_slots = limit.max_concurrency is not None
    if has_slots and row["to_count"]:
        await connection.execute(_COUNT_OTHERS, agent_name)
    taken = await connection.fetchval(_TAKEN, agent_name) if has_slots else 0
    free = room(limit, taken, bucket.tokens)
    found = await connection.fetch(_NEXT, agent_name, min(page, free) if free is not None else page)
    if found:
        bucket = bucket.without(len(found))
        steps = [let_through(to_step(step), row["now"]) for step in found]
        await connection.execute(
            _LET_THROUGH,
            agent_name,
            [step.task_id for step in steps],
            [step.due_at for step in steps],
            row["now"],
            HAND_OVER_SECONDS,
            [message["message_id"] for message in found],
            has_slots,
            *bucket,
        )
    return LetThrough(
        messages=[_message(message) for message in found],
        more=len(found) == page,
        next_token=next_token(limit, bucket) if free is not None and len(found) == free else None,
    )


def _message(row: Row) -> OutboxRow:
    return OutboxRow(
        message_id=row["message_id"],
        run_id=row["run_id"],
        step_id=row["step_id"],
        task_id=row["task_id"],
        exchange=row["exchange"],
        routing_key=row["routing_key"],
        type=row["type"],
        correlation_id=row["correlation_id"],
        body=row["body"],
        traceparent=row["traceparent"],
    )
