"""What people and programs ask about runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from orchestrator.errors import UnknownRun
from orchestrator.storage.database import Database, Row
from orchestrator.storage.rows import to_error, to_value
from schemas.messages import ErrorInfo
from schemas.statuses import JoinPolicy, RunStatus, StepStatus

_SUMMARY: Final = """r.id, r.workflow_id, r.workflow_version, r.status, r.labels, r.created_at, r.started_at,
        r.finished_at, r.retry_of, r.parent_run_id, r.parent_step_id, substr(r.traceparent, 4, 32) AS trace_id,
        ARRAY(SELECT id FROM runs WHERE retry_of = r.id ORDER BY created_at, id) AS retried_as"""
_RUNS: Final = f"""
    SELECT {_SUMMARY}
    FROM runs AS r
    WHERE ($1::text IS NULL OR status = $1)
        AND ($2::text IS NULL OR workflow_id = $2)
        AND ($3::jsonb IS NULL OR labels @> $3)
        AND ($4 OR parent_run_id IS NULL)
    ORDER BY created_at DESC, id LIMIT $5
"""  # noqa: S608 - only our own column list is put in
_RUN: Final = f"""
    SELECT {_SUMMARY},
        input::text AS input, output::text AS output, error::text AS error
    FROM runs AS r WHERE id = $1
"""  # noqa: S608
_STEPS: Final = """
    SELECT s.step_id, s.parent_step_id, s.branch_name, s.join_policy, s.status, s.agent_name, s.attempt, s.worker_id,
           s.max_parallelism, s.branches_total, s.branches_open, s.branches_failed, s.branches_dispatched,
           s.created_at, s.queued_at, s.started_at, s.finished_at, s.heartbeat_at, s.due_at, s.error::text AS error,
           s.sub_workflow_id, s.sub_workflow_version, c.id AS child_id, c.status AS child_status,
           o.unsent_since, o.unroutable_since, o.held_since,
           l.max_concurrency AS agent_max_concurrency, l.rate_per_second AS agent_rate_per_second
    FROM step_executions AS s
    LEFT JOIN runs AS c ON c.id = s.task_id AND s.sub_workflow_id IS NOT NULL
    LEFT JOIN (
        SELECT task_id, min(created_at) AS unsent_since, min(returned_at) AS unroutable_since,
            min(held_at) AS held_since
        FROM outbox WHERE run_id = $1 GROUP BY task_id
    ) AS o ON o.task_id = s.task_id
    LEFT JOIN agent_limits AS l ON l.agent_name = s.agent_name AND o.held_since IS NOT NULL
    WHERE s.run_id = $1
    ORDER BY min(s.created_at) OVER (PARTITION BY s.parent_step_id, COALESCE(s.branch_name, s.step_id)),
        s.position, s.ordinal, s.step_id  -- the steps of a branch stand together
"""
_ENDED: Final = """
    SELECT a.step_id, a.attempt, a.worker_id, a.queued_at, a.started_at, a.finished_at, a.retry_at,
           a.error::text AS error, c.id AS child_id, c.status AS child_status
    FROM step_attempts AS a LEFT JOIN runs AS c ON c.id = a.task_id
    WHERE a.run_id = $1 ORDER BY a.step_id, a.attempt
