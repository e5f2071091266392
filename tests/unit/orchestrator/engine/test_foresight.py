"""What inputs behind one that stops are foreseen to want, so that they need not stop as well."""

from uuid import UUID

import pytest

from orchestrator.engine.decide import apply
from orchestrator.engine.foresight import foreseen
from orchestrator.engine.inputs import (
    BlockDrained,
    CancelRequested,
    ChildEnded,
    Input,
    RetryDue,
    StepEnded,
    StepReached,
    TaskReported,
)
from orchestrator.engine.moment import Moment
from orchestrator.engine.plan import Plan
from orchestrator.engine.state import RunState, Wanted
from schemas.messages import RunResult
from schemas.statuses import ReportStatus, ResultStatus, RunStatus, StepStatus
from tests.unit.orchestrator.engine.scene import (
    NOW,
    RUN,
    TASK,
    agent,
    answer,
    decided,
    known,
    loop,
    plan_of,
    report,
    run_row,
    step_row,
)

PLAN = plan_of(
    before=agent(next_step="loop"),
    loop=loop("x", "y", "choice", execution_mode="parallel"),
    x=agent(),
    y=agent(input_mapping={"own": "${x.output}", "first": "${before.output}", "it": "${loop.item}"}),
    choice={"type": "conditional", "condition": {"expression": "${loop.item} > 1"}, "if_true_step": "z"},
    z=agent(),
)
SECOND = Wanted(steps=frozenset({"loop"}), outcomes=frozenset({"before"}), items=frozenset({("loop", 1)}))


def state_with(step: str, status: StepStatus, plan: Plan = PLAN) -> RunState:
    place = {"parent_step_id": "loop", "branch_name": "1", "position": 1}
    return known(step_row(step, status, **place), plan=plan)


@pytest.mark.parametrize(
    "event",
    [
        TaskReported(report()),
        StepEnded(RUN, "x[1]"),
        ChildEnded(RUN, TASK, RunResult(run_id=TASK, status=ResultStatus.COMPLETED, output=1, error=None)),
    ],
    ids=["report", "step", "child"],
)
def test_a_step_that_ends_leads_to_what_the_next_one_of_its_branch_refers_to(event: Input) -> None:
    assert foreseen(state_with("x[1]", StepStatus.RUNNING), event) == SECOND


def test_what_is_foreseen_is_what_is_wanted_but_for_the_outcome_that_is_yet_to_come() -> None:
    state = state_with("x[1]", StepStatus.COMPLETED)
    wanted = answer(state, StepReached(RUN, "y[1]", after="x[1]"))
    assert wanted == SECOND._replace(outcomes=SECOND.outcomes | {"x[1]"})


@pytest.mark.parametrize("after", [None, "y[1]"])
def test_a_step_that_is_reached_is_foreseen_to_want_what_it_then_wants(after: str | None) -> None:
    state = known(plan=PLAN)
    event = StepReached(RUN, "choice[1]", after=after)
    assert foreseen(state, event) == answer(state, event) != Wanted()


def test_one_that_is_due_and_needs_no_worker_is_entered() -> None:
    waiting = step_row("choice[1]", StepStatus.PENDING, agent_name=None, parent_step_id="loop", due_at=NOW)
    state = known(waiting, plan=PLAN)
    event = RetryDue(RUN, "choice[1]")
    assert foreseen(state, event) == foreseen(state, StepReached(RUN, "choice[1]")) != Wanted()


@pytest.mark.parametrize(
    ("step", "status", "event"),
    [
        ("x[1]", StepStatus.RUNNING, TaskReported(report(ReportStatus.STARTED))),
        ("x[1]", StepStatus.RUNNING, TaskReported(report(ReportStatus.FAILED))),
        ("x[1]", StepStatus.RUNNING, TaskReported(report(task_id=UUID(int=77)))),
        ("z[1]", StepStatus.RUNNING, TaskReported(report())),
        ("x[1]", StepStatus.PENDING, RetryDue(RUN, "x[1]")),
        ("x[1]", StepStatus.PENDING, RetryDue(RUN, "x[2]")),
        ("x[1]", StepStatus.RUNNING, BlockDrained(RUN, "loop")),
        ("x[1]", StepStatus.RUNNING, CancelRequested(RUN, None)),
    ],
    ids=["started", "failed", "unknown task", "last", "attempt", "unknown step", "drained", "cancel"],
)
def test_nothing_is_foreseen_where_no_step_of_the_branch_follows(step: str, status: StepStatus, event: Input) -> None:
    assert foreseen(state_with(step, status), event) == Wanted()


def test_without_its_plan_nothing_of_a_run_is_foreseen() -> None:
    assert foreseen(RunState(run_row()), StepReached(RUN, "x[1]")) == Wanted()


def test_in_a_run_that_took_over_a_step_may_have_its_row_already() -> None:
    state = known(plan=PLAN, run=run_row(RunStatus.RUNNING, retry_of=UUID(int=8)))
    event = StepReached(RUN, "y[1]", after="x[1]")
    assert foreseen(state, event) == answer(state, event)
    assert "y[1]" in foreseen(state, event).steps


def test_the_outcome_of_a_step_that_completes_is_known_from_its_row() -> None:
    state = state_with("x[1]", StepStatus.RUNNING)
    decision = decided(state, TaskReported(report(output={"n": 5})))
    apply(state, decision, Moment(NOW, lambda: UUID(int=1), lambda: 0.0))
    outcome = state.outcome("x[1]")
    assert outcome is not None
    assert (outcome.status, outcome.output, outcome.error) == (StepStatus.COMPLETED, {"n": 5}, None)
