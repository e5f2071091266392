"""What a transaction writes: set-based statements that take whole columns, one for each kind of change."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from datetime import datetime
from enum import Enum, auto
from functools import cache, partial
from itertools import chain
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

from orchestrator.engine.decision import EndedAttempt, Join, JoinForm
from orchestrator.engine.inputs import RunRequested
from orchestrator.engine.records import Run, StepExecution
from orchestrator.storage.changes import Changes, OutboxRow
from orchestrator.storage.database import Connection
from schemas.codec import dump_json
from schemas.statuses import RunStatus, StepStatus


@dataclass(frozen=True, slots=True)
class CancelledStep:
    """A step that a cancelled run took with it, or a block that did not wait for it."""

    step_id: str
    parent_step_id: str | None
    branch_name: str | None
    attempt: int
    child_run_id: UUID | None = None  # the run that carried it out
    # What its spans tell besides; this makes it no other.
    branches_total: int | None = field(default=None, compare=False)  # of a block
    branches_failed: int | None = field(default=None, compare=False)
    agent_name: str | None = field(default=None, compare=False)
    sub_workflow_id: str | None = field(default=None, compare=False)
    task_id: UUID | None = field(default=None, compare=False)
    worker_id: str | None = field(default=None, compare=False)
    created_at: datetime | None = field(default=None, compare=False)
    queued_at: datetime | None = field(default=None, compare=False)


GATE_LEASE_SECONDS: Final = 5.0

_STEP_TYPES: Final = {
    "run_id": "uuid", "step_id": "text", "parent_step_id": "text", "branch_name": "text", "join_policy": "text",
    "position": "integer", "ordinal": "integer", "status": "text", "agent_name": "text", "attempt": "integer",
    "task_id": "uuid", "worker_id": "text", "input": "json", "output": "json", "error": "json",
    "timeout_seconds": "double precision", "queue_timeout_seconds": "double precision",
    "heartbeat_timeout_seconds": "double precision", "max_parallelism": "integer", "branches_total": "integer",
    "branches_open": "integer", "branches_failed": "integer", "branches_dispatched": "integer",
    "branches_passed": "integer",
    "created_at": "timestamptz", "queued_at": "timestamptz", "started_at": "timestamptz", "heartbeat_at": "timestamptz",
    "finished_at": "timestamptz", "due_at": "timestamptz", "branch_timeout_seconds": "double precision",
    "branch_due_at": "timestamptz", "sub_workflow_id": "text", "sub_workflow_version": "text",
}  # fmt: skip
# Of these a new row has the defaults.
_RETRY_TYPES: Final = {"ready_at": "timestamptz", "postponed": "integer", "branches_ready": "integer"}
_ENDED_TYPES: Final = {
    "run_id": "uuid", "step_id": "text", "attempt": "integer", "task_id": "uuid", "worker_id": "text", "error": "json",
    "queued_at": "timestamptz", "started_at": "timestamptz", "finished_at": "timestamptz", "retry_at": "timestamptz",
}  # fmt: skip
_RUN_TYPES: Final = {
    "id": "uuid", "workflow_id": "text", "workflow_version": "text", "definition_id": "text", "status": "text",
    "input": "json", "labels": "jsonb", "request_digest": "text", "reply_to": "text", "correlation_id": "text",
    "created_at": "timestamptz", "started_at": "timestamptz", "due_at": "timestamptz", "parent_run_id": "uuid",
    "parent_step_id": "text", "ancestors": "json", "traceparent": "text",
}  # fmt: skip
_RUN_CHANGES: Final = {
    "id": "uuid", "status": "text", "output": "json", "error": "json", "reply_to": "text", "correlation_id": "text",
    "finished_at": "timestamptz", "due_at": "timestamptz",
}  # fmt: skip
_STEP_CHANGES: Final = _RETRY_TYPES | {
    name: _STEP_TYPES[name]
    for name in (
        "run_id", "step_id", "status", "attempt", "task_id", "worker_id", "output", "error", "branches_total",
        "branches_open", "branches_failed", "branches_dispatched", "branches_passed", "queued_at", "started_at",
        "heartbeat_at", "finished_at", "due_at", "branch_due_at",
    )
}  # fmt: skip
_OUTBOX_TYPES: Final = {
    "message_id": "uuid", "run_id": "uuid", "step_id": "text", "task_id": "uuid", "exchange": "text",
    "routing_key": "text", "type": "text", "correlation_id": "text", "body": "bytea",
    "traceparent": "text",
}  # fmt: skip


_ITEM_TYPES: Final = {"run_id": "uuid", "loop_id": "text", "position": "integer", "item": "json"}
_GATE_TYPES: Final = {"run_id": "uuid", "block_id": "text", "max_parallelism": "integer", "holder": "text"}


def _source(types: Mapping[str, str], first: int) -> str:
    # JSON goes as text, and is cast row by row.
    arrays = ", ".join(f"${number}::{_array_type(kind)}[]" for number, kind in enumerate(types.values(), first))
    return f"unnest({arrays}) AS n({', '.join(types)})"


def _array_type(kind: str) -> str:
    return "text" if kind in {"json", "jsonb"} else kind


def _value(name: str, kind: str) -> str:
    return f"n.{name}::{kind}" if kind in {"json", "jsonb"} else f"n.{name}"


def _insert(table: str, types: Mapping[str, str], first: int) -> str:
    values = ", ".join(_value(name, kind) for name, kind in types.items())
    return f"INSERT INTO {table} ({', '.join(types)}) SELECT {values} FROM {_source(types, first)}"  # noqa: S608


def _update(table: str, types: Mapping[str, str], keys: Sequence[str], first: int) -> str:
    # Output and error are known only to the record of a row that ends now; elsewhere null means "as it was".
    sets = ", ".join(
        f"{name} = COALESCE({_value(name, kind)}, t.{name})" if name in {"output", "error"} else f"{name} = n.{name}"
        for name, kind in types.items()
        if name not in keys
    )
    match = " AND ".join(f"t.{key} = n.{key}" for key in keys)
    return f"UPDATE {table} AS t SET {sets} FROM {_source(types, first)} WHERE {match}"  # noqa: S608


def _insert_outbox(first: int) -> str:
    return (
        f"INSERT INTO outbox ({', '.join(_OUTBOX_TYPES)}, due_at) "  # noqa: S608
        f"SELECT {', '.join(f'n.{name}' for name in _OUTBOX_TYPES)}, now() + make_interval(secs => n.delay) "
        f"FROM {_source({**_OUTBOX_TYPES, 'delay': 'double precision'}, first)}"
    )


def _insert_held(first: int) -> str:
    values = ", ".join(f"n.{name}" for name in _OUTBOX_TYPES)
    return (
        f"INSERT INTO outbox ({', '.join(_OUTBOX_TYPES)}, due_at, held_at) "  # noqa: S608
        f"SELECT {values}, 'infinity', now() + make_interval(secs => n.place) "
        f"FROM {_source({**_OUTBOX_TYPES, 'place': 'double precision'}, first)}"
    )


def _insert_gates(first: int) -> str:
    return (
        f"INSERT INTO gates ({', '.join(_GATE_TYPES)}, lease_until) "  # noqa: S608
        f"SELECT n.*, now() + make_interval(secs => {GATE_LEASE_SECONDS}) FROM {_source(_GATE_TYPES, first)}"
    )


class _Kind(Enum):
    """A kind of change."""

    NEW_RUNS = auto()
    NEW_STEPS = auto()
    CHANGED_RUNS = auto()
    CHANGED_STEPS = auto()
    ENDED_ATTEMPTS = auto()
    GATES = auto()
    ITEMS = auto()
    OUTBOX = auto()
    HELD = auto()


# The statement that writes a kind of change, given the number of its first parameter.
_WRITE: Final[Mapping[_Kind, Callable[[int], str]]] = {
    _Kind.NEW_RUNS: partial(_insert, "runs", _RUN_TYPES),
    _Kind.NEW_STEPS: partial(_insert, "step_executions", _STEP_TYPES),
    _Kind.CHANGED_RUNS: partial(_update, "runs", _RUN_CHANGES, ("id",)),
    _Kind.CHANGED_STEPS: partial(_update, "step_executions", _STEP_CHANGES, ("run_id", "step_id")),
    _Kind.ENDED_ATTEMPTS: partial(_insert, "step_attempts", _ENDED_TYPES),
    _Kind.GATES: _insert_gates,
    _Kind.ITEMS: partial(_insert, "loop_items", _ITEM_TYPES),
    _Kind.OUTBOX: _insert_outbox,
    _Kind.HELD: _insert_held,
}
# The join. The outputs never leave the database: they are put together here, in the order of the definition. The last
# step of a branch that has run tells what it came to.
_BRANCHES: Final = """
    SELECT DISTINCT ON (s.position) s.position, s.branch_name AS name, s.status,
        CASE WHEN s.status = 'FAILED' THEN s.error::text END AS error,
        CASE WHEN s.status = 'COMPLETED' THEN s.output::text END AS output
    FROM step_executions AS s
    WHERE s.run_id = block.run_id AND s.parent_step_id = block.step_id AND s.status <> 'SKIPPED'
    ORDER BY s.position, s.ordinal DESC
