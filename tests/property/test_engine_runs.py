"""Whole runs in every order: whatever comes early, late, twice or never, they end as if nothing had gone wrong.

The same examples are drawn in every run of the suite. To look further: FORKJOIN_TEST_EXAMPLES=5000 in the environment
draws so many new ones.
"""

import json
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.engine import codes
from orchestrator.engine.decision import SendCancellation
from orchestrator.engine.executions import execution_id, iterations_of
from orchestrator.engine.inputs import CancelRequested, ExternalInput, RunOverdue, SlotsFree
from orchestrator.engine.records import StepExecution
from schemas.statuses import StepStatus
from tests.property.cases import BROKEN, LONG, Case, bare, cases, decided_wrongly, is_sequential, limit
from tests.property.oracle import sequential
from tests.property.transaction import RUN
from tests.property.world import World

EXAMPLES = int(os.environ.get("FORKJOIN_TEST_EXAMPLES", "0"))


# What must hold at every moment


def blocks_count_their_branches(world: World) -> None:
    for block in open_blocks(world):
        counters, branches = block.branches, world.branches(block.step_id)
        assert counters is not None
        assert counters.total == len(branches)
        if not block.status.is_final:
            assert counters.open == sum(not branch.status.is_final for branch in branches)
        assert counters.failed == sum(branch.status is StepStatus.FAILED for branch in branches)


def no_more_branches_are_dispatched_than_may_be_and_no_slot_stays_empty(world: World) -> None:
    for block in open_blocks(world):
        branches = world.branches(block.step_id)
        step = world.case.step(block.step_id)
        most = limit(step)
        dispatched = sum(branch.is_dispatched for branch in branches)
        if is_sequential(step):  # the slot is kept between attempts
            dispatched += sum(branch.status is StepStatus.PENDING and branch.attempt > 0 for branch in branches)
        assert dispatched <= most
        if most < len(branches) and not block.status.is_final:
            counters = block.branches
            assert counters is not None
            assert counters.dispatched == dispatched
            waiting = [branch for branch in branches if branch.status is StepStatus.PENDING]
            paused = sum(branch.due_at is not None and branch.ready_at is None for branch in waiting)
            paused = 0 if is_sequential(step) else paused
            assert counters.ready == sum(branch.ready_at is not None for branch in branches)
            gate_works = counters.passed > 0 or any(world.ticket_of(branch) in world.arrived for branch in branches)
            assert not gate_works or dispatched == min(most, counters.open - paused)


def a_block_ends_as_its_policy_says(world: World) -> None:
    if not world.is_stopped:
        statuses = {step_id: step.status for step_id, step in world.rows.steps.items()}
        assert decided_wrongly(world.case, statuses) == []


def every_result_is_accepted_once(world: World) -> None:
    for step_id, status in ((step_id, world.rows.steps[step_id].status) for step_id in world.tasks):
        ended = status in {StepStatus.COMPLETED, StepStatus.FAILED}
        assert world.accepted[step_id] == world.retried[step_id] + ended


def no_step_is_tried_more_often_than_it_may_be(world: World) -> None:
    for step in world.rows.steps.values():
        retry = world.case.step(step.step_id).get("retry", {"max_attempts": 1})
        assert step.attempt <= retry["max_attempts"]


def nothing_that_has_ended_can_be_overdue(world: World) -> None:
    """Or the sweep for overdue attempts would find it again and again."""
    ended = [step for step in world.rows.steps.values() if step.status.is_final]
    assert not [step.step_id for step in ended if (step.due_at, step.ready_at) != (None, None)]


def a_ticket_is_held_until_its_branch_has_ended(world: World) -> None:
    if world.rows.run is not None and not world.is_stopped:
        open_tickets = {
            world.ticket_of(branch)
            for block in open_blocks(world)
            if not block.status.is_final
            for branch in world.branches(block.step_id)
            if not branch.status.is_final
        }
        held = {step_id for step_id in world.held if not world.block_of(step_id).status.is_final}
        assert held == world.arrived & open_tickets


