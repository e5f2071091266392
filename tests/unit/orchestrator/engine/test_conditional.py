"""A conditional step: what it finds, where it leads, and what is skipped."""

from typing import Any

import pytest

from orchestrator.engine import codes
from orchestrator.engine.inputs import StepEnded, StepReached
from orchestrator.engine.plan import ConditionalPlan, Plan
from orchestrator.engine.state import RunValues, Wanted
from schemas.references import StepOutcome
from schemas.statuses import StepStatus
from tests.unit.orchestrator.engine.scene import NOW, RUN, agent, answer, decided, known, parallel, plan_of


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


def conditional(plan: Plan) -> ConditionalPlan:
    step = plan.steps["choice"]
    assert isinstance(step, ConditionalPlan)
    return step


def skipping(if_true: str, if_false: str) -> tuple[str | None, str | None]:
    """Return what is skipped when the condition holds, and when it does not, of a choice between two of these steps."""
    condition = {"expression": "true"}
    plan = plan_of(
        choice={
            "type": "conditional",
            "condition": condition,
            "if_true_step": if_true,
            "if_false_step": if_false,
            "next_step": "end",
        },
        yes=agent(next_step="yes2", on_failure="rescue"),
        yes2=agent(on_failure="rescue"),
        rescue=agent(),
        end=agent(),
    )
    return conditional(plan).skipped_if_true, conditional(plan).skipped_if_false


@pytest.mark.parametrize(("n", "holds", "taken", "other"), [(2, True, "yes", "no"), (1, False, "no", "yes")])
def test_it_leads_into_one_path_and_the_other_is_skipped(n: int, holds: bool, taken: str, other: str) -> None:
    decision = reached(choosing(), n)
    choice, skipped = decision.steps
    assert (choice.status, choice.output) == (StepStatus.COMPLETED, {"result": holds, "step": taken})
    assert (choice.started_at, choice.finished_at) == (NOW, NOW)
    assert (skipped.step_id, skipped.status, skipped.finished_at) == (other, StepStatus.SKIPPED, NOW)
    assert decision.then == (StepReached(RUN, taken),)


def test_behind_a_path_the_run_goes_on_where_the_conditional_says() -> None:
    steps = choosing().steps
    assert {name: steps[name].next_step for name in ("yes", "yes2", "rescue", "no", "end", "a")} == {
        "yes": "yes2", "yes2": "end", "rescue": "end", "no": "end", "end": None, "a": None,
    }  # fmt: skip


def test_where_a_path_is_empty_the_run_goes_on_at_once() -> None:
    choice = {"type": "conditional", "condition": {"expression": "false"}, "if_true_step": "yes", "next_step": "end"}
    plan = plan_of(choice=choice, yes=agent(), end=agent())
    decision = reached(plan, 0)
    assert (decision.steps[0].output, decision.then) == ({"result": False, "step": None}, (StepEnded(RUN, "choice"),))
    assert conditional(plan).next_step == "end"
    assert decision.steps[1].step_id == "yes"


@pytest.mark.parametrize(
    ("if_true", "if_false", "skipped"),
    [
        ("yes", "end", (None, "yes")),  # the run comes to the end anyhow
        ("yes", "rescue", (None, "yes")),  # and to the handler where a step of the other path fails
        ("yes", "yes2", (None, "yes")),
        ("yes", "yes", (None, None)),
    ],
)
def test_a_step_that_may_still_run_is_not_skipped(
    if_true: str, if_false: str, skipped: tuple[str | None, str | None]
) -> None:
    assert skipping(if_true, if_false) == skipped


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
    assert decided(state, StepReached(RUN, "choice")).then == (StepReached(RUN, "end"),)


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
