"""Limits of agents, and the tasks that they hold back."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from orchestrator.engine.agent_limit import AgentLimit, Bucket, burst, let_through, next_token, refilled, room
from orchestrator.storage.agent_limits import ASIDE, COUNT_AGAIN_SECONDS, COUNT_SECONDS, LetThrough
from orchestrator.storage.outbox import HAND_OVER_SECONDS
from schemas.statuses import StepStatus
from tests.simulation.storage.rows import LimitRow, QueuedMessage, StepRow
from tests.simulation.storage.transaction import Transaction


def set_limit(transaction: Transaction, agent_name: str, limit: AgentLimit) -> None:
    """Limit an agent, as an operator does."""
    now, before = transaction.now, transaction.tables.limits.get(agent_name)
    bucket = Bucket(burst(limit.rate_per_second) if limit.rate_per_second is not None else 0.0, now)
    if before is not None and before.limit.rate_per_second is not None:
        bucket = Bucket(min(before.bucket.tokens, bucket.tokens), before.bucket.at)
    transaction.changes.limits[agent_name] = LimitRow(limit, bucket, now)
    if limit.max_concurrency is None:
        transaction.changes.slots |= dict.fromkeys(transaction.slots(agent_name))


async def agents_with_room(transaction: Transaction) -> Sequence[str]:
    """Return the agents of which held tasks may go out now, or are to be dropped."""
    return [
        agent_name for agent_name, row in transaction.tables.limits.items() if _has_room(transaction, agent_name, row)
    ]


async def lock(transaction: Transaction, agent_name: str) -> None:
    """Take a turn at letting an agent's tasks through."""
    if agent_name in transaction.tables.limits:
        await transaction.lock("agent", agent_name)


async def let_tasks_through(transaction: Transaction, agent_name: str, page: int, now: datetime) -> LetThrough:
    """Let the next of an agent's held tasks through, as far as its limit has room."""
    row = transaction.tables.limits.get(agent_name)
    if row is None:
        return LetThrough()
    bucket = refilled(row.bucket, row.limit.rate_per_second, now)
    has_slots = row.limit.max_concurrency is not None
    if has_slots and _to_count(row, transaction.now):
        _count_others(transaction, agent_name)
        row = replace(row, counted_at=transaction.now)
    taken = _taken(transaction, agent_name) if has_slots else 0
    free = room(row.limit, taken, bucket.tokens)
    found = await _next(transaction, agent_name, min(page, free) if free is not None else page)
    if found:
        bucket = bucket.without(len(found))
    transaction.changes.limits[agent_name] = replace(row, bucket=bucket)
    for entry, step in found:
        changed = let_through(step.record, now)
        transaction.put_step(replace(step, record=changed))
        due_at = transaction.now + timedelta(seconds=HAND_OVER_SECONDS)
        transaction.changes.outbox[entry.row.message_id] = replace(entry, due_at=due_at, held_at=None)
        if has_slots and changed.task_id is not None:
            transaction.changes.slots[changed.task_id] = agent_name
    return LetThrough(
        messages=[entry.row for entry, _ in found],
        more=len(found) == page,
        next_token=next_token(row.limit, bucket) if free is not None and len(found) == free else None,
    )


def _has_room(transaction: Transaction, agent_name: str, row: LimitRow) -> bool:
    line = transaction.held(agent_name)
    if not line:
        return False
    if _waiting_step(transaction, line[0]) is None:
        return True
    bucket = refilled(row.bucket, row.limit.rate_per_second, transaction.now)
    taken = sum(_is_open(transaction, task_id) for task_id in transaction.slots(agent_name))
    return room(row.limit, taken, bucket.tokens) != 0


def _to_count(row: LimitRow, now: datetime) -> bool:
    if row.counted_at is None:
        return True
    over = row.changed_at + timedelta(seconds=COUNT_SECONDS)
    return row.counted_at < over and row.counted_at < now - timedelta(seconds=COUNT_AGAIN_SECONDS)


def _count_others(transaction: Transaction, agent_name: str) -> None:
    held = {entry.row.task_id for entry in transaction.held(agent_name)}
    for step in transaction.tables.open_attempts():
        if step.agent_name == agent_name and step.task_id is not None and step.task_id not in held:
            transaction.changes.slots[step.task_id] = agent_name


def _taken(transaction: Transaction, agent_name: str) -> int:
    slots = list(transaction.slots(agent_name))
    over = [task_id for task_id in slots if not _is_open(transaction, task_id)]
    transaction.changes.slots |= dict.fromkeys(over)
    return len(slots) - len(over)


async def _next(transaction: Transaction, agent_name: str, count: int) -> Sequence[tuple[QueuedMessage, StepRow]]:
    found: list[tuple[QueuedMessage, StepRow]] = []
    for entry in transaction.held(agent_name)[: count + ASIDE]:
        step = _waiting_step(transaction, entry)
        if step is None:
            await transaction.delete_messages([entry.row.message_id])
        elif len(found) < count and transaction.is_free("run", step.record.run_id):
            # Postgres has locks for steps too; here a run's lock stands for those of all its steps.
            await transaction.lock("run", step.record.run_id)
            found.append((entry, step))
    return found


def _waiting_step(transaction: Transaction, entry: QueuedMessage) -> StepRow | None:
    assert entry.row.task_id is not None, "only tasks are held"
    step = transaction.step_of_task(entry.row.task_id)
    return step if step is not None and step.record.status is StepStatus.QUEUED else None


def _is_open(transaction: Transaction, task_id: UUID) -> bool:
    step = transaction.step_of_task(task_id)
    return step is not None and step.has_open_attempt
