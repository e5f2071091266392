"""Known bugs, brought back on purpose: each must be found by some seed, or the simulation is blind.

They are what systems of this kind die of. Each patches the product for the time of a simulation.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

from messaging.port import Consumer, PublishOutcome
from orchestrator.engine import agent_limit, gate, lifecycle
from orchestrator.engine.agent_limit import AgentLimit
from orchestrator.engine.decide import decide
from orchestrator.engine.decision import Decision, SendTask, Verdict
from orchestrator.engine.inputs import BlockDrained, BranchArrived, RunRequested, StepEnded, TaskReported
from orchestrator.engine.records import Branches, Parent
from orchestrator.engine.state import RunState, Wanted
from orchestrator.service import batch
from orchestrator.service.agent_gates import AgentGates
from orchestrator.service.batch import Committed
from orchestrator.service.driver import Driver
from orchestrator.service.intake import Intake, Item
from orchestrator.service.relay import Relay
from orchestrator.service.strays import Strays
from orchestrator.storage.changes import OutboxRow
from orchestrator.storage.unit_of_work import UnitOfWork
from tests.simulation.storage import agents
from tests.simulation.storage.locks import Locks

Patch = Callable[[], Any]


def no_outbox() -> Any:
    """Messages go out after the commit, from memory: a process that dies between the two takes them with it."""

    def send(uow: UnitOfWork, row: OutboxRow) -> None:
        uow.handed_over.append(row)

    return mock.patch.object(UnitOfWork, "send", send)


def no_lock() -> Any:
    """Two replicas take results of one run at once: each counts from what it has read."""

    async def acquire(*_: Any) -> None:
        """Take nothing."""

    return mock.patch.object(Locks, "acquire", acquire)


def ack_before_commit() -> Any:
    """Deliveries are acked when they are taken: what a process has not committed when it dies is gone."""
    drive = Intake._drive

    async def acked(intake: Intake, consumer: Consumer, items: Sequence[Item]) -> None:
        await consumer.ack([item.delivery for item in items])
        await drive(intake, consumer, items)

    return mock.patch.object(Intake, "_drive", acked)


def unknown_taken_for_confirmed() -> Any:
    """A message whose fate is not known counts as sent: what was lost on the way is never sent again."""
    publish = Relay._publish

    async def trusting(relay: Relay, rows: Sequence[OutboxRow], **options: Any) -> Sequence[PublishOutcome]:
        outcomes = await publish(relay, rows, **options)
        return [PublishOutcome.CONFIRMED if one is PublishOutcome.UNKNOWN else one for one in outcomes]

    return mock.patch.object(Relay, "_publish", trusting)


def limit_by_the_queue_alone() -> Any:
    """Whatever the gate's queue delivers is dispatched: a takeover delivers again what runs already."""
    free = property(lambda branches: branches.total - branches.passed if branches.is_gated else 0)
    return mock.patch.object(Branches, "free_slots", free)


def forward_on_redelivery() -> Any:
    """A ticket that comes again sends its branch's task again, without a look at the branch."""
    arrived = gate.branch_arrived

    def forwarded(state: RunState, event: BranchArrived) -> Decision | Wanted:
        decision = arrived(state, event)
        step = state.steps.get(event.step_id)
        if isinstance(decision, Decision) and step is not None and step.task_id is not None:
            return decision._replace(verdict=Verdict.APPLIED, sends=(SendTask(step),))
        return decision

    return mock.patch.object(gate, "branch_arrived", forwarded)


@contextmanager
def duplicate_ignored_without_driving_on() -> Iterator[None]:
    """What follows a result has a transaction of its own: who dies between the two leaves the run where it is.

    The result comes again, but it is a duplicate by then, and nobody goes on.
    """
    following: dict[Any, list[Any]] = {}
    once = Driver._once

    def first_half(state: RunState, event: Any, moment: Any) -> Decision | Wanted:
        if isinstance(event, BlockDrained | StepEnded):  # nobody has loaded it for the second half
            name = event.block_id if isinstance(event, BlockDrained) else event.step_id
            if missing := state.missing(Wanted(steps=frozenset({name}))):
                return missing
        decision = decide(state, event, moment)
        if isinstance(event, TaskReported) and isinstance(decision, Decision):
            following[asyncio.current_task()] += decision.then
            return decision._replace(then=())
        return decision

    async def in_two_halves(driver: Driver, inputs: Sequence[Any]) -> Committed:
        following[asyncio.current_task()] = []
        committed = await once(driver, inputs)
        rest = following.pop(asyncio.current_task())
        if rest:
            second = await once(driver, rest)
            second.messages = [*committed.messages, *second.messages]
            return replace(second, answers=committed.answers)
        return committed

    with mock.patch.object(batch, "decide", first_half), mock.patch.object(Driver, "_once", in_two_halves):
        yield


def limited_tasks_sent_at_once() -> Any:
    """The limit of an agent is known, and its tasks go out all the same."""
    return mock.patch.object(UnitOfWork, "hold", UnitOfWork.send)


def slots_without_a_count() -> Any:
    """Each time that tasks of a limited agent are let through, as many go as the limit says."""

    def all_free(limit: AgentLimit, taken: int, tokens: float) -> int | None:
        return agent_limit.room(limit, 0, tokens)

    return mock.patch.object(agents, "room", all_free)


def slots_without_a_sweep() -> Any:
    """Only whoever ends an attempt hands its slot on: a process that dies before takes the slot with it."""

    def sleep_on(_: AgentGates) -> None:
        """Look for nothing."""

    return mock.patch.object(AgentGates, "wake", sleep_on)


@contextmanager
def runs_that_nobody_waits_for() -> Iterator[None]:
    """A run starts though the step that asked for it was cancelled meanwhile; and nobody looks for such runs."""

    def anybody(state: RunState, event: RunRequested) -> Parent | None:
        above, step_id = state.parent, state.parent.tasks.get(event.run_id) if state.parent is not None else None
        if above is None or above.run is None or step_id is None:
            return None
        return Parent(above.run.id, step_id, above.run.lineage)

    async def nothing(_: Strays) -> int:
        return 0

    with mock.patch.object(lifecycle, "parent_of", anybody), mock.patch.object(Strays, "run_once", nothing):
        yield


BUGS: dict[str, Patch] = {
    patch.__name__.replace("_", "-"): patch
    for patch in (
        no_outbox,
        no_lock,
        ack_before_commit,
        unknown_taken_for_confirmed,
        limit_by_the_queue_alone,
        forward_on_redelivery,
        duplicate_ignored_without_driving_on,
        limited_tasks_sent_at_once,
        slots_without_a_count,
        slots_without_a_sweep,
        runs_that_nobody_waits_for,
    )
}


@contextmanager
def bug(name: str | None) -> Iterator[None]:
    """Bring a bug back; None brings none."""
    if name is None:
        yield
    else:
        with BUGS[name]():
            yield
