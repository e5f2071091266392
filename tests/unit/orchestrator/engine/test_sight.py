"""What an execution sees."""

from typing import Any

import pytest

from orchestrator.engine.records import StepExecution
from orchestrator.engine.sight import scope_of, wanted_by
from orchestrator.engine.state import Wanted
from schemas.scope import Iteration, Part, Reads, Scope, StepOutcome
from schemas.statuses import StepStatus
from tests.unit.orchestrator.engine.scene import agent, block_row, known, loop, plan_of

# A loop over first and inner, which is a loop over x and y.
PLAN = plan_of(
    start=agent(next_step="outer"),
    outer=loop("first", "inner"),
    first=agent(),
    inner=loop("x", "y"),
    x=agent(),
    y=agent(),
)
ITEM, INDEX = frozenset({Part.ITEM}), frozenset({Part.INDEX})


def reads(*steps: str, **others: Any) -> Reads:
    return Reads(frozenset(steps), **others)


def done(output: Any) -> StepOutcome:
    return StepOutcome(StepStatus.COMPLETED, output, None)


def loop_row(execution: str, total: int) -> StepExecution:
    return block_row(total=total, open=total)._replace(step_id=execution)


# What must be known


def test_an_execution_wants_the_outcomes_of_its_own_iterations() -> None:
    wanted = wanted_by(PLAN, "y[3][0]", reads("x", "first", "start"))
    assert wanted == Wanted(outcomes=frozenset({"x[3][0]", "first[3]", "start"}))


def test_it_wants_the_errors_of_the_blocks_whose_errors_it_reads() -> None:
    wanted = wanted_by(PLAN, "y[3][0]", reads("first", blocks=frozenset({"first"})))
    assert (wanted.outcomes, wanted.errors) == ({"first[3]"}, {"first[3]"})


def test_for_what_its_iteration_is_it_wants_to_see_the_loop() -> None:
    wanted = wanted_by(PLAN, "y[3][0]", reads(loop_parts=INDEX))
    assert wanted == Wanted(steps=frozenset({"inner[3]"}))


@pytest.mark.parametrize(
    ("execution", "loop_", "index"), [("first[3]", "outer", 3), ("inner[3]", "outer", 3), ("y[3][0]", "inner[3]", 0)]
)
def test_for_the_item_it_wants_that_of_the_innermost_loop(execution: str, loop_: str, index: int) -> None:
    wanted = wanted_by(PLAN, execution, reads(loop_parts=ITEM))
    assert (wanted.steps, wanted.items) == ({loop_}, {(loop_, index)})


def test_where_nothing_of_the_iteration_is_read_no_loop_is_wanted() -> None:
    assert wanted_by(PLAN, "y[3][0]", reads()) == Wanted()


@pytest.mark.parametrize("workflow_input", [True, False])
def test_it_wants_the_input_of_the_run_where_it_reads_that(workflow_input: bool) -> None:
    assert wanted_by(PLAN, "start", reads(workflow_input=workflow_input)) == Wanted(run_values=workflow_input)


# What is seen


def test_references_see_the_outcomes_that_exist() -> None:
    state = known()
    state.outcomes |= {"a": done(1), "b": None, "c": done(1)}
    assert scope_of(state, "step", reads("a", "b")) == Scope({}, {"a": done(1)})


def test_outcomes_of_an_execution_are_seen_by_the_ids_of_their_steps() -> None:
    state = known(plan=PLAN)
    state.outcomes |= {"x[3][0]": done("mine"), "first[3]": done("outer"), "start": None}
    scope = scope_of(state, "y[3][0]", reads("x", "first", "start"))
    assert scope == Scope({}, {"x": done("mine"), "first": done("outer")})


def test_the_errors_of_branches_are_seen_with_the_outcome_of_their_block() -> None:
    state = known()
    state.outcomes["block"] = done(None)
    state.errors["block"] = {"a": {"code": "agent_error"}}
    seen = scope_of(state, "step", reads("block", blocks=frozenset({"block"}))).steps["block"]
    assert seen.errors == {"a": {"code": "agent_error"}}


def test_the_iteration_of_the_innermost_loop_is_seen_with_its_item() -> None:
    state = known(loop_row("inner[3]", 5), loop_row("outer", 9), plan=PLAN)
    state.items["inner[3]", 2] = "that"
    assert scope_of(state, "y[3][2]", reads(loop_parts=ITEM)).iteration == Iteration(2, 5, "that")


def test_the_item_is_seen_only_where_it_is_asked_for() -> None:
    state = known(loop_row("outer", 9), plan=PLAN)
    assert scope_of(state, "inner[3]", reads(loop_parts=INDEX)).iteration == Iteration(3, 9, None)


def test_the_item_of_a_loop_that_was_entered_just_now_is_taken_from_its_collection() -> None:
    state = known(loop_row("outer", 2), plan=PLAN)
    state.collections["outer"] = ["zero", "one"]
    assert scope_of(state, "inner[1]", reads(loop_parts=ITEM)).iteration == Iteration(1, 2, "one")


def test_where_nothing_of_the_iteration_is_read_none_is_seen() -> None:
    state = known(loop_row("outer", 9), plan=PLAN)
    assert scope_of(state, "first[3]", reads()).iteration is None
