"""What a transaction writes: set-based statements that take whole columns, one for each kind of change."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from orchestrator.engine.inputs import RunRequested
from orchestrator.engine.records import Run, StepExecution
from schemas.codec import dump_json
from schemas.statuses import RunStatus, StepStatus


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A message to send, with what it is about."""

    message_id: UUID
    run_id: UUID
    step_id: str | None
    task_id: UUID | None
    exchange: str
    routing_key: str
    type: str
    correlation_id: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class GateRow:
    """A limited block's gate."""

    run_id: UUID
    block_id: str
    max_parallelism: int


_STEP_TYPES: Final = {
    "run_id": "uuid", "step_id": "text", "parent_step_id": "text", "branch_name": "text", "join_policy": "text",
    "position": "integer", "status": "text", "agent_name": "text", "attempt": "integer", "task_id": "uuid",
    "worker_id": "text", "input": "json", "output": "json", "error": "json", "timeout_seconds": "double precision",
    "max_parallelism": "integer", "branches_total": "integer", "branches_open": "integer",
    "branches_failed": "integer", "branches_dispatched": "integer", "branches_passed": "integer",
    "created_at": "timestamptz", "queued_at": "timestamptz", "started_at": "timestamptz", "heartbeat_at": "timestamptz",
    "finished_at": "timestamptz", "due_at": "timestamptz",
}  # fmt: skip
_RUN_TYPES: Final = {
    "id": "uuid", "workflow_id": "text", "workflow_version": "text", "definition_id": "text", "status": "text",
    "input": "json", "labels": "jsonb", "request_digest": "text", "reply_to": "text", "correlation_id": "text",
    "created_at": "timestamptz", "started_at": "timestamptz",
}  # fmt: skip
_RUN_CHANGES: Final = {
    "id": "uuid", "status": "text", "output": "json", "error": "json", "reply_to": "text", "correlation_id": "text",
    "finished_at": "timestamptz",
}  # fmt: skip
_STEP_CHANGES: Final = {
    name: _STEP_TYPES[name]
    for name in (
        "run_id", "step_id", "status", "attempt", "task_id", "worker_id", "output", "error", "branches_open",
        "branches_failed", "branches_dispatched", "branches_passed", "queued_at", "started_at", "heartbeat_at",
        "finished_at", "due_at",
    )
}  # fmt: skip
_OUTBOX_TYPES: Final = {
    "message_id": "uuid", "run_id": "uuid", "step_id": "text", "task_id": "uuid", "exchange": "text",
    "routing_key": "text", "type": "text", "correlation_id": "text", "body": "bytea",
}  # fmt: skip


def _source(types: dict[str, str], first: int = 1) -> str:
    # JSON goes as text, and is cast row by row.
    arrays = ", ".join(f"${number}::{_array_type(kind)}[]" for number, kind in enumerate(types.values(), first))
    return f"unnest({arrays}) AS n({', '.join(types)})"


def _array_type(kind: str) -> str:
    return "text" if kind in {"json", "jsonb"} else kind


def _value(name: str, kind: str) -> str:
    return f"n.{name}::{kind}" if kind in {"json", "jsonb"} else f"n.{name}"


def _insert(table: str, types: dict[str, str]) -> str:
    values = ", ".join(_value(name, kind) for name, kind in types.items())
    return f"INSERT INTO {table} ({', '.join(types)}) SELECT {values} FROM {_source(types)}"  # noqa: S608


def _update(table: str, types: dict[str, str], keys: Sequence[str], kept_when_null: Sequence[str]) -> str:
    sets = ", ".join(
        f"{name} = COALESCE({_value(name, kind)}, t.{name})" if name in kept_when_null else f"{name} = n.{name}"
        for name, kind in types.items()
        if name not in keys
    )
    match = " AND ".join(f"t.{key} = n.{key}" for key in keys)
    return f"UPDATE {table} AS t SET {sets} FROM {_source(types)} WHERE {match}"  # noqa: S608


def _insert_outbox(first: int = 1) -> str:
    return (
        f"INSERT INTO outbox ({', '.join(_OUTBOX_TYPES)}, due_at) "  # noqa: S608
        f"SELECT {', '.join(f'n.{name}' for name in _OUTBOX_TYPES)}, now() + make_interval(secs => n.delay) "
        f"FROM {_source({**_OUTBOX_TYPES, 'delay': 'double precision'}, first)}"
    )


