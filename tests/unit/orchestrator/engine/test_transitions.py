"""The table of status changes, compared with one written a second time, pair by pair."""

from copy import copy
from typing import Any

import pytest

from orchestrator.engine.transitions import (
    RUN_TRANSITIONS,
    STEP_TRANSITIONS,
    Trigger,
    next_run_status,
    next_step_status,
)
from schemas.statuses import RunStatus, StepStatus
from tests.unit.orchestrator.engine.scene import run_row, step_row

STEPS = """
            dispatch  start    complete   fail    retry    cancel
PENDING     QUEUED    RUNNING  -          FAILED  -        CANCELLED
QUEUED      -         RUNNING  COMPLETED  FAILED  PENDING  CANCELLED
RUNNING     -         RUNNING  COMPLETED  FAILED  PENDING  CANCELLED
COMPLETED   -         -        -          -       -        -
FAILED      -         -        -          -       -        -
CANCELLED   -         -        -          -       -        -
SKIPPED     -         -        -          -       -        -
"""
RUNS = """
            dispatch  start    complete   fail    retry    cancel
PENDING     -         RUNNING  -          -       -        CANCELLED
RUNNING     -         -        COMPLETED  FAILED  -        CANCELLED
COMPLETED   -         -        -          -       -        -
FAILED      -         -        -          -       -        -
CANCELLED   -         -        -          -       -        -
"""


def cells(table: str) -> list[tuple[str, Trigger, str | None]]:
    header, *lines = table.strip().splitlines()
    return [
        (status, Trigger(trigger), None if cell == "-" else cell)
        for status, *row in map(str.split, lines)
        for trigger, cell in zip(header.split(), row, strict=True)
    ]


def test_the_tables_here_hold_every_pair() -> None:
    assert {cell[:2] for cell in cells(STEPS)} == {(status, trigger) for status in StepStatus for trigger in Trigger}
    assert {cell[:2] for cell in cells(RUNS)} == {(status, trigger) for status in RunStatus for trigger in Trigger}


@pytest.mark.parametrize(("status", "trigger", "expected"), cells(STEPS))
def test_a_step_changes_as_the_table_says_and_not_otherwise(
    status: str, trigger: Trigger, expected: str | None
) -> None:
    row = step_row(status=StepStatus(status))
    assert next_step_status(row.status, trigger) == expected
    check(row, trigger, expected)


@pytest.mark.parametrize(("status", "trigger", "expected"), cells(RUNS))
def test_a_run_changes_as_the_table_says_and_not_otherwise(status: str, trigger: Trigger, expected: str | None) -> None:
    row = run_row(RunStatus(status))
    assert next_run_status(row.status, trigger) == expected
    check(row, trigger, expected)


def check(row: Any, trigger: Trigger, expected: str | None) -> None:
    before = copy(row)
    if expected is None:
        with pytest.raises(AssertionError, match=rf"is {row.status}: it cannot {trigger}"):
            row.advanced(trigger, output="changed")
    else:
        changed = row.advanced(trigger, output="changed")
        assert (changed.status, changed.output) == (expected, "changed")
    assert row == before, "a row is frozen: its next version is another object"


@pytest.mark.parametrize("status", [status for status in StepStatus if status.is_final])
def test_a_final_step_has_no_way_out(status: StepStatus) -> None:
    assert not [pair for pair in STEP_TRANSITIONS if pair[0] is status]


@pytest.mark.parametrize("status", [status for status in RunStatus if status.is_final])
def test_a_final_run_has_no_way_out(status: RunStatus) -> None:
    assert not [pair for pair in RUN_TRANSITIONS if pair[0] is status]


def test_every_step_that_is_not_final_can_be_cancelled_and_every_run_too() -> None:
    """Or else a cancelled run would leave something open."""
    assert all(status.is_final or next_step_status(status, Trigger.CANCEL) for status in StepStatus)
    assert all(status.is_final or next_run_status(status, Trigger.CANCEL) for status in RunStatus)
