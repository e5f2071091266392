import uuid
from typing import Any

import pytest

from agent_worker.cancelled_work import Cancelled, CancelledWork

A, B, C = (uuid.UUID(int=number) for number in range(3))


def covered(work: CancelledWork, task: Any) -> list[bool]:
    return [work.covers(task(run_id=run)) for run in (A, B, C)]


def test_a_run_is_remembered_until_there_are_too_many(task: Any) -> None:
    work = CancelledWork(most=2)
    work.add(Cancelled(A))
    work.add(Cancelled(B))
    assert covered(work, task) == [True, True, False]
    work.add(Cancelled(C))
    assert covered(work, task) == [False, True, True]


def test_a_run_that_is_heard_of_again_counts_once_and_stays_longer(task: Any) -> None:
    work = CancelledWork(most=2)
    for run in (A, B, A):
        work.add(Cancelled(run))
    assert covered(work, task) == [True, True, False]
    work.add(Cancelled(C))
    assert covered(work, task) == [True, False, True]


@pytest.mark.parametrize(
    ("run", "block", "is_covered"), [(A, "block", True), (A, "other", False), (A, None, False), (B, "block", False)]
)
def test_the_branches_of_a_cancelled_block_are_covered_and_nothing_else(
    run: uuid.UUID, block: str | None, is_covered: bool, task: Any
) -> None:
    cancelled, work = Cancelled(A, "block"), CancelledWork()
    work.add(cancelled)
    sent = task(run_id=run, parent_step_id=block)
    assert (cancelled.covers(sent), work.covers(sent)) == (is_covered, is_covered)