def whoever_asked_is_told_once_and_the_same(world: World) -> None:
    run = world.rows.run
    assert run is not None
    assert [send.to for send in world.results] == world.to_be_told
    for result in (send.result for send in world.results):
        assert (result.status.value, result.output, result.error) == (run.status, run.output, run.error)


def workers_are_told_once_of_a_run_that_was_stopped_and_of_no_other(world: World) -> None:
    runs = [told for told in world.cancellations if told.block_id is None]
    assert runs == ([SendCancellation(RUN)] if world.is_stopped else [])


def workers_are_told_once_of_each_block_that_was_cut_short_and_of_no_other(world: World) -> None:
    told = sorted(str(told.block_id) for told in world.cancellations if told.block_id is not None)
    cut_short = {
        str(step.parent_step_id)
        for step in world.rows.steps.values()
        if step.status is StepStatus.CANCELLED and step.parent_step_id is not None and step.step_id not in world.kept
    }
    # What a loop does not start any more no worker knows.
    cut_short = {block_id for block_id in cut_short if "loop_config" not in world.case.step(block_id)}
    ended = {block_id for block_id in cut_short if world.rows.steps[block_id].status is not StepStatus.CANCELLED}
    assert told == sorted(ended)


def a_run_of_a_sub_workflow_is_stopped_where_its_step_goes_on_without_it(world: World) -> None:
    over = [*world.ended_children, *world.stopped_children]
    assert len(over) == len(set(over))
    for run_id, step_id in world.children.items():
        step = world.rows.steps[step_id]
        assert (run_id in over) != (step.child_run_id == run_id and step.is_dispatched)


def no_run_takes_too_long_before_its_time(world: World) -> None:
    run = world.rows.run
    if run is not None and run.error is not None and run.error.code == codes.RUN_TIMEOUT:
        assert run.started_at is not None
        assert run.finished_at is not None
        assert run.finished_at - run.started_at >= timedelta(seconds=LONG)


def every_change_of_status_is_told(world: World) -> None:
    for step in world.rows.steps.values():
        told = world.told[step.step_id]
        if not told and world.earlier is not None and (step.step_id in world.kept or step.status is StepStatus.PENDING):
            continue  # what is taken over is not told of
        assert told[-1] == step.status
        assert sum(status.is_final for status in told) == step.status.is_final
        if step.status is StepStatus.COMPLETED and (step.agent_name is not None or step.branches is not None):
            assert StepStatus.RUNNING in told


def what_was_completed_is_not_done_again(world: World) -> None:
    if world.earlier is not None and world.rows.run is not None:
        ended = {
            step_id: (step.status, step.output, step.error, step.attempt)
            for step_id, step in world.earlier.steps.items()
            if step.status is StepStatus.COMPLETED
        }
        rows = {step_id: world.rows.steps[step_id] for step_id in ended}
        assert {step_id: (it.status, it.output, it.error, it.attempt) for step_id, it in rows.items()} == ended
        assert not world.tasks.keys() & world.kept


def open_blocks(world: World) -> list[StepExecution]:
    """Return the blocks that were entered; the counters of a cancelled one are left as they were."""
    blocks = (step for step in world.rows.steps.values() if step.branches is not None)
    return [block for block in blocks if block.status not in {StepStatus.CANCELLED, StepStatus.PENDING}]


CHECKS: Sequence[Callable[[World], None]] = (
    blocks_count_their_branches,
    a_block_ends_as_its_policy_says,
    workers_are_told_once_of_each_block_that_was_cut_short_and_of_no_other,
    no_more_branches_are_dispatched_than_may_be_and_no_slot_stays_empty,
    every_result_is_accepted_once,
    no_step_is_tried_more_often_than_it_may_be,
    nothing_that_has_ended_can_be_overdue,
    a_ticket_is_held_until_its_branch_has_ended,
    whoever_asked_is_told_once_and_the_same,
    workers_are_told_once_of_a_run_that_was_stopped_and_of_no_other,
    a_run_of_a_sub_workflow_is_stopped_where_its_step_goes_on_without_it,
    no_run_takes_too_long_before_its_time,
    every_change_of_status_is_told,
    what_was_completed_is_not_done_again,
)