INSERT_RUNS: Final = _insert("runs", _RUN_TYPES)
INSERT_STEPS: Final = _insert("step_executions", _STEP_TYPES)
# Output and error are known only to the record of a row that ends now; elsewhere null means "as it was".
UPDATE_RUNS: Final = _update("runs", _RUN_CHANGES, ("id",), ("output", "error"))
UPDATE_STEPS: Final = _update("step_executions", _STEP_CHANGES, ("run_id", "step_id"), ("output", "error"))
INSERT_OUTBOX: Final = _insert_outbox()
# What nearly every batch of results writes, in one round trip.
UPDATE_STEPS_AND_INSERT_OUTBOX: Final = f"WITH changed AS ({UPDATE_STEPS}) {_insert_outbox(len(_STEP_CHANGES) + 1)}"
INSERT_GATES: Final = """
    INSERT INTO gates (run_id, block_id, max_parallelism, holder, lease_until)
    SELECT n.run_id, n.block_id, n.max_parallelism, $4, now() + make_interval(secs => $5)
    FROM unnest($1::uuid[], $2::text[], $3::integer[]) AS n(run_id, block_id, max_parallelism)
"""
# The join. The outputs never leave the database: they are put together here, in the order of the definition.
JOIN_BLOCKS: Final = """
    UPDATE step_executions AS block SET output = (
        SELECT COALESCE('{' || string_agg(
            to_json(branch.step_id)::text || ':' || branch.output::text, ',' ORDER BY branch.position
        ) || '}', '{}')::json
        FROM step_executions AS branch
        WHERE branch.run_id = block.run_id AND branch.parent_step_id = block.step_id AND branch.status = 'COMPLETED'
    )
    FROM unnest($1::uuid[], $2::text[]) AS k(run_id, block_id)
    WHERE block.run_id = k.run_id AND block.step_id = k.block_id
"""
CANCEL_OPEN_STEPS: Final = """
    UPDATE step_executions SET status = 'CANCELLED', finished_at = $2, due_at = NULL,
        branches_open = branches_open * 0, branches_dispatched = branches_dispatched * 0  -- null where it is no block
    WHERE run_id = $1 AND status IN ('PENDING', 'QUEUED', 'RUNNING')
    RETURNING step_id, parent_step_id, branch_name, attempt
"""


Arguments = list[list[Any]]  # a column for each parameter, in the order of the statement


def step_inserts(steps: Sequence[StepExecution]) -> Arguments:
    """Return the arguments of INSERT_STEPS."""
    return _columns(_STEP_TYPES, steps)


def step_updates(steps: Sequence[StepExecution]) -> Arguments:
    """Return the arguments of UPDATE_STEPS."""
    return _columns(_STEP_CHANGES, steps)


def run_inserts(runs: Sequence[tuple[Run, RunRequested]]) -> Arguments:
    """Return the arguments of INSERT_RUNS."""
    rows = (
        (
            run.id,
            request.workflow_id,
            request.workflow_version,
            run.definition_id,
            run.status,
            dump_json(request.input),
            dump_json(request.labels),
            run.request_digest,
            run.reply.queue if run.reply else None,
            run.reply.correlation_id if run.reply else None,
            run.started_at,
            run.started_at,
        )
        for run, request in runs
    )
    return _transposed(rows)


def run_updates(runs: Sequence[Run]) -> Arguments:
    """Return the arguments of UPDATE_RUNS."""
    rows = (
        (
            run.id,
            run.status,
            dump_json(run.output) if run.status is RunStatus.COMPLETED else None,
            dump_json(run.error) if run.error is not None else None,
            run.reply.queue if run.reply else None,
            run.reply.correlation_id if run.reply else None,
            run.finished_at,
        )
        for run in runs
    )
    return _transposed(rows)


def outbox_inserts(rows: Sequence[OutboxRow], delays: Sequence[float]) -> Arguments:
    """Return the arguments of INSERT_OUTBOX; *delays* are the seconds for which a sweeper leaves each row alone."""
    return [*([getattr(row, name) for row in rows] for name in _OUTBOX_TYPES), list(delays)]


def _columns(types: dict[str, str], steps: Sequence[StepExecution]) -> Arguments:
    return [[_column(step, name) for step in steps] for name in types]


def _column(step: StepExecution, name: str) -> Any:
    counter = _COUNTERS.get(name)
    if counter is not None:
        return getattr(step.branches, counter) if step.branches is not None else None
    match name:
        case "input":
            return dump_json(step.input) if step.branches is None else None
        case "output":
            return _output(step)
        case "error":
            return dump_json(step.error) if step.error is not None else None
        case _:
            return getattr(step, name)


def _output(step: StepExecution) -> str | None:
    # A block's output is put together in the database; an agent that returned null has an output, and it is null.
    return dump_json(step.output) if step.status is StepStatus.COMPLETED and step.branches is None else None


def _transposed(rows: Iterable[tuple[Any, ...]]) -> Arguments:
    return [list(column) for column in zip(*rows, strict=True)]


_COUNTERS: Final = {
    "max_parallelism": "max_parallelism",
    "branches_total": "total",
    "branches_open": "open",
    "branches_failed": "failed",
    "branches_dispatched": "dispatched",
    "branches_passed": "passed",
}