"""
_JOIN_BLOCKS: Final = f"""
    UPDATE step_executions AS block SET output = (
        SELECT COALESCE('{{' || string_agg(
            to_json(branch.name)::text || ':' || COALESCE(branch.output, 'null'), ',' ORDER BY branch.position
        ) FILTER (WHERE k.shows_failed OR branch.output IS NOT NULL) || '}}', '{{}}')::json
        FROM ({_BRANCHES}) AS branch
    )
    FROM unnest($1::uuid[], $2::text[], $3::boolean[]) AS k(run_id, block_id, shows_failed)
    WHERE block.run_id = k.run_id AND block.step_id = k.block_id
"""  # noqa: S608
_JOIN_LOOPS: Final = f"""
    UPDATE step_executions AS block SET output = (
        SELECT ('{{"iterations":[' || COALESCE(string_agg(
            '{{"index":' || branch.position || ',"status":"' || branch.status || '","output":'
                || COALESCE(branch.output, 'null') || ',"error":' || COALESCE(branch.error, 'null') || '}}',
            ',' ORDER BY branch.position
        ), '') || '],"total_count":' || block.branches_total
            || ',"completed_count":' || count(*) FILTER (WHERE branch.status = 'COMPLETED')
            || ',"failed_count":' || count(*) FILTER (WHERE branch.status = 'FAILED') || '}}')::json
        FROM ({_BRANCHES}) AS branch
    )
    FROM unnest($1::uuid[], $2::text[]) AS k(run_id, block_id)
    WHERE block.run_id = k.run_id AND block.step_id = k.block_id
