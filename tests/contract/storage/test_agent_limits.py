"""Limits of agents: tasks are held in line, and no more are let through than the limit has room for."""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from orchestrator.engine.records import StepExecution
from orchestrator.engine.state import Wanted
from orchestrator.storage.agent_limits import COUNT_SECONDS, LetThrough
from orchestrator.storage.changes import OutboxRow
from orchestrator.storage.due import Due
from orchestrator.storage.outbox import HAND_OVER_SECONDS
from orchestrator.storage.port import Storage
from schemas.statuses import StepStatus
from tests.contract.storage.backends import Backend
from tests.contract.storage.rows import BLOCK, NOTHING, TIME, add_run, block, changes, look, message, seen, step, write

AGENT = "echo"
RUN, OTHER_RUN = UUID(int=1), UUID(int=2)
PAGE = 100
NOBODY = "nobody"  # holds no gates


def attempt(run_id: UUID, name: str, status: StepStatus = StepStatus.QUEUED, **fields: object) -> StepExecution:
    known = {"attempt": 1, "task_id": uuid4(), "queued_at": TIME}
    return step(run_id, name, status, **{**known, **fields})


def task(one: StepExecution) -> OutboxRow:
    return message(one.run_id, step_id=one.step_id, task_id=one.task_id, routing_key=one.agent_name)


async def hold(storage: Storage, *names: str, run_id: UUID = RUN, **fields: object) -> list[StepExecution]:
    """Store a run with attempts whose tasks are held, in this order."""
    steps = [attempt(run_id, name, **fields) for name in names]
    line = [(task(one), place * 1e-6) for place, one in enumerate(steps)]
    await add_run(storage, *steps, run_id=run_id, held=line)
    return steps


async def through(storage: Storage, page: int = PAGE) -> list[str | None]:
    """Let tasks through; return whose."""
    return names(await storage.let_tasks_through(AGENT, page))


def names(done: LetThrough) -> list[str | None]:
    return [row.step_id for row in done.messages]


async def end(storage: Storage, *steps: StepExecution) -> None:
    for one in steps:
        await write(storage, one.run_id, changes(changed=[one._replace(status=StepStatus.COMPLETED, due_at=None)]))


async def row_of(storage: Storage, name: str, run_id: UUID = RUN) -> StepExecution:
    found = (await seen(storage, run_id, Wanted(steps=frozenset({name})))).steps[name]
    assert found is not None
    return found


async def outbox(storage: Storage) -> Sequence[str | None]:
    async with storage.outbox() as unsent:
        return [row.step_id for row in await unsent.lock_due(PAGE)]


async def limited(storage: Storage) -> frozenset[str]:
    async with storage.session() as session:
        await session.first_look({RUN: NOTHING})
        return session.limited_agents


async def test_the_first_look_tells_which_agents_are_limited(backend: Backend, storage: Storage) -> None:
    assert await limited(storage) == frozenset()
    await backend.limit(AGENT, 2)
    await backend.limit("fast", rate=10.0)
    await backend.limit("free", 1)
    await backend.limit("free")
    assert await limited(storage) == {AGENT, "fast"}


async def test_a_held_task_is_never_due(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, 1)
    await hold(storage, "a")
    await backend.pass_time(1e6)
    assert await outbox(storage) == []
    assert Due.MESSAGES not in await storage.what_is_due(NOBODY)


async def test_as_many_are_let_through_as_the_limit_says_the_first_in_line_first(
    backend: Backend, storage: Storage
) -> None:
    await backend.limit(AGENT, 2)
    await hold(storage, "c", "b", "a")
    assert await through(storage) == ["c", "b"]
    assert await through(storage) == []


async def test_what_was_held_first_goes_first_whichever_run_it_is_of(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, 3)
    await hold(storage, "c", "d")
    await backend.pass_time(1)
    await hold(storage, "a", "b", run_id=OTHER_RUN)
    assert await through(storage) == ["c", "d", "a"]


async def test_what_is_let_through_is_as_it_was_written_and_left_to_its_sender_for_a_while(
    backend: Backend, storage: Storage
) -> None:
    await backend.limit(AGENT, 1)
    [one] = await hold(storage, "a")
    [row] = (await storage.let_tasks_through(AGENT, PAGE)).messages
    assert row == task(one)._replace(message_id=row.message_id)
    assert await outbox(storage) == []
    await backend.pass_time(HAND_OVER_SECONDS + 1)
    assert await outbox(storage) == ["a"], "should its sender die, a sweep sends it"


async def test_a_slot_is_free_again_when_its_attempt_is_over(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, 2)
    first, second, *_ = await hold(storage, "a", "b", "c", "d")
    await through(storage)
    await write(storage, RUN, changes(changed=[first._replace(status=StepStatus.RUNNING)]))
    assert await through(storage) == []
    await end(storage, first)
    assert await through(storage) == ["c"]
    waits = second._replace(status=StepStatus.PENDING, task_id=None)  # for its next attempt
    await write(storage, RUN, changes(changed=[waits]))
    assert await through(storage) == ["d"]


