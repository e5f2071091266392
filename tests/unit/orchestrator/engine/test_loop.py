"""A loop: what it goes through, how its iterations start, and what those come to."""

from typing import Any

import pytest

from orchestrator.engine import codes
from orchestrator.engine.block import fork
from orchestrator.engine.decide import apply
from orchestrator.engine.decision import (
    Decision,
    Fork,
    Join,
    JoinForm,
    Send,
    SendCancellation,
    SendTask,
    SendTicket,
    Ticket,
    Verdict,
)
from orchestrator.engine.inputs import (
    BlockDrained,
    BlockForked,
    BranchArrived,
    CancelRequested,
    LineClosed,
    RetryDue,
    SlotsFree,
    StepEnded,
    StepReached,
    TaskReported,
)
from orchestrator.engine.moment import Moment
from orchestrator.engine.plan import Plan
from orchestrator.engine.records import Branches, StepExecution
from orchestrator.engine.state import FailedBranch, Line, RunState, RunValues, Wanted
from schemas.references import StepOutcome
from schemas.statuses import ReportStatus, RunStatus, StepStatus
from tests.unit.orchestrator.engine.scene import (
    ERROR,
    NOW,
    RUN,
    after,
    agent,
    answer,
    counted_ids,
    decided,
    known,
    loop,
    parallel,
    plan_of,
    report,
    step_row,
)

PENDING, QUEUED, RUNNING = StepStatus.PENDING, StepStatus.QUEUED, StepStatus.RUNNING
COMPLETED, FAILED, CANCELLED = StepStatus.COMPLETED, StepStatus.FAILED, StepStatus.CANCELLED
ITEM = {"it": "${loop.item}"}
NAMED = {"it": "${loop.item.name}"}
PARALLEL = {"execution_mode": "parallel"}
LOOP = "loop"


def looping(*body: str, steps: dict[str, Any] | None = None, **config: Any) -> Plan:
    """Return the plan of a loop over the run's input; its body is x unless told otherwise."""
    body = body or ("x",)
    given = {name: agent() for name in body} | (steps or {})
    return plan_of(loop=loop(*body, **({"collection": "${workflow.input}"} | config)), **given)


def loop_row(status: StepStatus = RUNNING, *, step_id: str = LOOP, **fields: Any) -> StepExecution:
    """Return the row of a loop over three items, all of them open."""
    given = {"total": 3, "open": 3, "failed": 0, "dispatched": 0, "passed": 0, "max_parallelism": None}
    counters = Branches(**(given | {name: fields.pop(name) for name in list(fields) if name in Branches._fields}))
    return StepExecution(RUN, step_id, status, branches=counters, **fields)


def iteration(index: int, status: StepStatus = QUEUED, step: str = "x", **fields: Any) -> StepExecution:
    """Return the row of a step of an iteration."""
    place = {"parent_step_id": LOOP, "branch_name": str(index), "position": index}
    return step_row(f"{step}[{index}]", status, **(place | fields))


def entered(plan: Plan, items: Any, step_id: str = LOOP) -> Decision:
    state = known(plan=plan)
    state.run_values = RunValues(items, None, None)
    return decided(state, StepReached(RUN, step_id))


def forked(plan: Plan, items: Any) -> list[tuple[StepExecution, Send | None]]:
    """Enter the loop, and return what its fork yields."""
    state = known(plan=plan)
    state.run_values = RunValues(items, None, None)
    decision = decided(state, StepReached(RUN, LOOP))
    assert decision.fork is not None
    apply(state, decision, Moment(NOW, counted_ids(), lambda: 0.0))
    return list(fork(state, decision.fork, NOW, counted_ids()))


def counters(decision: Decision, step_id: str = LOOP) -> dict[str, int]:
    """Return what a loop's row counts after a decision."""
    (row,) = [step for step in decision.steps if step.step_id == step_id]
    assert row.branches is not None
    return {name: getattr(row.branches, name) for name in ("open", "failed", "dispatched", "passed")}


# Entering


def test_it_is_entered_with_as_many_branches_as_there_are_items() -> None:
    decision = entered(looping(), ["a", "b", "c"])
    (row,) = decision.steps
    assert (row.status, row.started_at, row.join_policy) == (RUNNING, NOW, None)
    assert row.branches == Branches(3, open=3, failed=0, dispatched=0, passed=0, max_parallelism=1)
    assert decision.fork == Fork(LOOP, ["a", "b", "c"], keeps_items=False)
    assert decision.then == ()


def test_a_collection_in_the_document_needs_no_reference() -> None:
    plan = looping(collection=[1, {"n": "${workflow.input.n}"}])
    assert entered(plan, {"n": 2}).fork == Fork(LOOP, [1, {"n": 2}])