"""
_UNFINISHED: Final = "SELECT id FROM runs WHERE status IN ('PENDING', 'RUNNING')"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which runs are meant: all that match."""

    status: RunStatus | None = None
    workflow_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)  # a run matches that has all of these, and perhaps others
    children: bool = False  # also runs that carry out steps of others


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run without its content."""

    run_id: UUID
    workflow_id: str
    workflow_version: str
    status: RunStatus
    labels: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    retry_of: UUID | None = None  # the run from which it has taken over what that had completed
    retried_as: Sequence[UUID] = ()  # the runs that have taken over from it, the oldest first
    parent_run_id: UUID | None = None  # whose step it carries out
    parent_step_id: str | None = None
    trace_id: str | None = None  # of W3C Trace Context, in hexadecimal digits


@dataclass(frozen=True, slots=True)
class ChildView:
    """The run that carries out an attempt of a sub-workflow step."""

    run_id: UUID
    status: RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """An attempt that failed and was followed by another, for a reader."""

    attempt: int
    worker_id: str | None
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime
    retry_at: datetime  # when the next one was to start
    error: ErrorInfo
    child: ChildView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """One step execution, for a reader."""

    step_id: str
    parent_step_id: str | None
    branch_name: str | None
    join_policy: JoinPolicy | None = None
    status: StepStatus
    agent_name: str | None
    sub_workflow_id: str | None = None
    sub_workflow_version: str | None = None
    child: ChildView | None = None  # of a sub-workflow, once it has started
    attempt: int
    worker_id: str | None
    max_parallelism: int | None
    branches_total: int | None
    branches_open: int | None
    branches_failed: int | None
    branches_dispatched: int | None
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    heartbeat_at: datetime | None = None  # when its worker was last heard of, by the database's clock
    due_at: datetime | None = None  # when the attempt counts as overdue, or the next one starts
    earlier_attempts: Sequence[AttemptView] = ()
    error: ErrorInfo | None
    unsent_since: datetime | None = None  # since when its task is to be sent
    unroutable_since: datetime | None  # since when no queue takes its task
    held_since: datetime | None = None  # since when the limit of its agent holds its task back
    agent_max_concurrency: int | None = None  # of that limit
    agent_rate_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class RunDetails:
    """A run with its content and its steps, in the order in which they came to be."""

    summary: RunSummary
    input: Any
    output: Any
    error: ErrorInfo | None
    steps: Sequence[StepView]


async def list_runs(database: Database, selection: Selection, *, limit: int) -> Sequence[RunSummary]:
    """Return the newest of the runs that match."""
    labels = json.dumps(dict(selection.labels)) if selection.labels else None
    async with database.connection() as connection:
        asked = (selection.status, selection.workflow_id, labels, selection.children, limit)
        rows = await connection.fetch(_RUNS, *asked)
        return [_summary(row) for row in rows]


async def get_run(database: Database, run_id: UUID) -> RunDetails:
    """Return a run with its steps.

    Raises:
        UnknownRun: There is none of that id.
    """
    async with database.connection() as connection:
        row = await connection.fetchrow(_RUN, run_id)
        if row is None:
            raise UnknownRun(f"there is no run {run_id}: `forkjoin runs list` shows those that exist")
        steps = await connection.fetch(_STEPS, run_id)
        ended = _by_step(await connection.fetch(_ENDED, run_id))
    views = [_step(step, ended.get(step["step_id"], ())) for step in steps]
    return RunDetails(_summary(row), to_value(row["input"]), to_value(row["output"]), to_error(row["error"]), views)


async def unfinished_runs(database: Database) -> Sequence[UUID]:
    """Return the runs that have not ended."""
    async with database.connection() as connection:
        return [row["id"] for row in await connection.fetch(_UNFINISHED)]


def _summary(row: Row) -> RunSummary:
    return RunSummary(
        run_id=row["id"],
        workflow_id=row["workflow_id"],
        workflow_version=row["workflow_version"],
        status=RunStatus(row["status"]),
        labels=to_value(row["labels"]),
        created_at=row["created_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        retry_of=row["retry_of"],
        retried_as=row["retried_as"],
        parent_run_id=row["parent_run_id"],
        parent_step_id=row["parent_step_id"],
        trace_id=row["trace_id"],
    )


def _step(row: Row, earlier: Sequence[AttemptView]) -> StepView:
    values = _with_child(row) | {"status": StepStatus(row["status"]), "earlier_attempts": earlier}
    return StepView(**values)


def _with_child(row: Row) -> dict[str, Any]:
    values = {**row, "error": to_error(row["error"])}
    child_id, status = values.pop("child_id"), values.pop("child_status")
    return values | {"child": ChildView(child_id, RunStatus(status)) if child_id is not None else None}


def _by_step(rows: Sequence[Row]) -> dict[str, list[AttemptView]]:
    found: dict[str, list[AttemptView]] = {}
    for row in rows:
        values = _with_child(row)
        found.setdefault(values.pop("step_id"), []).append(AttemptView(**values))
    return found