async def test_who_lets_tasks_through_at_the_same_time_takes_turns(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, 3)
    waiting = {one.step_id: one for one in await hold(storage, *"abcdefghijklmno")}
    clients = [backend.client(str(number)) for number in range(4)]
    await asyncio.gather(*(client.agents_with_room() for client in clients))  # each has its connection then
    while waiting:
        done = await asyncio.gather(*(client.let_tasks_through(AGENT, 2) for client in clients))
        let_through = [name for each in done for name in names(each)]
        assert sorted(let_through) == sorted(waiting)[:3]
        await end(storage, *(waiting.pop(str(name)) for name in let_through))


async def test_agents_do_not_share_their_limits(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, 1)
    await backend.limit("other", 1)
    await hold(storage, "a", "b")
    await hold(storage, "c", run_id=OTHER_RUN, agent_name="other")
    assert await through(storage) == ["a"]
    assert names(await storage.let_tasks_through("other", PAGE)) == ["c"]


async def test_of_an_agent_that_was_never_limited_nothing_is_let_through(storage: Storage) -> None:
    assert await storage.let_tasks_through(AGENT, PAGE) == LetThrough()


async def test_pages_follow_each_other_while_there_is_more(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, 3)
    await hold(storage, "a", "b", "c", "d")
    done = await storage.let_tasks_through(AGENT, 2)
    assert (names(done), done.more) == (["a", "b"], True)
    done = await storage.let_tasks_through(AGENT, 2)
    assert (names(done), done.more) == (["c"], False)


@pytest.mark.parametrize("now", [1, 3])
async def test_a_limit_that_was_lowered_lets_nothing_through_until_there_is_room(
    backend: Backend, storage: Storage, now: int
) -> None:
    await backend.limit(AGENT, 4)
    steps = await hold(storage, *"abcdef")
    await through(storage)
    await backend.limit(AGENT, now)
    assert await through(storage) == []
    await end(storage, *steps[: 4 - now])
    assert await through(storage) == []
    await end(storage, steps[4 - now])
    assert await through(storage) == ["e"]


async def test_a_limit_that_was_raised_lets_the_difference_through(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, 1)
    await hold(storage, *"abcd")
    await through(storage)
    await backend.limit(AGENT, 3)
    assert await through(storage) == ["b", "c"]


async def test_a_limit_that_was_lifted_lets_all_through(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, 1, 0.001)
    await hold(storage, *"abcd")
    await through(storage)
    await backend.limit(AGENT)
    assert Due.AGENTS in await storage.what_is_due(NOBODY)
    assert await through(storage) == ["b", "c", "d"]
    assert await storage.what_is_due(NOBODY) == frozenset()


async def test_an_agent_with_a_limit_of_zero_is_paused(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, 0)
    await hold(storage, "a")
    assert await through(storage) == []
    assert await storage.what_is_due(NOBODY) == frozenset()


async def test_attempts_that_were_under_way_when_the_limit_was_set_count(backend: Backend, storage: Storage) -> None:
    open_ones = [attempt(RUN, "a"), attempt(RUN, "b", StepStatus.RUNNING)]
    others = [attempt(RUN, "c", StepStatus.COMPLETED), attempt(RUN, "d", agent_name="other")]
    await add_run(storage, *open_ones, *others, run_id=RUN)
    await backend.limit(AGENT, 3)
    await hold(storage, "e", "f", run_id=OTHER_RUN)
    await backend.pass_time(10 * COUNT_SECONDS)
    assert await through(storage) == ["e"]
    await end(storage, open_ones[1])
    assert await through(storage) == ["f"]


async def test_attempts_of_transactions_that_had_begun_before_the_limit_was_set_count_once_they_are_committed(
    backend: Backend, storage: Storage
) -> None:
    await add_run(storage, run_id=RUN)
    async with storage.session() as session:
        await session.first_look({RUN: NOTHING})
        await backend.limit(AGENT, 2)
        await hold(storage, "held", "too", run_id=OTHER_RUN)
        assert await through(storage, 1) == ["held"]
        await session.write(changes(attempt(RUN, "late")))
    await backend.pass_time(2)
    assert await through(storage) == []
    await end(storage, await row_of(storage, "late"))
    assert await through(storage) == ["too"]


async def test_an_attempt_whose_limit_was_lifted_and_set_again_still_counts(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, 1)
    await hold(storage, "a", "b")
    await through(storage)
    await backend.limit(AGENT)
    await backend.limit(AGENT, 1)
    assert await through(storage) == []


