import uuid

from agent_worker.cancelled_runs import CancelledRuns

A, B, C = (uuid.UUID(int=number) for number in range(3))


def test_a_run_is_remembered_until_there_are_too_many() -> None:
    runs = CancelledRuns(max_runs=2)
    runs.add(A)
    runs.add(B)
    assert A in runs
    runs.add(C)
    assert [run in runs for run in (A, B, C)] == [False, True, True]


def test_a_run_that_is_heard_of_again_counts_once_and_stays_longer() -> None:
    runs = CancelledRuns(max_runs=2)
    for run in (A, B, A):
        runs.add(run)
    assert (A in runs, B in runs) == (True, True)
    runs.add(C)
    assert [run in runs for run in (A, B, C)] == [True, False, True]
