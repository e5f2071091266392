"""How an attempt starts."""

from datetime import timedelta

import pytest

from orchestrator.engine import codes
from orchestrator.engine.attempt import TIMEOUT_GRACE, dispatched, due_time, new_step
from schemas.scope import Scope, StepOutcome
from schemas.statuses import JoinPolicy, StepStatus
from tests.unit.orchestrator.engine.scene import (
    NOW,
    after,
    agent,
    agent_plan,
    branch_row,
    counted_ids,
    parallel,
    plan_of,
    run_row,
    step_row,
)

NOTHING = Scope({}, {})


def test_a_new_step_waits_with_the_input_that_its_template_gives() -> None:
    plan = plan_of(
        first=agent(next_step="second"),
        second=agent("write", input_mapping={"about": "${workflow.input.topic}", "from": "${first.output.n}"}),
    )
    scope = Scope({"topic": "rain"}, {"first": StepOutcome(StepStatus.COMPLETED, {"n": 7}, None)})
    step = new_step(run_row(), agent_plan(plan, "second"), "second", None, scope, NOW)
    assert (step.status, step.attempt, step.task_id) == (StepStatus.PENDING, 0, None)
    assert (step.agent_name, step.input, step.created_at) == ("write", {"about": "rain", "from": 7}, NOW)
    assert (step.parent_step_id, step.branch_name, step.join_policy) == (None, None, None)


def test_a_new_branch_names_its_block_and_its_join_policy() -> None:
    plan = plan_of(block=parallel("a", "b", timeout_seconds=9.0), a=agent(), b=agent())
    step = new_step(run_row(), agent_plan(plan, "b"), "b", "block", NOTHING, NOW)
    assert (step.parent_step_id, step.branch_name, step.join_policy) == ("block", "b", JoinPolicy.ALL)
    assert (step.position, step.timeout_seconds) == (1, 9.0)


def test_a_step_whose_input_leads_nowhere_is_born_failed_with_the_reference_named() -> None:
    plan = plan_of(alone=agent(input_mapping={"x": "About ${workflow.input.topic}"}))
    step = new_step(run_row(), agent_plan(plan, "alone"), "alone", None, Scope({"title": 1}, {}), NOW)
    assert (step.status, step.finished_at, step.input, step.task_id) == (StepStatus.FAILED, NOW, None, None)
    assert step.error is not None
    assert step.error.code == codes.REFERENCE_BROKEN
    assert step.error.details == {"reference": "${workflow.input.topic}"}
    assert '"topic"' in step.error.message
    assert '"title"' in step.error.message


def test_dispatching_gives_each_attempt_its_number_and_a_task_id_of_its_own() -> None:
    new_id = counted_ids()
    waiting = branch_row(status=StepStatus.PENDING)
    first, second = dispatched(waiting, NOW, new_id), dispatched(waiting, NOW, new_id)
    assert (first.status, first.attempt, first.queued_at) == (StepStatus.QUEUED, 1, NOW)
    assert first.task_id is not None
    assert second.task_id not in {None, first.task_id}


def test_an_attempt_that_is_under_way_is_not_dispatched_again() -> None:
    with pytest.raises(AssertionError, match="cannot dispatch"):
        dispatched(step_row(status=StepStatus.QUEUED), NOW, counted_ids())


def test_an_attempt_is_due_when_its_worker_had_time_to_end_it_itself() -> None:
    assert due_time(step_row(timeout_seconds=5.0), NOW, NOW) == NOW + timedelta(seconds=5) + TIMEOUT_GRACE
    assert timedelta(0) < TIMEOUT_GRACE


def test_an_attempt_without_a_timeout_is_never_due() -> None:
    assert due_time(step_row(timeout_seconds=None), NOW, NOW) is None


def test_a_silent_attempt_is_due_when_its_patience_is_over_or_its_time() -> None:
    row = step_row(timeout_seconds=60.0, heartbeat_timeout_seconds=5.0)
    assert due_time(row, NOW, after(30)) == after(35)
    assert due_time(row, NOW, after(68)) == after(60) + TIMEOUT_GRACE
    assert due_time(row._replace(timeout_seconds=None), NOW, after(68)) == after(73)


def test_a_task_is_due_when_no_worker_has_taken_it_in_time() -> None:
    waiting = step_row(status=StepStatus.PENDING, attempt=1, queue_timeout_seconds=7.0)
    assert dispatched(waiting, NOW, counted_ids()).due_at == after(7)
    assert dispatched(waiting._replace(queue_timeout_seconds=None), NOW, counted_ids()).due_at is None
