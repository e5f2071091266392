"""A run that takes over what an earlier one has done: its rows are copied inside the database, however many there are.

What is copied how was decided in `engine/retried`, which says why. A branch of a block is where its last row is, those
apart that were skipped: the next step of a branch gets its row in the transaction in which the one before it completes.
"""

from datetime import datetime
from typing import Final
from uuid import UUID

from orchestrator.engine.decision import TakeOver
from orchestrator.engine.records import Run
from orchestrator.engine.retried import WITHOUT_INPUT
from orchestrator.storage.database import Connection

_TAKE_OVER_RUN: Final = """
    INSERT INTO runs (id, status, definition_id, request_digest, reply_to, correlation_id, created_at, started_at,
        due_at, traceparent, retry_of, workflow_id, workflow_version, input, labels)
    SELECT $1, $2, $3, $4, $5, $6, $7, $7, $8, $10, id, workflow_id, workflow_version, input, labels
    FROM runs WHERE id = $9
"""

# A step that is done again loses what it came to, and what it took; but where it has no input, its error says why. A
# block keeps the number of its branches; it has been forked if any of them has a row.
_NULL_AGAIN: Final = (
    "worker_id", "output", "queued_at", "started_at", "heartbeat_at", "finished_at", "branch_due_at",
)  # fmt: skip
_ZERO_AGAIN: Final = ("attempt", "postponed", "branches_failed", "branches_dispatched", "branches_ready")
_AS_IT_IS: Final = (
    "step_id", "parent_step_id", "branch_name", "join_policy", "position", "ordinal", "agent_name", "sub_workflow_id",
    "sub_workflow_version", "input",
    "timeout_seconds", "queue_timeout_seconds", "heartbeat_timeout_seconds", "branch_timeout_seconds",
    "max_parallelism", "branches_total",
)  # fmt: skip
_COPIED: Final = {
    "run_id": "$1",
    **{name: name for name in _AS_IT_IS},
    **{name: f"CASE WHEN NOT again THEN {name} END" for name in _NULL_AGAIN},
    **{name: f"CASE WHEN again THEN {name} * 0 ELSE {name} END" for name in _ZERO_AGAIN},  # null where it is no block
    "status": "CASE WHEN again THEN 'PENDING' ELSE status END",
    "error": "CASE WHEN NOT again OR (has_attempts AND error ->> 'code' = ANY($5::text[])) THEN error END",
    "created_at": "CASE WHEN again THEN $4 ELSE created_at END",
    "branches_open": "CASE WHEN again THEN COALESCE(open, branches_total) ELSE branches_open END",
    "branches_passed": """CASE
        WHEN NOT again THEN branches_passed WHEN open IS NULL THEN branches_total * 0 ELSE branches_total
    END""",
}
_TAKE_OVER_STEPS: Final = f"""
    WITH RECURSIVE source AS (
        SELECT *, status IN ('FAILED', 'CANCELLED') AS unfinished FROM step_executions WHERE run_id = $2
    ), entered_again AS (
        SELECT step_id AS block_id FROM source WHERE step_id = $3 AND branches_total IS NOT NULL
        UNION ALL
        SELECT s.step_id FROM entered_again AS around JOIN source AS s ON s.parent_step_id = around.block_id
        WHERE s.branches_total IS NOT NULL AND s.unfinished
    ), counted AS (
        SELECT block_id, count(*) FILTER (WHERE unfinished) AS open
        FROM (
            SELECT DISTINCT ON (block_id, position) block_id, unfinished
            FROM entered_again JOIN source ON parent_step_id = block_id
            WHERE status <> 'SKIPPED'
            ORDER BY block_id, position, ordinal DESC
        ) AS branch
        GROUP BY block_id
    )
    INSERT INTO step_executions ({", ".join(_COPIED)})
    SELECT {", ".join(_COPIED.values())}
    FROM (
        SELECT source.*, open, agent_name IS NOT NULL OR sub_workflow_id IS NOT NULL AS has_attempts,
            step_id = $3 OR (unfinished AND around.block_id IS NOT NULL) AS again
        FROM source
        LEFT JOIN entered_again AS around ON around.block_id = parent_step_id
        LEFT JOIN counted ON counted.block_id = step_id
        WHERE step_id <> $3 OR branches_total IS NOT NULL
    ) AS taken
"""  # noqa: S608 - only our own column lists are put in

_TAKE_OVER_ITEMS: Final = """
    INSERT INTO loop_items (run_id, loop_id, position, item)
    SELECT $1, loop_id, position, item FROM loop_items WHERE run_id = $2
"""

# In their order, though many are due at once.
_WAKE_BRANCHES: Final = """
    UPDATE step_executions SET due_at = $3::timestamptz + position * interval '1 microsecond'
    WHERE run_id = $1 AND parent_step_id = $2 AND status = 'PENDING'
"""


async def take_over(connection: Connection, run: Run, what: TakeOver) -> None:
    """Insert *run*, with the content of an earlier one that has ended, and what that has done."""
    await connection.execute(
        _TAKE_OVER_RUN,
        run.id,
        run.status,
        run.definition_id,
        run.request_digest,
        run.reply.queue if run.reply else None,
        run.reply.correlation_id if run.reply else None,
        run.started_at,
        run.due_at,
        what.run_id,
        run.traceparent,
    )
    await connection.execute(
        _TAKE_OVER_STEPS, run.id, what.run_id, what.stopped_at, run.started_at, sorted(WITHOUT_INPUT)
    )
    await connection.execute(_TAKE_OVER_ITEMS, run.id, what.run_id)


async def wake_branches(connection: Connection, run_id: UUID, block_id: str, now: datetime) -> None:
    """Let the branches of a block that wait be due, one after the other, a microsecond apart."""
    await connection.execute(_WAKE_BRANCHES, run_id, block_id, now)
