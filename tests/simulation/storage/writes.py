"""What a session writes, in the order in which the statements of Postgres do."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

from orchestrator.engine.decision import EndedAttempt, Join, JoinForm
from orchestrator.engine.inputs import RunRequested
from orchestrator.engine.records import Run, StepExecution
from orchestrator.storage.changes import Changes, GateRow, OutboxRow
from orchestrator.storage.rows import to_value
from orchestrator.storage.writes import GATE_LEASE_SECONDS, CancelledStep
from schemas.codec import dump_json
from schemas.statuses import StepStatus
from tests.simulation.storage.rows import (
    EndedRow,
    HeldGate,
    QueuedMessage,
    StepRow,
    inserted_run,
    inserted_step,
    updated_run,
    updated_step,
)
from tests.simulation.storage.transaction import Transaction, violated

NEVER: Final = datetime.max.replace(tzinfo=UTC)


async def write(transaction: Transaction, changes: Changes) -> None:
    """Write what was collected."""
    for run_id in sorted(changes.new_runs):
        await _insert_run(transaction, *changes.new_runs[run_id])
    for step in changes.new_steps.values():
        _insert_step(transaction, step)
    for run in changes.changed_runs.values():
        _update_run(transaction, run)
    for step in changes.changed_steps.values():
        _update_step(transaction, step)
    for ended in changes.ended_attempts:
        _insert_ended(transaction, ended)
    for item in changes.items:
        transaction.changes.items[item[:3]] = dump_json(item.item)
    for run_id, join in changes.joins:
        _join(transaction, run_id, join)
    for gate in changes.gates:
        _insert_gate(transaction, gate)
    for row, delay in changes.outbox:
        insert_message(transaction, row, delay)
    for row, place in changes.held:
        held_at = transaction.now + timedelta(seconds=place)
        transaction.changes.outbox[row.message_id] = QueuedMessage(row, transaction.now, NEVER, held_at=held_at)


async def cancel_open_steps(
    transaction: Transaction, run_id: UUID, block_id: str | None, now: datetime
) -> Sequence[CancelledStep]:
    """Cancel whatever of the run, or of a block's branches, is not final; return what that was."""
    cancelled = []
    tasks = set()
    blocks = {block_id}
    for row in list(transaction.steps(run_id)):  # blocks come before what lies in them
        step = row.record
        if block_id is not None and step.parent_step_id not in blocks:
            continue
        blocks.add(step.step_id)
        if not step.status.is_final:
            transaction.put_step(row.cancelled(now))
            child = step.child_run_id
            cancelled.append(CancelledStep(step.step_id, step.parent_step_id, step.branch_name, step.attempt, child))
            tasks.add(step.task_id)
    held = [entry.row for entry in transaction.messages() if entry.held_at is not None]
    await transaction.delete_messages(row.message_id for row in held if row.task_id in tasks)
    return cancelled


def close_line(
    transaction: Transaction, run_id: UUID, block_id: str, first: int, now: datetime
) -> Sequence[CancelledStep]:
    """Cancel those who wait at a block's gate, from a position on; return what that was."""
    cancelled = []
    for row in list(transaction.branches(run_id, block_id, first)):
        step = row.record
        if step.status is StepStatus.PENDING:
            transaction.put_step(row.cancelled(now))
            cancelled.append(CancelledStep(step.step_id, step.parent_step_id, step.branch_name, step.attempt))
    return cancelled


def insert_message(transaction: Transaction, row: OutboxRow, delay: float) -> None:
    """Put a message into the outbox; a sweeper may send it after *delay* seconds."""
    if transaction.message(row.message_id) is not None:
        raise violated("outbox_pkey", row.message_id)
    due_at = transaction.now + timedelta(seconds=delay)
    transaction.changes.outbox[row.message_id] = QueuedMessage(row, transaction.now, due_at)