"""  # noqa: S608
# Tasks that their agents' limits hold back go with their steps; of the others workers are told. NOT IN, for that is
# hashed whatever the planner believes, and there may be thousands of either.
_CANCEL_OPEN_STEPS: Final = """
    WITH RECURSIVE blocks AS (
        SELECT $3::text AS block_id
        UNION ALL
        SELECT s.step_id FROM blocks JOIN step_executions AS s ON s.run_id = $1 AND s.parent_step_id = blocks.block_id
        WHERE s.branches_total IS NOT NULL
    ), cancelled AS (
        UPDATE step_executions SET status = 'CANCELLED', finished_at = $2, due_at = NULL, ready_at = NULL,
            branches_open = branches_open * 0, branches_dispatched = branches_dispatched * 0,
            branches_ready = branches_ready * 0  -- null where it is no block
        WHERE run_id = $1 AND status IN ('PENDING', 'QUEUED', 'RUNNING')
            AND ($3 IS NULL OR parent_step_id IN (SELECT block_id FROM blocks))
        RETURNING step_id, parent_step_id, branch_name, attempt, task_id, sub_workflow_id, branches_total,
            branches_failed, agent_name, created_at, queued_at, worker_id
    ), dropped AS (
        DELETE FROM outbox WHERE run_id = $1 AND held_at IS NOT NULL
            AND NOT (task_id NOT IN (SELECT task_id FROM cancelled WHERE task_id IS NOT NULL))
    )
    SELECT step_id, parent_step_id, branch_name, attempt,
        CASE WHEN sub_workflow_id IS NOT NULL THEN task_id END AS child_run_id, branches_total,
        branches_failed, agent_name, sub_workflow_id, task_id, worker_id, created_at, queued_at
    FROM cancelled