@pytest.mark.parametrize(
    ("mapping", "second", "keeps"), [({}, ITEM, True), (ITEM, {}, False), ({}, {"it": "${loop.index}"}, False)]
)
def test_its_items_are_kept_for_steps_that_are_entered_later(mapping: Any, second: Any, keeps: bool) -> None:
    plan = looping("x", "y", steps={"x": agent(input_mapping=mapping), "y": agent(input_mapping=second)})
    decision = entered(plan, [1])
    assert decision.fork is not None
    assert decision.fork.keeps_items is keeps


@pytest.mark.parametrize(
    ("items", "what"),
    [({"a": 1}, "an object"), ("abc", 'the string "abc"'), (5, "the number 5"), (None, "null"), (True, "true")],
)
def test_only_an_array_can_be_gone_through(items: Any, what: str) -> None:
    decision = entered(looping(), items)
    (row,) = decision.steps
    assert row.error is not None
    assert (row.status, row.error.code, row.finished_at) == (FAILED, codes.NOT_A_COLLECTION, NOW)
    assert row.error.message.startswith("the collection is ")
    assert what.split()[0] in row.error.message or what in row.error.message
    assert (decision.fork, decision.then) == (None, (StepEnded(RUN, LOOP),))


@pytest.mark.parametrize(("items", "fits"), [([1, 2], True), ([1, 2, 3], False)])
def test_a_collection_may_be_too_long(items: list[int], fits: bool) -> None:
    decision = entered(looping(max_iterations=2), items)
    if fits:
        assert decision.fork == Fork(LOOP, items)
        return
    error = decision.steps[0].error
    assert error is not None
    assert (error.code, error.details) == (codes.TOO_MANY_ITERATIONS, {"total_count": 3})
    assert error.message == "the collection has 3 items, and max_iterations allows 2"
    assert decision.then == (StepEnded(RUN, LOOP),)


def test_a_collection_that_leads_nowhere_fails_it() -> None:
    error = entered(looping(collection="${workflow.input.items}"), {"itmes": []}).steps[0].error
    assert error is not None
    assert (error.code, error.details) == (codes.REFERENCE_BROKEN, {"reference": "${workflow.input.items}"})


def test_a_run_that_fails_with_its_collection_says_which_step_failed() -> None:
    state = known(plan=looping())
    state.run_values = RunValues(5, None, None)
    apply(state, decided(state, StepReached(RUN, LOOP)), Moment(NOW, counted_ids(), lambda: 0.0))
    state.failures[LOOP] = ()
    run = decided(state, StepEnded(RUN, LOOP)).run
    assert run is not None
    assert run.error is not None
    assert (run.status, run.error.details) == (
        RunStatus.FAILED,
        {
            "step_id": LOOP,
            "failed_count": 1,
            "failed_steps": [
                {
                    "step_id": LOOP,
                    "code": codes.NOT_A_COLLECTION,
                    "message": "the collection is a number; a loop goes through an array",
                }
            ],
        },
    )


@pytest.mark.parametrize("on_error", ["stop", "continue", "collect"])
@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_an_empty_collection_is_completed_at_once(on_error: str, mode: str) -> None:
    plan = looping(on_error=on_error, execution_mode=mode, max_parallelism=1)
    state = known(plan=plan)
    state.run_values = RunValues([], None, None)
    moment = Moment(NOW, counted_ids(), lambda: 0.0)
    apply(state, decided(state, StepReached(RUN, LOOP)), moment)
    assert list(fork(state, Fork(LOOP, []), NOW, counted_ids())) == []
    decision = decided(state, BlockForked(RUN, LOOP, 0))
    assert decision.then == (BlockDrained(RUN, LOOP),)
    apply(state, decision, moment)
    decision = decided(state, BlockDrained(RUN, LOOP))
    assert decision.steps[0].status is COMPLETED
    assert decision.join == Join(LOOP, JoinForm.ITERATIONS, around=None)
    assert decision.then == (StepEnded(RUN, LOOP),)


# Forking


def test_each_iteration_is_a_branch_with_its_number_as_name_and_position() -> None:
    mapping = {
        "it": "${loop.item}",
        "at": "${loop.index}/${loop.total}",
        "ends": ["${loop.is_first}", "${loop.is_last}"],
    }
    rows = forked(looping(steps={"x": agent(input_mapping=mapping)}, **PARALLEL), ["a", "b", "c"])
    assert [(row.step_id, row.position, row.branch_name, row.parent_step_id, row.input) for row, _ in rows] == [
        ("x[0]", 0, "0", LOOP, {"it": "a", "at": "0/3", "ends": [True, False]}),
        ("x[1]", 1, "1", LOOP, {"it": "b", "at": "1/3", "ends": [False, False]}),
        ("x[2]", 2, "2", LOOP, {"it": "c", "at": "2/3", "ends": [False, True]}),
    ]
    assert all(row.status is QUEUED and send == SendTask(row) for row, send in rows)


