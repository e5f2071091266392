"""The ids of step executions."""

import pytest

from orchestrator.engine.executions import execution_id, iterations_of, step_of

EXECUTIONS = pytest.mark.parametrize(
    ("execution", "step_id", "iterations"),
    [
        ("x", "x", ()),
        ("x[0]", "x", (0,)),
        ("x[3]", "x", (3,)),
        ("y-2_a[3][0]", "y-2_a", (3, 0)),
        ("y[10][200][99999]", "y", (10, 200, 99_999)),
    ],
)


@EXECUTIONS
def test_the_numbers_of_the_iterations_stand_behind_the_id_of_the_step(
    execution: str, step_id: str, iterations: tuple[int, ...]
) -> None:
    assert execution_id(step_id, iterations) == execution


@EXECUTIONS
def test_the_step_of_an_execution_can_be_read_off_its_id(
    execution: str, step_id: str, iterations: tuple[int, ...]
) -> None:
    assert step_of(execution) == step_id


@EXECUTIONS
def test_the_iterations_of_an_execution_can_be_read_off_its_id(
    execution: str, step_id: str, iterations: tuple[int, ...]
) -> None:
    assert iterations_of(execution) == iterations
