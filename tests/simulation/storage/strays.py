"""Sub-workflows whose step and run have lost sight of each other."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

from orchestrator.engine.inputs import CancelRequested, ChildEnded, TaskMissing
from orchestrator.engine.records import StepExecution
from orchestrator.storage.rows import to_error, to_value
from orchestrator.storage.strays import NOT_AWAITED, Stray
from schemas.messages import RunResult
from schemas.statuses import ResultStatus, RunStatus
from tests.simulation.storage.transaction import Transaction


async def find_strays(transaction: Transaction, seconds: float, limit: int) -> Sequence[Stray]:
    """Return up to *limit* strays of each kind; *seconds* is for how long messages may travel."""
    patience = timedelta(seconds=seconds)
    ended = [stray for stray in _ended(transaction) if stray.silent_for >= patience]
    missing = [stray for stray in _missing(transaction) if stray.silent_for >= patience]
    return [*ended[:limit], *missing[:limit], *list(_not_awaited(transaction))[:limit]]


def _ended(transaction: Transaction) -> Iterator[Stray]:
    for step in _open(transaction):
        child = transaction.tables.runs.get(step.task_id) if step.task_id is not None else None
        if child is None or child.record.finished_at is None or step.task_id is None:
            continue
        result = RunResult(
            run_id=step.task_id,
            status=ResultStatus(child.record.status.value),
            output=to_value(child.output),
            error=to_error(child.error),
        )
        yield Stray(ChildEnded(step.run_id, step.task_id, result), transaction.now - child.record.finished_at)


def _missing(transaction: Transaction) -> Iterator[Stray]:
    unsent = {entry.row.task_id for entry in transaction.messages()}
    for step in _open(transaction):
        assert step.task_id is not None, "its attempt is open"
        assert step.queued_at is not None
        if step.task_id not in transaction.tables.runs and step.task_id not in unsent:
            missing = TaskMissing(step.run_id, step.step_id, step.task_id, step.queued_at)
            yield Stray(missing, transaction.now - step.queued_at)


def _not_awaited(transaction: Transaction) -> Iterator[Stray]:
    awaited = {step.task_id for step in transaction.tables.open_sub_workflows()}
    for run_id, row in transaction.tables.runs.items():
        if row.record.parent is not None and not row.record.status.is_final and run_id not in awaited:
            yield Stray(CancelRequested(run_id, NOT_AWAITED), timedelta(0))


def _open(transaction: Transaction) -> Iterator[StepExecution]:
    runs = transaction.tables.runs
    return (
        step for step in transaction.tables.open_sub_workflows() if runs[step.run_id].record.status is RunStatus.RUNNING
    )