@pytest.mark.parametrize(
    ("config", "gated"),
    [
        ({}, True),
        ({"max_parallelism": 9}, True),
        (PARALLEL, False),
        ({**PARALLEL, "max_parallelism": 2}, True),
        ({**PARALLEL, "max_parallelism": 3}, False),
    ],
)
def test_iterations_wait_at_a_gate_where_not_all_may_run_at_once(config: dict[str, Any], gated: bool) -> None:
    for row, send in forked(looping(**config), [1, 2, 3]):
        assert row.status is (PENDING if gated else QUEUED)
        assert send == (SendTicket(row) if gated else SendTask(row))


@pytest.mark.parametrize(
    ("config", "status", "waits"),
    [
        ({}, PENDING, True),
        ({"on_error": "continue"}, FAILED, False),
        ({"on_error": "collect"}, FAILED, False),
        ({"on_error": "stop", **PARALLEL}, FAILED, False),
    ],
)
def test_only_behind_the_gate_of_a_loop_that_stops_does_a_broken_input_wait_for_its_turn(
    config: dict[str, Any], status: StepStatus, waits: bool
) -> None:
    plan = looping(steps={"x": agent(input_mapping=NAMED)}, **config)
    rows = forked(plan, [{"name": "a"}, {}, {"name": "c"}])
    broken, send = rows[1]
    assert broken.error is not None
    assert (broken.status, broken.error.code) == (status, codes.REFERENCE_BROKEN)
    assert broken.finished_at == (None if waits else NOW)
    assert send == (SendTicket(broken) if waits else None)


@pytest.mark.parametrize("kind", ["choice", "block", "inner"])
@pytest.mark.parametrize("gated", [False, True])
def test_a_body_may_begin_with_a_step_that_needs_no_worker(kind: str, gated: bool) -> None:
    steps: dict[str, Any] = {
        "choice": {"type": "conditional", "condition": {"expression": "true"}, "if_true_step": "z"},
        "block": parallel("z"),
        "inner": loop("z", collection="${loop.item}"),
    }
    plan = looping(kind, steps={kind: steps[kind], "z": agent()}, **({} if gated else PARALLEL))
    rows = forked(plan, [[1], [2]])
    names = [f"{kind}[0]", f"{kind}[1]"]
    limit = 1 if gated else None
    state = known(loop_row(total=2, open=2, max_parallelism=limit), plan=plan)
    decision = decided(state, BlockForked(RUN, LOOP, 0))
    if gated:
        assert [(row.step_id, row.status, row.agent_name, send) for row, send in rows] == [
            (name, PENDING, None, SendTicket(row)) for name, (row, _) in zip(names, rows, strict=True)
        ]
        assert decision.then == ()
    else:
        assert rows == []
        assert decision.then == tuple(StepReached(RUN, name) for name in names)


def test_of_many_iterations_that_need_no_worker_only_so_many_are_entered_at_once_and_the_others_are_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orchestrator.engine.block.ENTERED_AT_ONCE", 2)
    choice = {"type": "conditional", "condition": {"expression": "${loop.item} > 1"}, "if_true_step": "z"}
    plan = looping("choice", steps={"choice": choice, "z": agent()}, **PARALLEL)
    rows = forked(plan, [0, 1, 2, 3])
    assert [(row.step_id, row.status, row.due_at, send) for row, send in rows] == [
        ("choice[2]", PENDING, NOW, None),
        ("choice[3]", PENDING, NOW, None),
    ]
    state = known(loop_row(total=4, open=4), plan=plan)
    assert decided(state, BlockForked(RUN, LOOP, 0)).then == (
        StepReached(RUN, "choice[0]"),
        StepReached(RUN, "choice[1]"),
    )
    state = known(loop_row(total=4, open=4), rows[1][0], plan=plan)
    assert decided(state, RetryDue(RUN, "choice[3]")).then == (StepReached(RUN, "choice[3]"),)
    state.items[LOOP, 3] = 3
    (row,) = decided(state, StepReached(RUN, "choice[3]")).steps
    assert (row.status, row.due_at, row.output) == (COMPLETED, None, {"result": True, "step": "z"})


def test_a_fork_counts_those_whose_input_could_not_be_made() -> None:
    state = known(loop_row(), plan=looping(**PARALLEL))
    decision = decided(state, BlockForked(RUN, LOOP, 2))
    assert counters(decision) == {"open": 1, "failed": 2, "dispatched": 0, "passed": 0}
    assert decision.then == ()
    assert decided(state, BlockForked(RUN, LOOP, 3)).then == (BlockDrained(RUN, LOOP),)


# Iterations go on


def test_the_input_of_the_run_is_asked_for_by_those_who_use_it_and_by_no_other_step_of_the_body() -> None:
    plan = looping("x", "y", "z", steps={"z": agent(input_mapping={"it": "${workflow.input[0]}"})})
    state = known(loop_row(), iteration(0, COMPLETED), iteration(0, COMPLETED, "y"), plan=plan)
    state.run_values = None
    assert answer(state, StepReached(RUN, LOOP)) == Wanted(run_values=True)
    assert decided(state, StepReached(RUN, "y[0]", after="x[0]")).sends != ()
    assert answer(state, StepReached(RUN, "z[0]", after="y[0]")) == Wanted(run_values=True)


