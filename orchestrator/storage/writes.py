"""What a transaction writes: set-based statements that take whole columns, one for each kind of change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import TextClause, text

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
    "branches_failed": "integer", "branches_dispatched": "integer", "created_at": "timestamptz",
    "queued_at": "timestamptz", "started_at": "timestamptz", "heartbeat_at": "timestamptz",
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
        "branches_failed", "branches_dispatched", "queued_at", "started_at", "heartbeat_at", "finished_at", "due_at",
    )
}  # fmt: skip
_OUTBOX_TYPES: Final = {
    "message_id": "uuid", "run_id": "uuid", "step_id": "text", "task_id": "uuid", "exchange": "text",
    "routing_key": "text", "type": "text", "correlation_id": "text", "body": "bytea",
}  # fmt: skip


def _source(types: dict[str, str]) -> str:
    # Arrays of json cannot be sent through the driver's json codec; text can, and is cast row by row.
    arrays = ", ".join(f"CAST(:{name} AS {_array_type(kind)}[])" for name, kind in types.items())
    return f"unnest({arrays}) AS n({', '.join(types)})"


def _array_type(kind: str) -> str:
    return "text" if kind in {"json", "jsonb"} else kind


def _value(name: str, kind: str) -> str:
    return f"CAST(n.{name} AS {kind})" if kind in {"json", "jsonb"} else f"n.{name}"


def _insert(table: str, types: dict[str, str]) -> TextClause:
    values = ", ".join(_value(name, kind) for name, kind in types.items())
    return text(f"INSERT INTO {table} ({', '.join(types)}) SELECT {values} FROM {_source(types)}")  # noqa: S608


def _update(table: str, types: dict[str, str], keys: Sequence[str], kept_when_null: Sequence[str]) -> TextClause:
    sets = ", ".join(
        f"{name} = COALESCE({_value(name, kind)}, t.{name})" if name in kept_when_null else f"{name} = n.{name}"
        for name, kind in types.items()
        if name not in keys
    )
    match = " AND ".join(f"t.{key} = n.{key}" for key in keys)
    return text(f"UPDATE {table} AS t SET {sets} FROM {_source(types)} WHERE {match}")  # noqa: S608


INSERT_RUNS: Final = _insert("runs", _RUN_TYPES)
INSERT_STEPS: Final = _insert("step_executions", _STEP_TYPES)
# Output and error are known only to the record of a row that ends now; elsewhere null means "as it was".
UPDATE_RUNS: Final = _update("runs", _RUN_CHANGES, ("id",), ("output", "error"))
UPDATE_STEPS: Final = _update("step_executions", _STEP_CHANGES, ("run_id", "step_id"), ("output", "error"))
INSERT_OUTBOX: Final = text(
    f"INSERT INTO outbox ({', '.join(_OUTBOX_TYPES)}, due_at) "  # noqa: S608
    f"SELECT {', '.join(f'n.{name}' for name in _OUTBOX_TYPES)}, now() + make_interval(secs => n.delay) "
    f"FROM {_source({**_OUTBOX_TYPES, 'delay': 'double precision'})}"
)
INSERT_GATES: Final = text("""
    INSERT INTO gates (run_id, block_id, max_parallelism, holder, lease_until)
    SELECT n.run_id, n.block_id, n.max_parallelism, :holder, now() + make_interval(secs => :lease)
    FROM unnest(CAST(:run_id AS uuid[]), CAST(:block_id AS text[]), CAST(:max_parallelism AS integer[]))
        AS n(run_id, block_id, max_parallelism)
""")
# The join. The outputs never leave the database: they are put together here, in the order of the definition.
JOIN_BLOCKS: Final = text("""
    UPDATE step_executions AS block SET output = (
        SELECT CAST(COALESCE('{' || string_agg(
            CAST(to_json(branch.step_id) AS text) || ':' || CAST(branch.output AS text), ',' ORDER BY branch.position
        ) || '}', '{}') AS json)
        FROM step_executions AS branch
        WHERE branch.run_id = block.run_id AND branch.parent_step_id = block.step_id AND branch.status = 'COMPLETED'
    )
    FROM unnest(CAST(:runs AS uuid[]), CAST(:blocks AS text[])) AS k(run_id, block_id)
    WHERE block.run_id = k.run_id AND block.step_id = k.block_id
