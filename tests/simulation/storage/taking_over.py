"""A run that takes over what an earlier one has done."""

from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from orchestrator.engine.decision import TakeOver
from orchestrator.engine.records import Run
from schemas.statuses import StepStatus
from tests.property.taking_over import taken_over
from tests.simulation.storage.rows import StepRow
from tests.simulation.storage.transaction import Transaction, violated


async def take_over(transaction: Transaction, run: Run, what: TakeOver) -> None:
    """Insert *run*, with the content of an earlier one that has ended, and what that has done."""
    await transaction.lock("run", run.id)  # who inserts the same just now must end first
    if transaction.run(run.id) is not None:
        raise violated("runs_pkey", run.id)
    earlier = transaction.run(what.run_id)
    if earlier is None:
        return
    transaction.changes.runs[run.id] = replace(earlier, record=run, output=None, error=None)
    rows = {row.record.step_id: row for row in transaction.steps(what.run_id)}
    assert run.started_at is not None, "it starts now"
    steps = [row.step() for row in rows.values()]
    for before, after, is_done_again in taken_over(steps, what.stopped_at, run.id, run.started_at):
        row = rows[before.step_id]
        output = None if is_done_again else row.output
        error = row.error if after.error is not None else None
        transaction.put_step(StepRow(after._replace(error=None), row.input, output, error))
    items = {**transaction.tables.items, **transaction.changes.items}
    for (run_id, *place), item in items.items():
        if run_id == what.run_id:
            transaction.changes.items[run.id, *place] = item


def wake_branches(transaction: Transaction, run_id: UUID, block_id: str, now: datetime) -> None:
    """Let the branches of a block that wait be due, one after the other, a microsecond apart."""
    for row in list(transaction.branches(run_id, block_id)):
        if row.record.status is StepStatus.PENDING:
            due_at = now + timedelta(microseconds=row.record.position)
            transaction.put_step(replace(row, record=row.record._replace(due_at=due_at)))