def test_a_step_that_comes_later_sees_its_own_iteration() -> None:
    mapping = {"before": "${x.output}", **ITEM}
    plan = looping("x", "y", steps={"y": agent(input_mapping=mapping)}, **PARALLEL)
    state = known(loop_row(), iteration(2, COMPLETED), plan=plan)
    assert decided(state, StepEnded(RUN, "x[2]")).then == (StepReached(RUN, "y[2]", after="x[2]"),)
    wanted = answer(state, StepReached(RUN, "y[2]", after="x[2]"))
    assert wanted == Wanted(outcomes=frozenset({"x[2]"}), items=frozenset({(LOOP, 2)}))
    state.outcomes["x[2]"] = StepOutcome(COMPLETED, "two", None)
    state.items[LOOP, 2] = "c"
    (row,) = decided(state, StepReached(RUN, "y[2]", after="x[2]")).steps
    assert (row.step_id, row.input, row.ordinal, row.branch_name) == ("y[2]", {"before": "two", "it": "c"}, 1, "2")


def test_an_iteration_that_is_over_gives_its_slot_back_with_the_ticket_of_its_first_step() -> None:
    state = known(
        loop_row(max_parallelism=1, dispatched=1, passed=1), iteration(0, step="y"), plan=looping("x", "y")
    )  # fmt: skip
    decision = decided(state, TaskReported(report()))
    assert counters(decision) == {"open": 2, "failed": 0, "dispatched": 0, "passed": 1}
    assert (decision.released, decision.afterwards) == (Ticket(LOOP, "x[0]"), SlotsFree(RUN, LOOP))


@pytest.mark.parametrize(
    ("x", "y", "verdict"),
    [
        (PENDING, None, Verdict.NOT_YET),
        (QUEUED, None, Verdict.DUPLICATE),
        (COMPLETED, RUNNING, Verdict.DUPLICATE),
        (COMPLETED, COMPLETED, Verdict.STALE),
        (FAILED, None, Verdict.STALE),
        (CANCELLED, None, Verdict.STALE),
    ],
)
def test_the_ticket_of_an_iteration_is_held_while_that_goes_on(
    x: StepStatus, y: StepStatus | None, verdict: Verdict
) -> None:
    state = known(loop_row(max_parallelism=1, dispatched=1, passed=2), iteration(1, x), plan=looping("x", "y"))
    state.steps["y[1]"] = iteration(1, y, "y", ordinal=1) if y is not None else None
    assert decided(state, BranchArrived(RUN, LOOP, "x[1]")).verdict is verdict


def choosing() -> Plan:
    """Return the plan of a sequential loop of which hardly an iteration needs a worker."""
    rare = {"type": "conditional", "condition": {"expression": "${loop.index} > 900"}, "if_true_step": "x"}
    end = {"type": "conditional", "condition": {"expression": "true"}, "if_false_step": "never"}
    return looping("rare", "end", steps={"rare": rare, "end": end, "x": agent(), "never": agent()})


def test_iterations_that_need_no_worker_do_not_ask_for_one_of_the_line_at_a_time() -> None:
    total = 40
    state = known(loop_row(total=total, open=total, max_parallelism=1), plan=choosing())
    moment = Moment(NOW, counted_ids(), lambda: 0.0)
    asked: list[int] = []
    queue: list[Any] = [SlotsFree(RUN, LOOP)]
    while queue[0] != StepEnded(RUN, LOOP):
        event = queue.pop(0)
        found = answer(state, event)
        if isinstance(found, Wanted):
            ((_, first, count),) = found.waiting
            asked.append(count)
            waiting = [iteration(index, PENDING, "rare", agent_name=None) for index in range(first, total)][:count]
            state.put_line(LOOP, Line(first, count, tuple(waiting)))
            queue.insert(0, event)
            continue
        apply(state, found, moment)
        queue = [*found.then, *queue, *([found.afterwards] if found.afterwards is not None else [])]
    assert asked == [1, 2, 4, 8, 16, 32]
    row = state.steps[LOOP]
    assert row is not None
    assert row.status is COMPLETED


def test_a_step_behind_the_first_one_of_its_branch_cannot_have_waited_at_the_gate() -> None:
    state = known(loop_row(), iteration(0, COMPLETED, "rare"), plan=choosing())
    assert answer(state, StepReached(RUN, "rare[1]")) == Wanted(steps=frozenset({"rare[1]"}))
    assert decided(state, StepReached(RUN, "end[0]", after="rare[0]")).steps[0].status is COMPLETED


# Failed iterations


def failing(plan: Plan, row: StepExecution, *others: StepExecution) -> Decision:
    """Let the only slot's iteration fail."""
    state = known(row, iteration(0), *others, plan=plan)
    return decided(state, TaskReported(report(ReportStatus.FAILED)))


