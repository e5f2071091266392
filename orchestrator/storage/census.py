"""How much of everything there is now: unfinished runs, open branches, gates, the outbox, dead letters.

For monitoring: it is asked every few seconds for as long as the service runs, so each count has an end. Finished runs,
of which there may be millions, are not looked at; what is unfinished is counted up to a limit, and where the limit
stops a count the census says so.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from orchestrator.storage.database import Connection, Database, Row
from schemas.statuses import RunStatus, StepStatus

MOST_ROWS: Final = 200_000  # looked at for one count
MOST_LETTERS: Final = 10_000  # they are wide, and more than that is as bad as that
TIMEOUT_SECONDS: Final = 4.0  # for each statement

_OPEN_RUNS: Final = (RunStatus.PENDING, RunStatus.RUNNING)
_OPEN_STEPS: Final = (StepStatus.PENDING, StepStatus.QUEUED, StepStatus.RUNNING)

_RUNS: Final = """
    SELECT status, count(*) AS number FROM (
        (SELECT status FROM runs WHERE status = 'PENDING' ORDER BY created_at LIMIT $1)
        UNION ALL (SELECT status FROM runs WHERE status = 'RUNNING' ORDER BY created_at LIMIT $1)
    ) AS unfinished GROUP BY status
"""
# From run to run, so that the limit can stop it; rows are filtered outside, or those filtered out would not count.
_STEPS: Final = """
    SELECT is_branch, agent_name, status, count(*) AS number
    FROM (
        SELECT s.parent_step_id IS NOT NULL AS is_branch, s.agent_name, s.status
        FROM (SELECT id FROM runs WHERE status = 'RUNNING' ORDER BY created_at LIMIT $1) AS r
        CROSS JOIN LATERAL (
            SELECT parent_step_id, agent_name, status FROM step_executions WHERE run_id = r.id LIMIT $1
        ) AS s
        LIMIT $1
    ) AS looked_at
    GROUP BY is_branch, agent_name, status
"""
_GATES: Final = """
    SELECT count(*) AS gates, coalesce(sum(s.max_parallelism), 0) AS slots,
        coalesce(sum(s.branches_dispatched), 0) AS used,
        coalesce(sum(greatest(s.branches_total - s.branches_passed, 0) + coalesce(s.branches_ready, 0)), 0) AS waiting
    FROM (SELECT run_id, block_id FROM gates LIMIT $1) AS g
    JOIN step_executions AS s ON s.run_id = g.run_id AND s.step_id = g.block_id
    WHERE s.status = 'RUNNING'
"""
_OUTBOX: Final = """
    SELECT count(*) AS messages, count(*) FILTER (WHERE due_at <= now()) AS due,
        count(returned_at) AS unroutable,
        coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 AS oldest_seconds
    FROM (SELECT created_at, due_at, returned_at FROM outbox LIMIT $1) AS unsent
"""
_DEAD_LETTERS: Final = """
    SELECT code, count(*) AS number FROM (SELECT code FROM dead_letters ORDER BY id DESC LIMIT $1) AS newest
    GROUP BY code
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateTotals:
    """All limited blocks that run, together."""

    gates: int
    slots: int
    used: int
    waiting: int  # branches that wait for a slot


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxTotals:
    """Messages that are not sent, or not known to be."""

    messages: int
    due: int  # their writer has not sent them in its time; a sweep should
    unroutable: int  # no queue takes them
    oldest_seconds: float  # 0: there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """What there was at one moment, give or take the milliseconds between the counts."""

    runs: Mapping[RunStatus, int]
    branches: Mapping[StepStatus, int]
    attempts: Mapping[tuple[str, StepStatus], int]  # by agent
    gates: GateTotals
    outbox: OutboxTotals
    dead_letters: Mapping[str, int]  # by code
    complete: bool  # whether no count was stopped by its limit


async def take_census(database: Database, *, most_rows: int = MOST_ROWS) -> Census:
    """Count everything, on one connection; raises what the driver does where that takes too long."""
    async with database.connection() as connection, connection.transaction(readonly=True):
        await connection.execute(f"SET LOCAL statement_timeout = '{TIMEOUT_SECONDS:g}s'")
        return await _count(connection, most_rows)


async def _count(connection: Connection, most_rows: int) -> Census:
    runs = await connection.fetch(_RUNS, most_rows)
    steps = await connection.fetch(_STEPS, most_rows)
    [gates] = await connection.fetch(_GATES, most_rows)
    [outbox] = await connection.fetch(_OUTBOX, most_rows)
    letters = await connection.fetch(_DEAD_LETTERS, MOST_LETTERS)
    seen = [*(row["number"] for row in runs), _total(steps), gates["gates"], outbox["messages"]]
    return Census(
        runs={status: _number(runs, status) for status in _OPEN_RUNS},
        branches=_branches(steps),
        attempts=_attempts(steps),
        gates=GateTotals(**{name: int(value) for name, value in gates.items()}),
        outbox=OutboxTotals(**dict(outbox)),
        dead_letters={row["code"]: row["number"] for row in letters},
        complete=max(seen, default=0) < most_rows and _total(letters) < MOST_LETTERS,
    )


def _total(rows: Iterable[Row]) -> int:
    return sum(row["number"] for row in rows)


def _number(rows: Iterable[Row], status: RunStatus) -> int:
    return next((row["number"] for row in rows if row["status"] == status), 0)


def _branches(rows: Iterable[Row]) -> dict[StepStatus, int]:
    found: Counter[str] = Counter()
    for row in rows:
        if row["is_branch"]:
            found[row["status"]] += row["number"]
    return {status: found[status] for status in _OPEN_STEPS}


def _attempts(rows: Iterable[Row]) -> dict[tuple[str, StepStatus], int]:
    found: Counter[tuple[str, StepStatus]] = Counter()
    for row in rows:
        if row["agent_name"] is not None and row["status"] in _OPEN_STEPS:
            found[row["agent_name"], StepStatus(row["status"])] += row["number"]
    return dict(found)
