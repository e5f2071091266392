"""What a batch loads beforehand, and what the next input of a transaction meets."""

import pytest

from orchestrator.engine import codes
from orchestrator.engine.decide import apply, first_wanted
from orchestrator.engine.decision import Decision, Verdict
from orchestrator.engine.inputs import (
    AttemptOverdue,
    BranchArrived,
    CancelRequested,
    ExternalInput,
    SlotsFree,
    TaskMissing,
    TaskReported,
    TaskUndeliverable,
)
from orchestrator.engine.moment import Moment
from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import RunState, RunValues, Wanted
from schemas.scope import StepOutcome
from schemas.statuses import ReportStatus, StepStatus
from tests.unit.orchestrator.engine.scene import (
    NOW,
    OTHER,
    RUN,
    TASK,
    answer,
    block_row,
    branch_row,
    counted_ids,
    report,
    requested,
    run_row,
    step_row,
)

MOMENT = Moment(NOW, counted_ids(), lambda: 0.0)


@pytest.mark.parametrize(
    "event",
    [
        *(TaskReported(report(status)) for status in ReportStatus),
        BranchArrived(RUN, "block", "a"),
        SlotsFree(RUN, "block"),
        AttemptOverdue(RUN, "a", TASK),
        TaskUndeliverable(RUN, "a", TASK, codes.UNKNOWN_AGENT),
        TaskMissing(RUN, "a", TASK, NOW),
        CancelRequested(RUN, None),
    ],
)
def test_what_is_loaded_beforehand_is_what_the_decision_wants_first(event: ExternalInput) -> None:
    wanted = answer(RunState(run_row()), event)
    beforehand = first_wanted(event)
    if isinstance(wanted, Wanted):
        assert wanted == beforehand._replace(ending=frozenset(), plan=False)
    else:
        assert not beforehand


@pytest.mark.parametrize("status", ReportStatus)
def test_only_the_end_of_an_attempt_is_a_reason_to_look_who_is_next(status: ReportStatus) -> None:
    task = frozenset({TASK})
    ends = status in {ReportStatus.COMPLETED, ReportStatus.FAILED}
    wanted = Wanted(tasks=task, ending=task if ends else frozenset(), plan=ends)
    assert first_wanted(TaskReported(report(status))) == wanted


def test_a_request_loads_nothing_beforehand() -> None:
    assert not first_wanted(requested())


def test_a_new_run_is_known_with_its_input() -> None:
    state = RunState(None)
    apply(state, Decision(Verdict.APPLIED, run=run_row(), created_run=requested(input=[1])), MOMENT)
    assert state.run == run_row()
    assert state.run_values == RunValues([1], None, None)


def test_a_changed_row_is_known_by_its_id_and_its_task_and_its_outcome_must_be_looked_up_again() -> None:
    state = RunState(run_row())
    state.outcomes["a"] = StepOutcome(StepStatus.QUEUED, None, None)
    row = branch_row(task_id=OTHER)
    apply(state, Decision(Verdict.APPLIED, steps=(row,)), MOMENT)
    assert state.steps["a"] is row
    assert state.tasks[OTHER] == "a"
    assert state.missing(Wanted(outcomes=frozenset({"a"})))


@pytest.mark.parametrize("row", [step_row(), block_row()])
def test_a_decision_that_changes_no_row_leaves_the_state_as_it_was(row: StepExecution) -> None:
    state = RunState(run_row(), steps={row.step_id: row})
    apply(state, Decision(Verdict.STALE), MOMENT)
    assert state == RunState(run_row(), steps={row.step_id: row})
