"""A conditional step: what it finds, where it leads, and what is skipped."""

from typing import Any

import pytest

from orchestrator.engine import codes
from orchestrator.engine.inputs import StepEnded, StepReached
from orchestrator.engine.plan import Plan
from orchestrator.engine.state import RunValues, Wanted
from schemas.references import StepOutcome
from schemas.statuses import StepStatus
from tests.unit.orchestrator.engine.scene import (
    NOW,
    RUN,
    after,
    agent,
    answer,
    block_row,
    branch_row,
    conditional_plan,
    decided,
    known,
    parallel,
    plan_of,
)


def choosing(expression: str = "${workflow.input.n} > 1", **step: Any) -> Plan:
    choice = {"type": "conditional", "condition": {"expression": expression}, "next_step": "end"}
    paths = {"if_true_step": "yes", "if_false_step": "no"} | step
    return plan_of(
        one=agent(next_step="choice"),
        choice=choice | paths,
        yes=agent(next_step="yes2", on_failure="rescue"),
        yes2=agent(),
        rescue=agent(),
        no=parallel("a"),
        a=agent(),
        end=agent(),
    )


def reached(plan: Plan, n: Any) -> Any:
    state = known(plan=plan)
    state.run_values = RunValues({"n": n}, None, None)
    return decided(state, StepReached(RUN, "choice"))


@pytest.mark.parametrize(("n", "holds", "taken", "other"), [(2, True, "yes", "no"), (1, False, "no", "yes")])
def test_it_leads_into_one_path_and_the_other_is_skipped(n: int, holds: bool, taken: str, other: str) -> None:
    decision = reached(choosing(), n)
    choice, skipped = decision.steps
    assert (choice.status, choice.output) == (StepStatus.COMPLETED, {"result": holds, "step": taken})
    assert (choice.started_at, choice.finished_at) == (NOW, NOW)
    assert (skipped.step_id, skipped.status, skipped.finished_at) == (other, StepStatus.SKIPPED, NOW)
    assert decision.then == (StepReached(RUN, taken, after="choice"),)


def test_where_a_path_is_empty_the_run_goes_on_at_once() -> None:
    choice = {"type": "conditional", "condition": {"expression": "false"}, "if_true_step": "yes", "next_step": "end"}
    plan = plan_of(choice=choice, yes=agent(), end=agent())
    decision = reached(plan, 0)
    assert (decision.steps[0].output, decision.then) == ({"result": False, "step": None}, (StepEnded(RUN, "choice"),))
    assert conditional_plan(plan).next_step == "end"
    assert decision.steps[1].step_id == "yes"


def test_it_asks_for_the_outcomes_that_it_needs_and_for_the_errors_of_branches() -> None:
    condition = {"expression": "${block.errors.a.code} == null and ${a.status} == 'COMPLETED'"}
    plan = plan_of(
        block=parallel("a", next_step="choice", join_policy="any"),
        a=agent(),
        choice={"type": "conditional", "condition": condition, "if_true_step": "end"},
        end=agent(),
    )
    state = known(plan=plan)
    wanted = answer(state, StepReached(RUN, "choice"))
    assert wanted == Wanted(outcomes=frozenset({"block", "a"}), errors=frozenset({"block"}))
    state.outcomes |= {name: StepOutcome(StepStatus.COMPLETED, None, None) for name in ("block", "a")}
    state.errors["block"] = {}
    assert decided(state, StepReached(RUN, "choice")).then == (StepReached(RUN, "end", after="choice"),)


def in_branch(**block: Any) -> Plan:
    """Return the plan of a block with the branches a and choice, which leads to yes or no and then to z."""
    branches = {"a": {"steps": ["a"]}, "b": {"steps": ["choice", "z"]}}
    choice = {
        "type": "conditional", "condition": {"expression": "true"}, "if_true_step": "yes", "if_false_step": "no",
    }  # fmt: skip
    return plan_of(
        block={"type": "fork_join", "fork_join_config": {"branches": branches, **block}},
        choice=choice,
        **{name: agent() for name in ("a", "yes", "no", "z")},
    )


def test_in_a_branch_it_and_what_it_skips_stand_in_the_block() -> None:
    state = known(block_row(), plan=in_branch())
    state.steps["choice"] = None
    decision = decided(state, StepReached(RUN, "choice"))
    assert [(step.step_id, step.status, step.parent_step_id, step.branch_name) for step in decision.steps] == [
        ("choice", StepStatus.COMPLETED, "block", "b"),
        ("no", StepStatus.SKIPPED, "block", "b"),
    ]
    assert decision.then == (StepReached(RUN, "yes", after="choice"),)


def test_behind_a_gate_it_goes_on_with_the_row_that_waited() -> None:
    waiting = branch_row("choice", StepStatus.PENDING, agent_name=None, created_at=after(-9))
    state = known(block_row(max_parallelism=1), waiting, plan=in_branch(max_parallelism=1))
    choice = decided(state, StepReached(RUN, "choice")).steps[0]
    assert (choice.status, choice.created_at, choice.started_at) == (StepStatus.COMPLETED, after(-9), NOW)


def test_it_takes_the_time_limit_of_its_branch_from_the_step_before() -> None:
    before = branch_row("a", StepStatus.COMPLETED, branch_due_at=after(30))
    state = known(block_row(), before, plan=in_branch())
    state.steps["choice"] = None
    assert decided(state, StepReached(RUN, "choice", after="a")).steps[0].branch_due_at == after(30)


@pytest.mark.parametrize(
    ("expression", "code"),
    [("${workflow.input.n} > 'x'", codes.CONDITION_FAILED), ("${workflow.input.m} > 1", codes.REFERENCE_BROKEN)],
)
def test_a_condition_that_cannot_be_evaluated_fails_the_step(expression: str, code: str) -> None:
    decision = reached(choosing(expression), 1)
    (choice,) = decision.steps
    assert choice.error is not None
    assert (choice.status, choice.error.code, choice.output) == (StepStatus.FAILED, code, None)
    assert decision.then == (StepEnded(RUN, "choice"),)