def test_a_loop_that_stops_closes_the_line_at_its_gate() -> None:
    decision = failing(looping(), loop_row(max_parallelism=1, dispatched=1, passed=1))
    assert decision.closes_line_of == LOOP
    assert counters(decision) == {"open": 2, "failed": 1, "dispatched": 0, "passed": 1}
    assert decision.then == ()


@pytest.mark.parametrize(
    ("config", "row"),
    [
        ({"on_error": "continue"}, loop_row(max_parallelism=1, dispatched=1, passed=1)),
        ({"on_error": "collect"}, loop_row(max_parallelism=1, dispatched=1, passed=1)),
        (PARALLEL, loop_row()),
        ({**PARALLEL, "max_parallelism": 2}, loop_row(max_parallelism=2, dispatched=2, passed=3)),
    ],
    ids=["continue", "collect", "no gate", "all have started"],
)
def test_otherwise_no_line_is_closed(config: dict[str, Any], row: StepExecution) -> None:
    decision = failing(looping(**config), row)
    assert decision.closes_line_of is None
    assert counters(decision)["failed"] == 1


def test_success_closes_no_line() -> None:
    state = known(loop_row(max_parallelism=1, dispatched=1, passed=1), iteration(0), plan=looping())
    assert decided(state, TaskReported(report())).closes_line_of is None


def test_a_step_that_fails_in_the_middle_of_an_iteration_closes_the_line_as_well() -> None:
    plan = looping("x", "y")
    row = loop_row(max_parallelism=1, dispatched=1, passed=1)
    state = known(row, iteration(0, FAILED, "y", ordinal=1), plan=plan)
    decision = decided(state, StepEnded(RUN, "y[0]"))
    assert (decision.closes_line_of, decision.released) == (LOOP, Ticket(LOOP, "x[0]"))


def test_closing_the_line_cancels_those_who_wait_and_leaves_those_who_have_begun() -> None:
    plan = looping(steps={"x": agent(retry={"max_attempts": 2})}, **PARALLEL, max_parallelism=2)
    row = loop_row(total=5, open=5, max_parallelism=2, dispatched=1, passed=2)
    again = iteration(1, PENDING, attempt=1, due_at=after(5))
    line = [iteration(index, PENDING) for index in (2, 3)]
    state = known(row, again, *line, plan=plan)
    state.put_line(LOOP, Line(2, 2, tuple(line)))
    decision = Decision(Verdict.APPLIED, closes_line_of=LOOP)
    apply(state, decision, Moment(NOW, counted_ids(), lambda: 0.0))
    statuses = {step_id: step.status for step_id, step in state.steps.items() if step is not None}
    assert statuses == {LOOP: RUNNING, "x[1]": PENDING, "x[2]": CANCELLED, "x[3]": CANCELLED}
    assert state.next_in_line(LOOP, 2, 1) is None
    decision = decided(state, LineClosed(RUN, LOOP, 3))
    assert counters(decision) == {"open": 2, "failed": 0, "dispatched": 1, "passed": 5}
    assert decision.then == ()


def test_when_nobody_is_left_behind_the_closed_line_the_loop_is_over() -> None:
    row = loop_row(open=2, failed=1, max_parallelism=1, passed=1)
    decision = decided(known(row, plan=looping()), LineClosed(RUN, LOOP, 2))
    assert counters(decision) == {"open": 0, "failed": 1, "dispatched": 0, "passed": 3}
    assert decision.then == (BlockDrained(RUN, LOOP),)


def test_an_iteration_that_is_ready_for_its_next_attempt_gets_a_slot_after_the_line_was_closed() -> None:
    plan = looping(steps={"x": agent(retry={"max_attempts": 2})}, **PARALLEL, max_parallelism=1)
    row = loop_row(open=1, failed=1, max_parallelism=1, passed=3, ready=1)
    again = iteration(1, PENDING, attempt=1, ready_at=NOW)
    state = known(row, plan=plan)
    state.put_ready(LOOP, 1, [again])
    decision = decided(state, SlotsFree(RUN, LOOP))
    assert [(step.step_id, step.status) for step in decision.steps[1:]] == [("x[1]", QUEUED)]
    assert counters(decision)["dispatched"] == 1


PATIENT = {"x": agent(retry={"max_attempts": 2, "initial_interval_seconds": 5, "jitter": False})}


def test_an_iteration_that_may_be_tried_again_has_not_failed() -> None:
    plan = looping(steps=PATIENT, execution_mode="parallel", max_parallelism=1)
    decision = failing(plan, loop_row(max_parallelism=1, dispatched=1, passed=1))
    assert (decision.closes_line_of, decision.afterwards) == (None, SlotsFree(RUN, LOOP))
    assert counters(decision) == {"open": 3, "failed": 0, "dispatched": 0, "passed": 1}