async def _insert_run(transaction: Transaction, run: Run, request: RunRequested) -> None:
    await transaction.lock("run", run.id)  # who inserts the same just now must end first
    if transaction.run(run.id) is not None:
        raise violated("runs_pkey", run.id)
    if run.definition_id not in transaction.tables.definitions:
        raise asyncpg.ForeignKeyViolationError(f"there is no definition {run.definition_id} for run {run.id}")
    transaction.changes.runs[run.id] = inserted_run(run, request)


def _update_run(transaction: Transaction, run: Run) -> None:
    row = transaction.run(run.id)
    if row is not None:
        transaction.changes.runs[run.id] = updated_run(row, run)


def _insert_step(transaction: Transaction, step: StepExecution) -> None:
    key = (step.run_id, step.step_id)
    _require_run(transaction, step.run_id)
    if transaction.step(key) is not None:
        raise violated("step_executions_pkey", key)
    transaction.put_step(inserted_step(step))


def _update_step(transaction: Transaction, step: StepExecution) -> None:
    row = transaction.step((step.run_id, step.step_id))
    if row is not None:
        transaction.put_step(updated_step(row, step))


def _insert_ended(transaction: Transaction, ended: EndedAttempt) -> None:
    step = ended.step
    key = (step.run_id, step.step_id, step.attempt)
    if key in transaction.changes.ended or key in transaction.tables.ended:
        raise violated("step_attempts_pkey", key)
    row = EndedRow(step.task_id, step.worker_id, dump_json(ended.error), step.finished_at, ended.retry_at)
    transaction.changes.ended[key] = row


def _join(transaction: Transaction, run_id: UUID, join: Join) -> None:
    block = transaction.step((run_id, join.block_id))
    if block is None:
        return
    last: dict[int, StepRow] = {}
    for row in transaction.branches(run_id, join.block_id):
        if row.record.status is StepStatus.SKIPPED:
            continue
        there = last.get(row.record.position)
        if there is None or there.record.ordinal < row.record.ordinal:
            last[row.record.position] = row
    if join.form is JoinForm.ITERATIONS:
        transaction.put_step(replace(block, output=_iterations(block, list(last.values()))))
        return
    outputs = [
        f"{dump_json(row.record.branch_name)}:{row.output if row.record.status is StepStatus.COMPLETED else 'null'}"
        for row in last.values()
        if join.form is JoinForm.ALL or (row.record.status is StepStatus.COMPLETED and row.output is not None)
    ]
    transaction.put_step(replace(block, output="{" + ",".join(outputs) + "}"))


def _iterations(loop: StepRow, rows: Sequence[StepRow]) -> str:
    assert loop.record.branches is not None, "it has iterations"
    statuses = [row.record.status for row in rows]
    iterations = [
        {
            "index": row.record.position,
            "status": row.record.status,
            # A loop or block within it that failed has an output as well.
            "output": to_value(row.output) if row.record.status is StepStatus.COMPLETED else None,
            "error": to_value(row.error) if row.record.status is StepStatus.FAILED else None,
        }
        for row in rows
    ]
    return dump_json(
        {
            "iterations": iterations,
            "total_count": loop.record.branches.total,
            "completed_count": statuses.count(StepStatus.COMPLETED),
            "failed_count": statuses.count(StepStatus.FAILED),
        }
    )


def _insert_gate(transaction: Transaction, gate: GateRow) -> None:
    key = (gate.run_id, gate.block_id)
    _require_run(transaction, gate.run_id)
    if transaction.gate(key) is not None:
        raise violated("gates_pkey", key)
    lease_until = transaction.now + timedelta(seconds=GATE_LEASE_SECONDS)
    transaction.changes.gates[key] = HeldGate(*key, gate.max_parallelism, gate.holder, lease_until)


def _require_run(transaction: Transaction, run_id: UUID) -> None:
    if transaction.run(run_id) is None:
        raise asyncpg.ForeignKeyViolationError(f"there is no run {run_id}")