async def test_a_rate_lets_through_one_and_then_one_for_each_token(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, rate=0.1)
    await hold(storage, *"abcd")
    done = await storage.let_tasks_through(AGENT, PAGE)
    assert names(done) == ["a"]
    assert done.next_token is not None
    assert timedelta(seconds=9) < done.next_token <= timedelta(seconds=10)
    assert await storage.what_is_due(NOBODY) == frozenset()
    assert await through(storage) == []
    await backend.pass_time(10)
    assert Due.AGENTS in await storage.what_is_due(NOBODY)
    assert await through(storage) == ["b"]
    await backend.pass_time(100)
    assert await through(storage) == ["c"], "tokens are not saved up"


async def test_both_kinds_of_limits_hold_together(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, 3, 0.1)
    steps = await hold(storage, *"abcdef")
    for name in "abc":
        assert await through(storage) == [name]
        await backend.pass_time(10.1)
    assert await through(storage) == [], "there are tokens, and no slots"
    await end(storage, *steps[:3])
    assert await through(storage) == ["d"]
    assert await through(storage) == [], "there are slots, and no tokens"


async def test_setting_a_rate_again_gives_no_tokens(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, rate=0.001)
    await hold(storage, *"abcd")
    assert await through(storage) == ["a"]
    await backend.limit(AGENT, rate=0.001)
    assert await through(storage) == []


async def test_an_attempt_that_ended_while_its_task_was_held_is_dropped_and_takes_no_slot(
    backend: Backend, storage: Storage
) -> None:
    await backend.limit(AGENT, 1)
    steps = await hold(storage, "a", "b", "c")
    await end(storage, *steps[:2])
    assert await through(storage) == ["c"]
    await end(storage, steps[2])
    await backend.limit(AGENT)
    assert await through(storage) == []


async def test_a_held_task_whose_attempt_is_over_is_dropped_though_there_is_no_room(
    backend: Backend, storage: Storage
) -> None:
    await backend.limit(AGENT, 0)
    await end(storage, *await hold(storage, "a"))
    assert Due.AGENTS in await storage.what_is_due(NOBODY)
    assert await storage.agents_with_room() == [AGENT]
    assert await through(storage) == []
    assert await storage.what_is_due(NOBODY) == frozenset()


@pytest.mark.parametrize("cancelled", [None, BLOCK])
async def test_held_tasks_go_with_their_run_when_it_is_cancelled(
    backend: Backend, storage: Storage, cancelled: str | None
) -> None:
    await backend.limit(AGENT, 0)
    await hold(storage, "a", "b", parent_step_id=BLOCK)
    await write(storage, RUN, changes(block(RUN)))
    async with storage.session() as session:
        await look(session, RUN)
        await session.cancel_open_steps(RUN, cancelled, TIME)
    await hold(storage, "c", run_id=OTHER_RUN)
    assert await storage.what_is_due(NOBODY) == frozenset(), "or there would be something to drop"
    await backend.limit(AGENT)
    assert await through(storage) == ["c"]


async def test_with_its_task_the_time_of_an_attempt_begins(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, 3)
    branch_due = datetime(2999, 1, 1, tzinfo=TIME.tzinfo)
    await hold(storage, "a", queue_timeout_seconds=60.0)
    await hold(storage, "b", run_id=OTHER_RUN, branch_due_at=branch_due, due_at=branch_due)
    await through(storage)
    patient, other = await row_of(storage, "a"), await row_of(storage, "b", OTHER_RUN)
    assert patient.queued_at is not None
    assert abs(patient.queued_at - backend.now()) < timedelta(seconds=60)
    assert patient.due_at == patient.queued_at + timedelta(seconds=60)
    assert (other.due_at, other.status) == (branch_due, StepStatus.QUEUED)


async def test_a_held_attempt_is_not_silent_nor_is_one_that_was_just_let_through(
    backend: Backend, storage: Storage
) -> None:
    await backend.limit(AGENT, 1)
    await hold(storage, "a", "b")
    assert await storage.count_silent(1.0) == []
    [row] = (await storage.let_tasks_through(AGENT, PAGE)).messages
    async with storage.outbox() as sent:
        await sent.delete([row.message_id])
    [silence] = await storage.count_silent(1.0) or [None]
    assert silence is None


async def test_an_agent_has_room_while_somebody_waits_and_there_is_a_slot(backend: Backend, storage: Storage) -> None:
    await backend.limit(AGENT, 1)
    await backend.limit("idle", 5)
    assert await storage.agents_with_room() == []
    [first, _] = await hold(storage, "a", "b")
    assert await storage.agents_with_room() == [AGENT]
    await through(storage)
    assert await storage.agents_with_room() == []
    await end(storage, first)
    assert await storage.agents_with_room() == [AGENT]
    assert await storage.what_is_due(NOBODY) == {Due.AGENTS}


async def test_what_is_about_to_end_is_passed_over(backend: Backend, storage: Storage, other: Storage) -> None:
    await backend.limit(AGENT, 1)
    await hold(storage, "a")
    await hold(storage, "b", run_id=OTHER_RUN)
    async with other.session() as session:
        await look(session, RUN)
        await session.cancel_open_steps(RUN, None, TIME)
        assert await through(storage) == ["b"]