def test_in_a_sequential_loop_it_keeps_its_slot_so_that_the_next_one_does_not_begin() -> None:
    plan, row = looping(steps=PATIENT), loop_row(max_parallelism=1, dispatched=1, passed=1)
    decision = failing(plan, row)
    (waiting,) = decision.steps
    assert (waiting.status, decision.closes_line_of, decision.afterwards) == (PENDING, None, None)

    again = decided(known(row, waiting, plan=plan), RetryDue(RUN, "x[0]"), after(6))
    (queued,) = again.steps
    assert (queued.status, queued.attempt, again.afterwards) == (QUEUED, 2, None)
    assert again.sends == (SendTask(queued),)


def test_a_broken_input_fails_its_iteration_when_that_gets_a_slot() -> None:
    plan = looping(steps={"x": agent(input_mapping=NAMED)})
    row = loop_row(open=2, max_parallelism=1, passed=1)
    waits = iteration(1, PENDING, error=ERROR)
    state = known(row, plan=plan)
    state.put_line(LOOP, Line(1, 1, (waits,)))
    decision = decided(state, SlotsFree(RUN, LOOP))
    assert decision.sends == ()
    assert counters(decision) == {"open": 2, "failed": 0, "dispatched": 1, "passed": 2}
    (_, failed) = decision.steps
    assert (failed.status, failed.error, failed.finished_at) == (FAILED, ERROR, NOW)
    assert decision.then == (StepEnded(RUN, "x[1]"),)
    apply(state, decision, Moment(NOW, counted_ids(), lambda: 0.0))
    decision = decided(state, StepEnded(RUN, "x[1]"))
    assert counters(decision) == {"open": 1, "failed": 1, "dispatched": 0, "passed": 2}
    assert (decision.closes_line_of, decision.released) == (LOOP, Ticket(LOOP, "x[1]"))


# The end


def drained(plan: Plan, **counts: int) -> Decision:
    state = known(loop_row(open=0, **counts), plan=plan)
    state.failures[LOOP] = tuple(FailedBranch(f"x[{index}]", ERROR) for index in range(counts.get("failed", 0)))
    return decided(state, BlockDrained(RUN, LOOP), after(5))


@pytest.mark.parametrize(
    ("on_error", "failed", "status"),
    [
        ("stop", 0, COMPLETED),
        ("stop", 1, FAILED),
        ("collect", 0, COMPLETED),
        ("collect", 2, FAILED),
        ("continue", 0, COMPLETED),
        ("continue", 3, COMPLETED),
    ],
)
def test_what_failed_iterations_mean_is_for_the_loop_to_say(on_error: str, failed: int, status: StepStatus) -> None:
    decision = drained(looping(on_error=on_error), failed=failed)
    (row,) = decision.steps
    assert (row.status, row.finished_at) == (status, after(5))
    assert decision.join == Join(LOOP, JoinForm.ITERATIONS, around=None)
    assert decision.then == (StepEnded(RUN, LOOP),)


def test_its_error_counts_the_iterations_that_failed() -> None:
    error = drained(looping(on_error="collect"), failed=2).steps[0].error
    assert error is not None
    assert (error.code, error.message) == (
        codes.ITERATIONS_FAILED,
        "2 of 3 iterations failed: x[0]: no luck; x[1]: no luck",
    )
    failures = [{"step_id": f"x[{index}]", "code": ERROR.code, "message": ERROR.message} for index in range(2)]
    assert error.details == {"failed_count": 2, "failed_steps": failures}


def test_a_loop_that_tolerates_failures_does_not_look_at_them() -> None:
    state = known(loop_row(open=0, failed=3), plan=looping(on_error="continue"))
    assert decided(state, BlockDrained(RUN, LOOP)).steps[0].error is None


def test_the_handler_of_a_body_step_is_that_of_the_loop_where_that_names_none() -> None:
    plan = looping("x", "y", steps={"y": agent(on_failure="rescue"), "rescue": agent()})
    state = known(loop_row(FAILED, open=0, failed=2, error=ERROR), plan=plan)
    assert answer(state, StepEnded(RUN, LOOP)) == Wanted(failures=frozenset({LOOP}))
    state.failures[LOOP] = (FailedBranch("x[0]", ERROR), FailedBranch("y[1]", ERROR))
    assert decided(state, StepEnded(RUN, LOOP)).then == (StepReached(RUN, "rescue"),)
    state.failures[LOOP] = (FailedBranch("x[0]", ERROR),)
    assert decided(state, StepEnded(RUN, LOOP)).run is not None


def test_a_loop_that_completes_asks_no_handler() -> None:
    plan = looping(steps={"x": agent(on_failure="rescue"), "rescue": agent()}, on_error="continue")
    state = known(loop_row(COMPLETED, open=0, failed=2), plan=plan)
    state.outcomes[LOOP] = StepOutcome(COMPLETED, None, None)
    run = decided(state, StepEnded(RUN, LOOP)).run
    assert run is not None
    assert run.status is RunStatus.COMPLETED


# Loops in branches and in loops