class RunsInAnyOrder(RuleBasedStateMachine):
    """A run to which things happen at random, and which is brought to its end when that is over."""

    world: World
    may_be_cancelled: bool

    @initialize(case=cases(), reply=st.booleans(), twice=st.booleans(), may_be_cancelled=st.booleans())
    def request(self, case: Case, reply: bool, twice: bool, may_be_cancelled: bool) -> None:
        self.world = World(case)
        self.may_be_cancelled = may_be_cancelled
        self.world.deliver([self.world.request(reply=reply), *([self.world.request(reply=True)] if twice else [])])

    @rule(data=st.data(), times=st.integers(1, 2))
    def some_things_happen(self, data: st.DataObject, times: int) -> None:
        possible = self.world.possible()
        names = st.lists(st.sampled_from(sorted(possible)), min_size=1, max_size=4)
        happenings = [possible[name] for name in data.draw(names, "in one transaction")]
        for _ in range(times):  # twice: it was not known whether the COMMIT had succeeded
            self.world.deliver(happenings)

    @precondition(lambda self: self.world.open_tasks())
    @rule(data=st.data(), slots_are_looked_at_in_between=st.booleans())
    def many_attempts_end_at_once(self, data: st.DataObject, slots_are_looked_at_in_between: bool) -> None:
        order = data.draw(st.permutations(self.world.open_tasks()), "in this order")
        inputs: list[ExternalInput] = []
        for step_id in order:
            inputs.append(self.world.end(step_id))
            block_id = self.world.rows.steps[step_id].parent_step_id
            if slots_are_looked_at_in_between and block_id is not None:
                inputs.append(SlotsFree(RUN, block_id))
        self.world.deliver(inputs)

    @rule()
    def a_minute_passes(self) -> None:
        self.world.now += timedelta(minutes=1)

    @precondition(lambda self: self.may_be_cancelled)
    @rule(data=st.data())
    def the_run_is_cancelled(self, data: st.DataObject) -> None:
        possible = self.world.possible()
        names = st.lists(st.sampled_from(sorted(possible)), max_size=2)
        before, after = data.draw(names, "before"), data.draw(names, "after, in the same transaction")
        cancel = CancelRequested(RUN, None)
        self.world.deliver([*(possible[name] for name in before), cancel, *(possible[name] for name in after)])

    @precondition(lambda self: self.may_be_cancelled)
    @rule(data=st.data())
    def the_run_takes_too_long(self, data: st.DataObject) -> None:
        possible = self.world.possible()
        after = data.draw(st.lists(st.sampled_from(sorted(possible)), max_size=2), "after, in the same transaction")
        self.world.now += timedelta(seconds=2 * LONG)
        self.world.deliver([RunOverdue(RUN), *(possible[name] for name in after)])

    @precondition(lambda self: self.world.may_be_retried)
    @rule(data=st.data(), reply=st.booleans(), twice=st.booleans(), they_fail_again=st.booleans())
    def it_is_retried(self, data: st.DataObject, reply: bool, twice: bool, they_fail_again: bool) -> None:
        it_ended_as_if_nothing_had_gone_wrong(self.world)
        self.world = retried(self.world, they_fail_again=they_fail_again)
        for _ in range(1 + twice):
            self.world.deliver([self.world.retry(reply=reply)])

    @invariant()
    def all_is_well(self) -> None:
        for check in CHECKS:
            check(self.world)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            if self.may_be_cancelled:
                self.world.deliver([CancelRequested(RUN, None)])
            self.world.finish()
            self.all_is_well()
            it_ended_as_if_nothing_had_gone_wrong(self.world)
            everything_happens_once_more(self.world)
            self.all_is_well()
            if self.world.may_be_retried:
                self.world = retried(self.world, they_fail_again=False)
                self.world.deliver([self.world.retry(reply=True)])
                self.all_is_well()
                self.world.finish()
                self.all_is_well()
                it_ended_as_if_nothing_had_gone_wrong(self.world)


def retried(world: World, *, they_fail_again: bool) -> World:
    """Return the world of the run that retries that of *world*; nothing has happened in it yet."""
    again = World(world.case, world)
    again.deliver([again.retry(reply=False)])  # tells what is kept
    failed = {step_id for step_id in again.kept if again.rows.steps[step_id].status is StepStatus.FAILED}
    return World(world.case if they_fail_again else world.case.once_more(failed), world)


