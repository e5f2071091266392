"""No column is forgotten when a run takes over from another."""

from orchestrator.storage import taking_over
from orchestrator.storage.tables import runs, step_executions


def test_every_column_of_a_step_is_taken_over_but_for_its_task_and_what_no_ended_step_has() -> None:
    left_out = {"task_id", "due_at", "ready_at"}
    assert set(taking_over._COPIED) == {column.name for column in step_executions.columns} - left_out


# Whoever retries a run of a sub-workflow waits for it: no step does.
NOT_ITS_OWN = {"parent_run_id", "parent_step_id", "ancestors"}


def test_every_column_of_a_run_is_given_but_for_how_it_ends() -> None:
    names = taking_over._TAKE_OVER_RUN.partition("(")[2].partition(")")[0]
    given = {name.strip() for name in names.split(",")}
    assert given == {column.name for column in runs.columns} - {"output", "error", "finished_at", *NOT_ITS_OWN}
