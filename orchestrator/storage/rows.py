"""Rows to records: the columns of a step execution, read in one fixed order."""

from typing import Any, Final

from orchestrator.engine.records import Branches, Parent, ReplyAddress, Run, StepExecution
from orchestrator.storage.database import Row
from schemas.messages import ErrorInfo
from schemas.statuses import JoinPolicy, RunStatus, StepStatus
from schemas.stored_json import read_stored

STEP_COLUMNS: Final = """
    s.run_id, s.step_id, s.status, s.position, s.ordinal, s.parent_step_id, s.branch_name, s.join_policy, s.agent_name,
    s.timeout_seconds, s.queue_timeout_seconds, s.heartbeat_timeout_seconds, s.attempt, s.task_id, s.worker_id,
    s.max_parallelism, s.branches_total, s.branches_open, s.branches_failed, s.branches_dispatched, s.branches_passed,
    s.branches_ready, s.created_at, s.queued_at, s.started_at, s.heartbeat_at, s.finished_at, s.due_at, s.ready_at,
    s.branch_timeout_seconds, s.branch_due_at, s.postponed, s.sub_workflow_id, s.sub_workflow_version,
    s.error::text AS error"""
STEP_NAMES: Final = tuple(column.split()[-1].removeprefix("s.") for column in STEP_COLUMNS.split(","))

RUN_COLUMNS: Final = """
    r.id AS "run.id", r.status AS "run.status", r.definition_id AS "run.definition_id",
    r.request_digest AS "run.request_digest", r.reply_to AS "run.reply_to", r.correlation_id AS "run.correlation_id",
    r.started_at AS "run.started_at", r.finished_at AS "run.finished_at", r.due_at AS "run.due_at",
    r.retry_of AS "run.retry_of", r.workflow_id AS "run.workflow_id", r.parent_run_id AS "run.parent_run_id",
    r.parent_step_id AS "run.parent_step_id", r.ancestors::text AS "run.ancestors", r.traceparent AS "run.traceparent"
"""


def to_step(row: Row, values: Any = None) -> StepExecution:
    """Return the record of a row selected with `STEP_COLUMNS`; *values* is its input, where it was asked for."""
    return StepExecution(
        run_id=row["run_id"],
        step_id=row["step_id"],
        status=StepStatus(row["status"]),
        position=row["position"],
        ordinal=row["ordinal"],
        parent_step_id=row["parent_step_id"],
        branch_name=row["branch_name"],
        join_policy=JoinPolicy(row["join_policy"]) if row["join_policy"] is not None else None,
        agent_name=row["agent_name"],
        sub_workflow_id=row["sub_workflow_id"],
        sub_workflow_version=row["sub_workflow_version"],
        timeout_seconds=row["timeout_seconds"],
        queue_timeout_seconds=row["queue_timeout_seconds"],
        heartbeat_timeout_seconds=row["heartbeat_timeout_seconds"],
        branch_timeout_seconds=row["branch_timeout_seconds"],
        attempt=row["attempt"],
        task_id=row["task_id"],
        worker_id=row["worker_id"],
        branches=_branches(row),
        created_at=row["created_at"],
        queued_at=row["queued_at"],
        started_at=row["started_at"],
        heartbeat_at=row["heartbeat_at"],
        finished_at=row["finished_at"],
        due_at=row["due_at"],
        ready_at=row["ready_at"],
        branch_due_at=row["branch_due_at"],
        postponed=row["postponed"],
        input=values,
        error=to_error(row["error"]),
    )


def to_run(row: Row) -> Run:
    """Return the record of a row selected with `RUN_COLUMNS`."""
    return Run(
        id=row["run.id"],
        status=RunStatus(row["run.status"]),
        definition_id=row["run.definition_id"],
        workflow_id=row["run.workflow_id"],
        request_digest=row["run.request_digest"],
        reply=ReplyAddress(row["run.reply_to"], row["run.correlation_id"]) if row["run.reply_to"] is not None else None,
        parent=_parent(row),
        started_at=row["run.started_at"],
        finished_at=row["run.finished_at"],
        due_at=row["run.due_at"],
        retry_of=row["run.retry_of"],
        traceparent=row["run.traceparent"],
    )


def to_error(text: str | None) -> ErrorInfo | None:
    """Return the error that a column's JSON text holds."""
    return ErrorInfo.model_validate_json(text) if text is not None else None


def to_value(text: str | None) -> Any:
    """Return the value that a column's JSON text holds; SQL NULL is null."""
    return read_stored(text) if text is not None else None


def _parent(row: Row) -> Parent | None:
    if row["run.parent_run_id"] is None:
        return None
    return Parent(row["run.parent_run_id"], row["run.parent_step_id"], tuple(to_value(row["run.ancestors"])))


def _branches(row: Row) -> Branches | None:
    if row["branches_total"] is None:
        return None
    return Branches(
        total=row["branches_total"],
        open=row["branches_open"],
        failed=row["branches_failed"],
        dispatched=row["branches_dispatched"],
        passed=row["branches_passed"],
        max_parallelism=row["max_parallelism"],
        ready=row["branches_ready"] or 0,
    )