def it_ended_as_if_nothing_had_gone_wrong(world: World) -> None:
    """Compare how the run ended with what the workflow, carried out step by step, comes to."""
    run, expected = world.rows.run, sequential(world.case)
    assert run is not None
    if not world.case.is_certain:
        assert run.status.is_final
        return
    ran = [step for step in world.rows.steps.values() if step.status is not StepStatus.SKIPPED]
    reached = {step.step_id: outcome(step) for step in ran}
    wanted = {
        step_id: (it.status, as_text(it.output), (it.error or {}).get("code")) for step_id, it in expected.steps.items()
    }
    assert all(step.status.is_final for step in world.rows.steps.values()), "something is left open"
    if world.is_stopped:
        ended = {step_id: it for step_id, it in reached.items() if it[0] is not StepStatus.CANCELLED}
        assert ended.items() <= wanted.items()
        return
    assert (run.status, as_text(run.output)) == (expected.status, as_text(expected.output))
    assert reached == wanted
    assert set(world.rows.steps) - {step.step_id for step in ran} == never_taken(world)


def never_taken(world: World) -> set[str]:
    """Return the first steps of the paths that were not taken and that nothing else leads to afterwards."""
    found = set()
    for step_id, step in world.rows.steps.items():
        written = world.case.step(step_id)
        if written.get("type") == "conditional" and step.status is StepStatus.COMPLETED:
            paths = [written.get("if_true_step"), written.get("if_false_step")]
            found.update(
                execution_id(path, iterations_of(step_id))
                for path in paths
                if path is not None and path != step.output["step"]
            )
    return {step_id for step_id in found if step_id in world.rows.steps} - {
        step.step_id for step in world.rows.steps.values() if step.status is not StepStatus.SKIPPED
    }


def everything_happens_once_more(world: World) -> None:
    before = world.rows.copy()
    world.deliver([*world.possible().values(), CancelRequested(RUN, None)])
    assert world.rows == before


def outcome(step: StepExecution) -> tuple[StepStatus, str, str | None]:
    # One that was cancelled before its turn came keeps the reason for which it would have failed.
    code = step.error.code if step.error is not None and step.status is StepStatus.FAILED else None
    return step.status, as_text(step.output), code


def as_text(value: Any) -> str:
    """Return JSON, in which the order of keys counts, and of errors the code."""
    return json.dumps(bare(value))


RunsInAnyOrder.TestCase.settings = settings(
    max_examples=EXAMPLES or 200,
    stateful_step_count=20,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRunsInAnyOrder = RunsInAnyOrder.TestCase


def test_whoever_asks_twice_in_the_transaction_in_which_the_run_fails_is_told_the_whole_result_twice() -> None:
    world = World(Case({"n1": {"agent_name": "x", "input_mapping": {"x": BROKEN}}}, {}))
    world.deliver([world.request(reply=True), world.request(reply=True)])
    assert [send.result.error is not None for send in world.results] == [True, True]
    whoever_asked_is_told_once_and_the_same(world)


def test_a_block_that_is_cut_short_while_it_is_forked_enters_no_more_of_the_blocks_in_it() -> None:
    broken = {"agent_name": "x", "input_mapping": {"x": BROKEN}}
    steps = {
        "n1": {"type": "parallel", "parallel_steps": ["i1", "i2"], "on_decided": "cancel"},
        "i1": {"type": "parallel", "parallel_steps": ["a"]},
        "i2": {"type": "parallel", "parallel_steps": ["b"]},
        "a": broken,
        "b": {"agent_name": "x"},
    }
    world = World(Case(steps, {}))
    world.deliver([world.request(reply=True)])
    statuses = {step_id: step.status for step_id, step in world.rows.steps.items()}
    failed, cancelled = StepStatus.FAILED, StepStatus.CANCELLED
    assert statuses == {"n1": failed, "i1": failed, "a": failed, "i2": cancelled}
    for check in CHECKS:
        check(world)