def in_branch(**block: Any) -> Plan:
    """Return the plan of a block with the branches b (a) and a (a loop over two items, then z), with 50 seconds."""
    branches = {"left": {"steps": ["loop", "z"], "timeout_seconds": 50.0}, "right": {"steps": ["a"]}}
    return plan_of(
        block={"type": "fork_join", "fork_join_config": {"branches": branches, **block}},
        loop=loop("x", collection=[1, 2]),
        **{name: agent() for name in ("x", "z", "a")},
    )


def around(**counts: Any) -> StepExecution:
    return loop_row(step_id="block", **({"total": 2, "open": 2} | counts))


def test_in_a_branch_it_has_the_place_and_the_time_of_that() -> None:
    state = known(around(), plan=in_branch())
    state.steps[LOOP] = None
    decision = decided(state, StepReached(RUN, LOOP))
    (row,) = decision.steps
    assert (row.parent_step_id, row.branch_name, row.position, row.ordinal) == ("block", "left", 0, 0)
    assert (row.branch_due_at, row.due_at) == (after(50), after(50))
    assert decision.fork == Fork(LOOP, [1, 2])


def test_behind_another_step_of_the_branch_it_has_what_is_left_of_the_time() -> None:
    branches = {"left": {"steps": ["z", "loop"]}, "right": {"steps": ["a"]}}
    plan = plan_of(
        block={"type": "fork_join", "fork_join_config": {"branches": branches}},
        loop=loop("x", collection=[1, 2]),
        **{name: agent() for name in ("x", "z", "a")},
    )
    z = step_row("z", COMPLETED, parent_step_id="block", branch_due_at=after(7))
    (row,) = decided(known(around(), z, plan=plan), StepReached(RUN, LOOP, after="z")).steps
    assert (row.branch_due_at, row.due_at, row.ordinal) == (after(7), after(7), 1)


def test_behind_a_gate_it_waits_without_iterations_until_its_turn_comes() -> None:
    plan = in_branch(max_parallelism=1)
    outer = around(max_parallelism=1)
    (waiting, send), _ = fork(known(outer, plan=plan), Fork("block"), NOW, counted_ids())
    assert waiting.branches is not None
    assert (waiting.step_id, waiting.status, waiting.branches.total) == (LOOP, PENDING, 0)
    assert send == SendTicket(waiting)
    assert decided(known(outer, waiting, plan=plan), SlotsFree(RUN, LOOP)).code == codes.NO_FREE_SLOT
    state = known(outer, plan=plan)
    state.put_line("block", Line(0, 1, (waiting,)))
    assert decided(state, SlotsFree(RUN, "block")).then == (StepReached(RUN, LOOP),)
    (row,) = decided(known(outer, waiting, plan=plan), StepReached(RUN, LOOP)).steps
    assert row.branches is not None
    assert (row.status, row.branches.total, row.branches.open) == (RUNNING, 2, 2)


def test_when_it_is_completed_its_branch_goes_on_and_when_it_failed_that_is_over() -> None:
    place = {"parent_step_id": "block", "branch_name": "left", "open": 0}
    state = known(around(), loop_row(COMPLETED, **place), plan=in_branch())
    assert decided(state, StepEnded(RUN, LOOP)).then == (StepReached(RUN, "z", after=LOOP),)
    state = known(around(), loop_row(FAILED, error=ERROR, **place), plan=in_branch())
    assert counters(decided(state, StepEnded(RUN, LOOP)), "block")["failed"] == 1


def test_the_time_limit_of_its_branch_ends_it_with_all_its_iterations() -> None:
    place = {"parent_step_id": "block", "branch_name": "left", "branch_timeout_seconds": 50.0}
    late = loop_row(total=2, open=2, branch_due_at=NOW, due_at=NOW, dispatched=1, max_parallelism=1, **place)
    state = known(around(), late, iteration(0), iteration(1, PENDING), plan=in_branch())
    decision = decided(state, RetryDue(RUN, LOOP))
    (row,) = decision.steps
    assert row.error is not None
    assert (row.status, row.error.code) == (FAILED, codes.BRANCH_TIMEOUT)
    assert counters(decision) == {"open": 0, "failed": 0, "dispatched": 0, "passed": 0}
    assert (decision.cancels_branches_of, decision.sends) == (LOOP, (SendCancellation(RUN, LOOP),))
    assert decision.join == Join(LOOP, JoinForm.ITERATIONS, around="block")
    apply(state, decision, Moment(NOW, counted_ids(), lambda: 0.0))
    assert [row.status for row in map(state.steps.get, ("x[0]", "x[1]")) if row is not None] == [CANCELLED] * 2


def nested(**inner: Any) -> Plan:
    """Return the plan of a parallel loop with the body inner (a loop over the item, with the body x) and z."""
    return looping(
        "inner",
        "z",
        steps={
            "inner": loop("x", **({"collection": "${loop.item}"} | inner)),
            "x": agent(input_mapping={"it": "${loop.item}", "at": "${loop.index}"}),
        },
        **PARALLEL,
    )


