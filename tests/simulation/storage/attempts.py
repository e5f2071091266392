"""Attempts that somebody should look at: overdue ones, and silent ones; and branches that are over."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from uuid import UUID

from orchestrator.engine.inputs import AttemptOverdue, DueInput, RetryDue, RunOverdue, TaskMissing
from orchestrator.engine.records import StepExecution
from orchestrator.storage.silent import PATIENCE_WITH_WORKERS, Silence, SilentAttempt
from schemas.statuses import StepStatus
from tests.simulation.storage.transaction import Transaction


@dataclass(frozen=True, slots=True)
class _Open:
    agent_name: str
    task_id: UUID
    step: StepExecution
    queued_at: datetime
    last_sign: datetime
    is_unclaimed: bool
    is_silent: bool


async def block_over(transaction: Transaction, run_id: UUID, block_id: str) -> bool:
    """Return whether a block is final."""
    row = transaction.step((run_id, block_id))
    return row is not None and row.record.status.is_final


async def branches_over(transaction: Transaction, run_id: UUID, step_ids: Sequence[str]) -> frozenset[str]:
    """Return those of *step_ids* whose branches are over: it is final, and so are those that followed it."""
    rows = (transaction.step((run_id, step_id)) for step_id in step_ids)
    return frozenset(
        row.record.step_id
        for row in rows
        if row is not None and row.record.status.is_final and not _is_followed(transaction, row.record)
    )


def _is_followed(transaction: Transaction, step: StepExecution) -> bool:
    """Whether another step of its branch is open."""
    if step.parent_step_id is None:
        return False
    branches = transaction.branches(step.run_id, step.parent_step_id)
    return any(row.record.position == step.position and not row.record.status.is_final for row in branches)


async def due_inputs(transaction: Transaction, limit: int) -> Sequence[DueInput]:
    """Return what is due, the longest first."""
    steps, runs, now = transaction.tables.steps, transaction.tables.due_runs, transaction.now
    due = [(at, key, steps[key].record.task_id) for key, at in transaction.tables.due.items() if at <= now]
    found: list[tuple[datetime, DueInput]] = [
        (at, AttemptOverdue(*key, task_id) if task_id is not None else RetryDue(*key)) for at, key, task_id in due
    ]
    found += [(at, RunOverdue(run_id)) for run_id, at in runs.items() if at <= now]
    return [event for _, event in sorted(found, key=lambda entry: entry[0])[:limit]]


async def count_silent(transaction: Transaction, seconds: float) -> Sequence[Silence]:
    """Return the agents that have attempts without a sign of life for *seconds*, by name."""
    attempts = sorted(_open_attempts(transaction, seconds), key=lambda attempt: attempt.agent_name)
    silences = (_silence(name, list(some)) for name, some in groupby(attempts, lambda attempt: attempt.agent_name))
    return [silence for silence in silences if silence.silent]


async def oldest_silent(
    transaction: Transaction, agent_name: str, seconds: float, limit: int
) -> Sequence[SilentAttempt]:
    """Return up to *limit* silent attempts of an agent; what nobody has claimed comes first, then the oldest."""
    attempts = _open_attempts(transaction, seconds)
    silent = [attempt for attempt in attempts if attempt.is_silent and attempt.agent_name == agent_name]
    silent.sort(key=lambda attempt: (not attempt.is_unclaimed, attempt.queued_at, attempt.task_id))
    return [
        SilentAttempt(
            TaskMissing(attempt.step.run_id, attempt.step.step_id, attempt.task_id, attempt.last_sign),
            transaction.now - attempt.last_sign,
        )
        for attempt in silent[:limit]
    ]


def _silence(agent_name: str, attempts: Sequence[_Open]) -> Silence:
    silent = sum(attempt.is_silent for attempt in attempts)
    fresh = sum(attempt.is_unclaimed and not attempt.is_silent for attempt in attempts)
    return Silence(agent_name, silent, fresh)


def _open_attempts(transaction: Transaction, seconds: float) -> Iterator[_Open]:
    """Yield the open attempts of running runs whose tasks have left the outbox."""
    unsent = {entry.row.task_id for entry in transaction.messages()}
    for step in transaction.tables.open_attempts():
        if step.agent_name is None or step.task_id is None or step.queued_at is None or step.task_id in unsent:
            continue
        is_unclaimed = step.status is StepStatus.QUEUED
        last_sign = max(step.queued_at, step.heartbeat_at or step.queued_at)
        patience = timedelta(seconds=seconds * (1 if is_unclaimed else PATIENCE_WITH_WORKERS))
        is_silent = last_sign <= transaction.now - patience
        yield _Open(step.agent_name, step.task_id, step, step.queued_at, last_sign, is_unclaimed, is_silent)
