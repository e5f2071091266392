"""What is known of a run, and what is missing."""

from dataclasses import replace

import pytest

from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import Line, RunState, Wanted
from schemas.scope import StepOutcome
from schemas.statuses import StepStatus
from tests.unit.orchestrator.engine.scene import NOW, OTHER, TASK, block_row, branch_row, known, run_row

PART = Wanted(
    tasks=frozenset({TASK}),
    ending=frozenset({TASK}),
    steps=frozenset({"a"}),
    outcomes=frozenset({"a"}),
    failures=frozenset({"block"}),
    waiting=frozenset({("block", 0, 1)}),
    items=frozenset({("loop", 0)}),
    plan=True,
)
OTHER_PART = Wanted(tasks=frozenset({OTHER}), steps=frozenset({"b"}), run_values=True)


def test_only_what_is_not_known_yet_is_missing_and_an_absent_row_is_known() -> None:
    state = RunState(run_row(), steps={"a": None}, tasks={TASK: None})
    wanted = Wanted(steps=frozenset({"a", "b"}), tasks=frozenset({TASK, OTHER}), plan=True)
    assert state.missing(wanted) == Wanted(steps=frozenset({"b"}), tasks=frozenset({OTHER}), plan=True)
    assert not state.missing(Wanted(steps=frozenset({"a"})))


def test_two_wants_together_want_all_that_either_does() -> None:
    both = Wanted.all_of([PART, OTHER_PART])
    assert both.tasks == {TASK, OTHER}
    assert both.steps == {"a", "b"}
    assert (both.plan, both.run_values) == (True, True)
    assert (both.ending, both.outcomes) == (PART.ending, PART.outcomes)
    assert (both.failures, both.waiting, both.items) == (PART.failures, PART.waiting, PART.items)
    assert both
    assert not Wanted()


def test_an_outcome_comes_with_the_errors_of_its_branches_where_those_are_known() -> None:
    state = known()
    failed = StepOutcome(StepStatus.FAILED, 1, None)
    state.outcomes |= {"a": failed, "b": failed, "c": None}
    state.errors |= {"a": {"x": {"code": "agent_error"}}, "c": {}}
    assert state.outcome("a") == replace(failed, errors={"x": {"code": "agent_error"}})
    assert state.outcome("b") is failed
    assert state.outcome("c") is None


def test_the_items_of_a_loop_that_was_entered_just_now_are_known_and_others_are_asked_for() -> None:
    state = known()
    wanted = Wanted(items=frozenset({("new", 1), ("old", 0), ("old", 1)}))
    state.collections["new"] = ["n0", "n1"]
    state.items["old", 0] = "o0"
    assert state.missing(wanted) == Wanted(items=frozenset({("old", 1)}))
    assert [state.item("new", 1), state.item("old", 0)] == ["n1", "o0"]


# Lines at gates


@pytest.mark.parametrize("count", [1, 2])
def test_those_who_are_next_in_line_are_known_up_to_the_number_that_was_asked_for(count: int) -> None:
    state = in_line(1, 2, "bc")
    assert ids(state.next_in_line("block", 1, count)) == ["b", "c"][:count]
    assert not state.missing(Wanted(waiting=frozenset({("block", 1, count)})))


def test_a_line_that_is_shorter_than_asked_for_is_known_to_end() -> None:
    assert ids(in_line(1, 5, "bc").next_in_line("block", 1, 4)) == ["b", "c"]


@pytest.mark.parametrize(("first", "count", "rest"), [(2, 1, ["c"]), (2, 2, ["c", "d"]), (3, 1, ["d"])])
def test_of_a_line_that_has_moved_on_the_rest_is_known(first: int, count: int, rest: list[str]) -> None:
    assert ids(in_line(1, 3, "bcd").next_in_line("block", first, count)) == rest


def test_a_line_may_have_gaps_where_branches_failed_at_birth() -> None:
    assert ids(in_line(1, 2, "bd").next_in_line("block", 3, 1)) == ["d"]


def test_a_line_that_ends_has_ended_for_those_who_come_later_too() -> None:
    assert ids(in_line(1, 5, "bc").next_in_line("block", 3, 2)) == []


@pytest.mark.parametrize(
    ("block_id", "first", "count"),
    [
        pytest.param("block", 1, 3, id="more than were asked for"),
        pytest.param("block", 2, 2, id="more than are left"),
        pytest.param("block", 3, 1, id="a line that is used up"),
        pytest.param("block", 0, 1, id="one that begins earlier"),
        pytest.param("other", 1, 1, id="another gate"),
    ],
)
def test_whatever_else_about_a_line_is_unknown(block_id: str, first: int, count: int) -> None:
    state = in_line(1, 2, "bc")
    assert state.next_in_line(block_id, first, count) is None
    wanted = Wanted(waiting=frozenset({(block_id, first, count)}))
    assert state.missing(wanted) == wanted


@pytest.mark.parametrize(
    ("asked", "needed", "next_time"), [(1, 1, 2), (30, 2, 60), (80, 1, 100), (100, 1, 100), (4, 150, 150)]
)
def test_who_comes_back_to_a_line_asks_for_more_of_it(asked: int, needed: int, next_time: int) -> None:
    assert in_line(0, asked, "ab").asked_in_line("block", needed) == next_time
    assert known(block_row()).asked_in_line("block", needed) == needed


def test_the_branches_in_a_line_are_known_rows() -> None:
    state = in_line(0, 2, "ab")
    assert state.steps["a"] == branch_row("a", StepStatus.PENDING)


def test_cancelling_spares_what_is_final_or_absent() -> None:
    done = branch_row("a", StepStatus.FAILED)
    state = known(block_row(), done)
    state.steps["b"] = None
    state.cancel_open_steps(NOW)
    assert state.steps["a"] is done
    assert state.steps["b"] is None
    block = state.steps["block"]
    assert block is not None
    assert block.status is StepStatus.CANCELLED


def in_line(first: int, asked: int, names: str) -> RunState:
    state = known(block_row(max_parallelism=2))
    state.put_line("block", Line(first, asked, tuple(branch_row(name, StepStatus.PENDING) for name in names)))
    return state


def ids(steps: tuple[StepExecution, ...] | None) -> list[str]:
    assert steps is not None
    return [step.step_id for step in steps]