""")
CANCEL_OPEN_STEPS: Final = text("""
    UPDATE step_executions SET status = 'CANCELLED', finished_at = :now, due_at = NULL
    WHERE run_id = :run_id AND status IN ('PENDING', 'QUEUED', 'RUNNING')
    RETURNING step_id, parent_step_id, branch_name, attempt
""")


def step_columns(steps: Sequence[StepExecution]) -> dict[str, list[Any]]:
    """Return the parameters of INSERT_STEPS and UPDATE_STEPS."""
    return {
        **{name: [getattr(step, name) for step in steps] for name in _PLAIN_STEP_COLUMNS},
        "input": [_json(step.input) if step.branches is None else None for step in steps],
        "output": [_output(step) for step in steps],
        "error": [_json_or_null(step.error) for step in steps],
        "max_parallelism": [step.branches and step.branches.max_parallelism for step in steps],
        "branches_total": [step.branches and step.branches.total for step in steps],
        "branches_open": [step.branches and step.branches.open for step in steps],
        "branches_failed": [step.branches and step.branches.failed for step in steps],
        "branches_dispatched": [step.branches and step.branches.dispatched for step in steps],
    }


def step_changes(steps: Sequence[StepExecution]) -> dict[str, list[Any]]:
    """Return the parameters of UPDATE_STEPS."""
    columns = {name: [getattr(step, name) for step in steps] for name in _PLAIN_STEP_CHANGES}
    return {
        **columns,
        "output": [_output(step) for step in steps],
        "error": [_json_or_null(step.error) for step in steps],
        "branches_open": [step.branches and step.branches.open for step in steps],
        "branches_failed": [step.branches and step.branches.failed for step in steps],
        "branches_dispatched": [step.branches and step.branches.dispatched for step in steps],
    }


def new_run_columns(runs: Sequence[tuple[Run, RunRequested]]) -> dict[str, list[Any]]:
    """Return the parameters of INSERT_RUNS."""
    return {
        "id": [run.id for run, _ in runs],
        "workflow_id": [request.workflow_id for _, request in runs],
        "workflow_version": [request.workflow_version for _, request in runs],
        "definition_id": [run.definition_id for run, _ in runs],
        "status": [run.status for run, _ in runs],
        "input": [_json(request.input) for _, request in runs],
        "labels": [_json(request.labels) for _, request in runs],
        "request_digest": [run.request_digest for run, _ in runs],
        "reply_to": [run.reply.queue if run.reply else None for run, _ in runs],
        "correlation_id": [run.reply.correlation_id if run.reply else None for run, _ in runs],
        "created_at": [run.started_at for run, _ in runs],
        "started_at": [run.started_at for run, _ in runs],
    }


def run_changes(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Return the parameters of UPDATE_RUNS."""
    return {
        "id": [run.id for run in runs],
        "status": [run.status for run in runs],
        "output": [_json(run.output) if run.status is RunStatus.COMPLETED else None for run in runs],
        "error": [_json_or_null(run.error) for run in runs],
        "reply_to": [run.reply.queue if run.reply else None for run in runs],
        "correlation_id": [run.reply.correlation_id if run.reply else None for run in runs],
        "finished_at": [run.finished_at for run in runs],
    }


def outbox_columns(rows: Sequence[OutboxRow], delays: Sequence[float]) -> dict[str, list[Any]]:
    """Return the parameters of INSERT_OUTBOX; *delays* are the seconds for which a sweeper leaves each row alone."""
    return {**{name: [getattr(row, name) for row in rows] for name in _OUTBOX_TYPES}, "delay": list(delays)}


def _json(value: Any) -> str:
    return dump_json(value)


def _json_or_null(value: Any) -> str | None:
    return dump_json(value) if value is not None else None


def _output(step: StepExecution) -> str | None:
    # A block's output is put together in the database; an agent that returned null has an output, and it is null.
    return _json(step.output) if step.status is StepStatus.COMPLETED and step.branches is None else None


_COMPUTED: Final = frozenset({
    "input", "output", "error", "max_parallelism", "branches_total", "branches_open", "branches_failed",
    "branches_dispatched",
})  # fmt: skip
_PLAIN_STEP_COLUMNS: Final = tuple(name for name in _STEP_TYPES if name not in _COMPUTED)
_PLAIN_STEP_CHANGES: Final = tuple(name for name in _STEP_CHANGES if name not in _COMPUTED)