"""
_CLOSE_LINE: Final = """
    UPDATE step_executions SET status = 'CANCELLED', finished_at = $4
    WHERE run_id = $1 AND parent_step_id = $2 AND position >= $3 AND status = 'PENDING'
    RETURNING step_id, parent_step_id, branch_name, attempt
"""


Arguments = list[list[Any]]  # a column for each parameter, in the order of the statement


async def write(connection: Connection, changes: Changes) -> None:
    """Write what was collected: in one round trip, and one more for new runs, and two where blocks are joined."""
    if changes.new_runs:
        # First, and in the order of their ids, as locks are taken: two replicas may be given the same requests, and the
        # second must fail at the run. In one statement with the steps, Postgres chooses what comes first.
        new = _run_inserts(changes.new_runs[run_id] for run_id in sorted(changes.new_runs))
        await _execute(connection, {_Kind.NEW_RUNS: new})
    before, after = _before_joins(changes), _after_joins(changes)
    if changes.joins:
        await _execute(connection, before)
        for joins in _inner_first(changes.joins):
            await _put_together(connection, joins)
        await _execute(connection, after)
    else:
        await _execute(connection, {**before, **after})


async def write_nothing(connection: Connection) -> None:
    """Execute the statement with which most transactions end, without a row: its first use is slow."""
    await _execute(connection, {_Kind.CHANGED_STEPS: _columns(_STEP_CHANGES, ()), _Kind.OUTBOX: _outbox_inserts(())})


_Joins = Sequence[tuple[UUID, Join]]


def _inner_first(joins: _Joins) -> Iterator[_Joins]:
    """Yield joins that can be made together: none needs what another one of them puts together."""
    together: list[tuple[UUID, Join]] = []
    needed: set[tuple[UUID, str | None]] = set()
    for run_id, join in joins:
        if (run_id, join.block_id) in needed:
            yield together
            together, needed = [], set()
        together.append((run_id, join))
        needed.add((run_id, join.around))
    yield together


async def _put_together(connection: Connection, joins: _Joins) -> None:
    blocks = [
        (run_id, join.block_id, join.form is JoinForm.ALL)
        for run_id, join in joins
        if join.form is not JoinForm.ITERATIONS
    ]
    loops = [(run_id, join.block_id) for run_id, join in joins if join.form is JoinForm.ITERATIONS]
    if blocks:
        await connection.execute(_JOIN_BLOCKS, *_transposed(blocks))
    if loops:
        await connection.execute(_JOIN_LOOPS, *_transposed(loops))


def _before_joins(changes: Changes) -> dict[_Kind, Arguments]:
    written: dict[_Kind, Arguments] = {}
    if changes.new_steps:
        written[_Kind.NEW_STEPS] = _columns(_STEP_TYPES, changes.new_steps.values())
    if changes.changed_steps:
        written[_Kind.CHANGED_STEPS] = _columns(_STEP_CHANGES, changes.changed_steps.values())
    if changes.ended_attempts:
        written[_Kind.ENDED_ATTEMPTS] = _transposed(map(_ended_attempt, changes.ended_attempts))
    if changes.gates:
        written[_Kind.GATES] = _transposed(map(astuple, changes.gates))
    if changes.items:
        written[_Kind.ITEMS] = _transposed((*item[:3], dump_json(item.item)) for item in changes.items)
    return written


def _after_joins(changes: Changes) -> dict[_Kind, Arguments]:
    written: dict[_Kind, Arguments] = {}
    if changes.changed_runs:
        written[_Kind.CHANGED_RUNS] = _run_updates(changes.changed_runs.values())
    if changes.outbox:
        written[_Kind.OUTBOX] = _outbox_inserts(changes.outbox)
    if changes.held:
        written[_Kind.HELD] = _outbox_inserts(changes.held)
    return written


async def _execute(connection: Connection, written: Mapping[_Kind, Arguments]) -> None:
    if written:
        statement = _statement(tuple((kind, len(arguments)) for kind, arguments in written.items()))
        await connection.execute(statement, *chain.from_iterable(written.values()))


@cache
def _statement(kinds: tuple[tuple[_Kind, int], ...]) -> str:
    """Return one statement that writes several kinds of changes, each with so many parameters."""
    parts = []
    first = 1
    for kind, parameters in kinds:
        parts.append(_WRITE[kind](first))
        first += parameters
    *others, last = parts
    return f"WITH {', '.join(f'w{n} AS ({part})' for n, part in enumerate(others))} {last}" if others else last


async def cancel_open_steps(
    connection: Connection, run_id: UUID, block_id: str | None, now: datetime
) -> Sequence[CancelledStep]:
    """Cancel whatever of the run, or of a block's branches, is not final; return what that was."""
    return [CancelledStep(*row) for row in await connection.fetch(_CANCEL_OPEN_STEPS, run_id, now, block_id)]