def inner_row(index: int, status: StepStatus = RUNNING, **fields: Any) -> StepExecution:
    place = {"parent_step_id": LOOP, "branch_name": str(index), "position": index}
    return loop_row(status, step_id=f"inner[{index}]", **(place | fields))


def test_a_loop_within_a_loop_goes_through_the_item_of_its_iteration() -> None:
    state = known(loop_row(), plan=nested())
    state.steps["inner[2]"] = None
    assert answer(state, StepReached(RUN, "inner[2]")) == Wanted(items=frozenset({(LOOP, 2)}))
    state.items[LOOP, 2] = ["p", "q"]
    decision = decided(state, StepReached(RUN, "inner[2]"))
    assert decision.fork == Fork("inner[2]", ["p", "q"])
    (row,) = decision.steps
    assert (row.parent_step_id, row.branch_name, row.position) == (LOOP, "2", 2)
    apply(state, decision, Moment(NOW, counted_ids(), lambda: 0.0))
    rows = [row for row, _ in fork(state, decision.fork, NOW, counted_ids())]
    assert [(row.step_id, row.parent_step_id, row.branch_name, row.input) for row in rows] == [
        ("x[2][0]", "inner[2]", "0", {"it": "p", "at": 0}),
        ("x[2][1]", "inner[2]", "1", {"it": "q", "at": 1}),
    ]


def test_a_loop_within_a_loop_counts_its_own_iterations_and_releases_its_own_tickets() -> None:
    inner = inner_row(2, total=2, open=2, max_parallelism=1, dispatched=1, passed=1)
    x = step_row("x[2][0]", QUEUED, parent_step_id="inner[2]", branch_name="0")
    decision = decided(known(loop_row(), inner, x, plan=nested()), TaskReported(report()))
    assert counters(decision, "inner[2]") == {"open": 1, "failed": 0, "dispatched": 0, "passed": 1}
    assert decision.released == Ticket("inner[2]", "x[2][0]")
    assert decision.afterwards == SlotsFree(RUN, "inner[2]")


def test_a_loop_within_a_loop_that_failed_fails_its_iteration() -> None:
    state = known(loop_row(), inner_row(1, FAILED, open=0, failed=1, error=ERROR), plan=nested())
    decision = decided(state, StepEnded(RUN, "inner[1]"))
    assert counters(decision) == {"open": 2, "failed": 1, "dispatched": 0, "passed": 0}


def test_the_iteration_goes_on_behind_a_loop_within_it() -> None:
    state = known(loop_row(), inner_row(1, COMPLETED, open=0), plan=nested())
    assert decided(state, StepEnded(RUN, "inner[1]")).then == (StepReached(RUN, "z[1]", after="inner[1]"),)


def test_its_join_comes_before_that_of_the_loop_around_it() -> None:
    state = known(loop_row(), inner_row(1, total=2, open=0), plan=nested())
    assert decided(state, BlockDrained(RUN, "inner[1]")).join == Join("inner[1]", JoinForm.ITERATIONS, around=LOOP)


def test_the_handler_of_a_step_deep_within_loops_counts() -> None:
    plan = looping(
        "inner", steps={"inner": loop("x"), "x": agent(on_failure="rescue"), "rescue": agent()}, on_error="collect"
    )
    state = known(loop_row(FAILED, open=0, failed=1, error=ERROR), plan=plan)
    state.failures[LOOP] = (FailedBranch("inner[1]", ERROR),)
    assert answer(state, StepEnded(RUN, LOOP)) == Wanted(failures=frozenset({"inner[1]"}))
    state.failures["inner[1]"] = (FailedBranch("x[1][0]", ERROR),)
    assert decided(state, StepEnded(RUN, LOOP)).then == (StepReached(RUN, "rescue"),)


# Cancelling


def test_a_run_that_is_cancelled_takes_all_iterations_with_it() -> None:
    state: RunState = known(loop_row(), inner_row(0, total=2, open=1), iteration(1, PENDING), plan=nested())
    decision = decided(state, CancelRequested(RUN, None))
    assert decision.cancels_open_steps
    apply(state, decision, Moment(NOW, counted_ids(), lambda: 0.0))
    assert {row.status for row in state.steps.values() if row is not None} == {CANCELLED}


@pytest.mark.parametrize(
    ("of_block", "expected"),
    [("inner[1]", {"x[1][0]"}), (LOOP, {"inner[0]", "inner[1]", "x[0][0]", "x[1][0]"})],
)
def test_cancelling_what_lies_in_a_loop_reaches_its_iterations_and_what_lies_in_those(
    of_block: str, expected: set[str]
) -> None:
    rows = [
        step_row(f"x[{index}][0]", QUEUED, parent_step_id=f"inner[{index}]", task_id=None, branch_name="0")
        for index in (0, 1)
    ]
    state = known(loop_row(), inner_row(0), inner_row(1), *rows, plan=nested())
    state.cancel_open_steps(NOW, of_block=of_block)
    cancelled = {step_id for step_id, row in state.steps.items() if row is not None and row.status is CANCELLED}
    assert cancelled == expected
