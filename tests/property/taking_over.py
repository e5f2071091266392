"""What a run takes over from an earlier one, said in Python: what the statements of `storage/taking_over` do."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from orchestrator.engine.records import Branches, StepExecution
from orchestrator.engine.retried import WITHOUT_INPUT
from schemas.statuses import StepStatus


class TakenOver(NamedTuple):
    """A step of the earlier run, and the new run's row of it."""

    before: StepExecution
    after: StepExecution
    is_done_again: bool


def taken_over(steps: Iterable[StepExecution], stopped_at: str, run_id: UUID, now: datetime) -> Iterator[TakenOver]:
    """Yield what is taken over from *steps*, those of a run that has ended, each with its error."""
    by_id = {step.step_id: step for step in steps}
    branches: dict[str | None, list[StepExecution]] = {}
    for step in by_id.values():
        branches.setdefault(step.parent_step_id, []).append(step)
    entered_again = _entered_again(by_id, branches, stopped_at)
    for step in by_id.values():
        if step.step_id == stopped_at or (step.parent_step_id in entered_again and _is_unfinished(step)):
            if step.step_id != stopped_at or step.branches is not None:
                yield TakenOver(step, _again(step, branches.get(step.step_id, ()), run_id, now), is_done_again=True)
        else:
            yield TakenOver(step, step._replace(run_id=run_id, task_id=None), is_done_again=False)


def _entered_again(
    by_id: Mapping[str, StepExecution], branches: Mapping[str | None, Sequence[StepExecution]], stopped_at: str
) -> set[str | None]:
    found: list[str] = []
    stopped = by_id.get(stopped_at)
    if stopped is not None and stopped.branches is not None:
        found.append(stopped_at)
    for block_id in found:  # it grows while we go
        inner = (step for step in branches.get(block_id, ()) if step.branches is not None and _is_unfinished(step))
        found += [step.step_id for step in inner]
    return set(found)


def _is_unfinished(step: StepExecution) -> bool:
    return step.status in {StepStatus.FAILED, StepStatus.CANCELLED}


def _had_no_input(step: StepExecution) -> bool:
    return step.has_attempts and step.error is not None and step.error.code in WITHOUT_INPUT


def _again(step: StepExecution, steps: Sequence[StepExecution], run_id: UUID, now: datetime) -> StepExecution:
    return StepExecution(
        run_id=run_id,
        step_id=step.step_id,
        status=StepStatus.PENDING,
        position=step.position,
        ordinal=step.ordinal,
        parent_step_id=step.parent_step_id,
        branch_name=step.branch_name,
        join_policy=step.join_policy,
        agent_name=step.agent_name,
        sub_workflow_id=step.sub_workflow_id,
        sub_workflow_version=step.sub_workflow_version,
        timeout_seconds=step.timeout_seconds,
        queue_timeout_seconds=step.queue_timeout_seconds,
        heartbeat_timeout_seconds=step.heartbeat_timeout_seconds,
        branch_timeout_seconds=step.branch_timeout_seconds,
        branches=_counted(step.branches, steps) if step.branches is not None else None,
        created_at=now,
        input=step.input,
        error=step.error if _had_no_input(step) else None,
    )


def _counted(before: Branches, steps: Sequence[StepExecution]) -> Branches:
    ran = (step for step in sorted(steps, key=lambda step: step.ordinal) if step.status is not StepStatus.SKIPPED)
    last = {step.position: step for step in ran}.values()
    unfinished = sum(map(_is_unfinished, last))
    return Branches(
        total=before.total,
        open=unfinished if last else before.total,
        failed=0,
        dispatched=0,
        passed=before.total if last else 0,
        max_parallelism=before.max_parallelism,
    )