async def close_line(
    connection: Connection, run_id: UUID, block_id: str, first: int, now: datetime
) -> Sequence[CancelledStep]:
    """Cancel those who wait at a block's gate, from a position on; return what that was."""
    return [CancelledStep(*row) for row in await connection.fetch(_CLOSE_LINE, run_id, block_id, first, now)]


def _run_inserts(runs: Iterable[tuple[Run, RunRequested]]) -> Arguments:
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
            run.due_at,
            run.parent.run_id if run.parent else None,
            run.parent.step_id if run.parent else None,
            dump_json(run.parent.ancestors) if run.parent else None,
            run.traceparent,
        )
        for run, request in runs
    )
    return _transposed(rows)


def _run_updates(runs: Iterable[Run]) -> Arguments:
    rows = (
        (
            run.id,
            run.status,
            dump_json(run.output) if run.status is RunStatus.COMPLETED else None,
            dump_json(run.error) if run.error is not None else None,
            run.reply.queue if run.reply else None,
            run.reply.correlation_id if run.reply else None,
            run.finished_at,
            run.due_at,
        )
        for run in runs
    )
    return _transposed(rows)


def _ended_attempt(ended: EndedAttempt) -> tuple[Any, ...]:
    step = ended.step
    return (
        step.run_id,
        step.step_id,
        step.attempt,
        step.task_id,
        step.worker_id,
        dump_json(ended.error),
        step.queued_at,
        step.started_at,
        step.finished_at,
        ended.retry_at,
    )


def _transposed(rows: Iterable[tuple[Any, ...]]) -> Arguments:
    return [list(column) for column in zip(*rows, strict=True)]


def _outbox_inserts(rows: Sequence[tuple[OutboxRow, float]]) -> Arguments:
    return [*([getattr(row, name) for row, _ in rows] for name in _OUTBOX_TYPES), [delay for _, delay in rows]]


def _columns(types: dict[str, str], steps: Collection[StepExecution]) -> Arguments:
    return [list(map(_READ.get(name) or attrgetter(name), steps)) for name in types]


def _counter(name: str) -> Callable[[StepExecution], int | None]:
    read = attrgetter(name)
    return lambda step: read(step.branches) if step.branches is not None else None


def _input(step: StepExecution) -> str | None:
    return dump_json(step.input) if step.branches is None else None


def _output(step: StepExecution) -> str | None:
    # A block's output is put together in the database; an agent that returned null has an output, and it is null.
    return dump_json(step.output) if step.status is StepStatus.COMPLETED and step.branches is None else None


def _error(step: StepExecution) -> str | None:
    return dump_json(step.error) if step.error is not None else None


# What a column holds where that is not simply the record's field of the same name.
_READ: Final[Mapping[str, Callable[[StepExecution], Any]]] = {
    "max_parallelism": _counter("max_parallelism"),
    "branches_total": _counter("total"),
    "branches_open": _counter("open"),
    "branches_failed": _counter("failed"),
    "branches_dispatched": _counter("dispatched"),
    "branches_passed": _counter("passed"),
    "branches_ready": _counter("ready"),
    "input": _input,
    "output": _output,
    "error": _error,
}
