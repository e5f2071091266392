"""The gate: every answer to a ticket, and how slots are filled."""

from typing import Any

import pytest

from orchestrator.engine import codes
from orchestrator.engine.decide import apply, decide
from orchestrator.engine.decision import Decision, Send, SendTask, Verdict
from orchestrator.engine.inputs import BranchArrived, SlotsFree
from orchestrator.engine.moment import Moment
from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import Line, RunState, Wanted
from schemas.statuses import StepStatus
from tests.unit.orchestrator.engine.scene import (
    NOW,
    RUN,
    answer,
    block_row,
    branch_row,
    counted_ids,
    decided,
    known,
    step_row,
)

ARRIVED = BranchArrived(RUN, "block", "a")
FREE = SlotsFree(RUN, "block")
GATED = block_row(max_parallelism=2)

# Tickets


def test_a_ticket_wants_to_see_its_branch_and_its_block() -> None:
    assert answer(RunState(None), ARRIVED) == Wanted(steps=frozenset({"block", "a"}))


@pytest.mark.parametrize("status", [status for status in StepStatus if status.is_final])
def test_the_ticket_of_a_branch_that_is_over_is_stale(status: StepStatus) -> None:
    decision = decided(known(GATED, branch_row(status=status)), ARRIVED)
    assert decision == Decision(Verdict.STALE, codes.BRANCH_IS_OVER)


@pytest.mark.parametrize("status", [StepStatus.QUEUED, StepStatus.RUNNING])
def test_the_ticket_of_a_branch_that_runs_is_held_and_nothing_is_sent_again(status: StepStatus) -> None:
    decision = decided(known(GATED, branch_row(status=status)), ARRIVED)
    assert decision == Decision(Verdict.DUPLICATE, codes.ALREADY_DISPATCHED)


def test_the_ticket_of_a_branch_that_waits_is_held_and_an_occasion_to_fill_slots() -> None:
    decision = decided(known(GATED, branch_row(status=StepStatus.PENDING)), ARRIVED)
    assert decision == Decision(Verdict.NOT_YET, codes.WAITS_FOR_SLOT, afterwards=FREE)


def test_the_ticket_of_a_step_that_does_not_exist_is_stale() -> None:
    state = known(GATED)
    state.steps["a"] = None
    assert decided(state, ARRIVED) == Decision(Verdict.STALE, codes.BRANCH_IS_OVER)


def test_the_ticket_of_a_step_that_is_no_branch_of_the_block_is_stale() -> None:
    for stranger in (step_row("a", StepStatus.PENDING), branch_row("a", StepStatus.PENDING, parent_step_id="other")):
        assert decided(known(GATED, stranger), ARRIVED) == Decision(Verdict.STALE, codes.BRANCH_IS_OVER)


# Slots


def test_free_slots_want_to_see_the_block_then_those_who_are_next_in_line() -> None:
    assert answer(RunState(None), FREE) == Wanted(steps=frozenset({"block"}))
    later = known(block_row(max_parallelism=2, dispatched=1, passed=1))
    assert answer(later, FREE) == Wanted(waiting=frozenset({("block", 1, 1)}))


def test_slots_are_filled_in_the_order_of_the_definition_whichever_ticket_came_first() -> None:
    decision = decided(gate("abc", max_parallelism=2), FREE)
    block, *sent = decision.steps
    assert [(step.step_id, step.status, step.attempt) for step in sent] == [
        ("a", StepStatus.QUEUED, 1),
        ("b", StepStatus.QUEUED, 1),
    ]
    assert decision.sends == tuple(SendTask(step) for step in sent)
    assert len({step.task_id for step in sent}) == 2
    assert taken(block) == (2, 2)


def test_a_slot_that_one_branch_left_goes_to_one_branch() -> None:
    decision = decided(gate("bc", max_parallelism=2, dispatched=1, passed=1, open=2), FREE)
    block, *sent = decision.steps
    assert [step.step_id for step in sent] == ["b"]
    assert taken(block) == (2, 2)


def test_the_last_branch_goes_through_though_more_slots_are_free() -> None:
    decision = decided(gate("c", max_parallelism=2, passed=2, open=1), FREE)
    block, *sent = decision.steps
    assert [step.step_id for step in sent] == ["c"]
    assert taken(block) == (1, 3)


def test_branches_that_failed_at_birth_are_passed_over_and_the_line_ends_behind_them() -> None:
    decision = decided(gate("b", max_parallelism=2, open=1, failed=2), FREE)
    block, *sent = decision.steps
    assert [step.step_id for step in sent] == ["b"]
    assert taken(block) == (1, 3)


def test_an_empty_line_is_looked_at_once() -> None:
    state = gate("", max_parallelism=2, dispatched=1, passed=1, open=1, failed=2)
    decision = decided(state, FREE)
    assert decision.sends == ()
    apply(state, decision, Moment(NOW, counted_ids(), lambda: 0.0))
    assert decided(state, FREE) == Decision(Verdict.STALE, codes.NO_FREE_SLOT)


@pytest.mark.parametrize("asked", range(1, 5))
def test_asking_again_and_again_never_fills_more_slots_than_there_are(asked: int) -> None:
    state = gate("abc", max_parallelism=2)
    sent: list[Send] = []
    for _ in range(asked):
        decision = decide(state, FREE, Moment(NOW, counted_ids(), lambda: 0.0))
        assert isinstance(decision, Decision)
        sent += decision.sends
        apply(state, decision, Moment(NOW, counted_ids(), lambda: 0.0))
    assert len(sent) == 2


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block_row(max_parallelism=2, dispatched=2, passed=2), id="all taken"),
        pytest.param(block_row(max_parallelism=2, dispatched=1, passed=3), id="nobody waits"),
        pytest.param(block_row(StepStatus.CANCELLED, max_parallelism=2), id="cancelled"),
        pytest.param(block_row(StepStatus.FAILED, max_parallelism=2), id="failed"),
        pytest.param(block_row(), id="no limit"),
        pytest.param(step_row("block"), id="no block"),
    ],
)
def test_without_a_free_slot_nothing_happens(block: StepExecution) -> None:
    assert decided(known(block), FREE) == Decision(Verdict.STALE, codes.NO_FREE_SLOT)


def test_the_slots_of_a_block_that_does_not_exist_are_not_free() -> None:
    state = RunState(None, steps={"block": None})
    assert decided(state, FREE) == Decision(Verdict.STALE, codes.NO_FREE_SLOT)


def gate(waiting: str, **counters: Any) -> RunState:
    """Return the state of a gated block of three, in which the branches *waiting* are next in line."""
    block = block_row(**counters)
    state = known(block)
    assert block.branches is not None
    line = tuple(branch_row(name, StepStatus.PENDING) for name in waiting)
    state.put_line("block", Line(block.branches.passed, block.branches.free_slots, line[: block.branches.free_slots]))
    return state


def taken(block: StepExecution) -> tuple[int, int]:
    assert block.branches is not None
    return block.branches.dispatched, block.branches.passed
