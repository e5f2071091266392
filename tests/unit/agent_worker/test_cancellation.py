"""A run that is cancelled while a worker has tasks of it."""

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent_worker import AgentContext
from agent_worker.cancelled_work import Cancelled
from agent_worker.desk import SUSPECT_FROM
from messaging.port import OutgoingMessage, PublishOutcome
from messaging.topology import CANCELLED_KEY, WORKERS_EXCHANGE, agent_queue
from schemas.codec import encode
from schemas.messages import RunCancelled
from schemas.statuses import ReportStatus

RUN = uuid.UUID(int=7)
SOON, NEVER = 0.0, 3_600.0


async def cancel(bench, *run_ids: uuid.UUID) -> None:
    """Say as an orchestrator does that runs were cancelled."""
    bodies = [encode(RunCancelled(run_id=run_id)) for run_id in run_ids]
    await say(bench, *bodies)


async def say(bench, *bodies: bytes) -> None:
    messages = [
        OutgoingMessage(WORKERS_EXCHANGE, CANCELLED_KEY, "RunCancelled", str(uuid.uuid4()), body, mandatory=False)
        for body in bodies
    ]
    assert set(await bench.client.publish(messages)) == {PublishOutcome.CONFIRMED}


def told(lines, action: str) -> list[Any]:
    return [line for line in lines if line["action"] == action]


class Patient:
    """An agent that waits until it is let go, and notes how it ends and what its context says then."""

    def __init__(self) -> None:
        self.contexts: list[AgentContext] = []
        self.seen: list[tuple[bool, bool]] = []  # cancelled and over, when the CancelledError came
        self.ended: list[Any] = []
        self.open = asyncio.Event()

    async def __call__(self, input: Any, context: AgentContext) -> Any:
        self.contexts.append(context)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.seen.append((context.cancelled, context.over))
            raise
        self.ended.append(input)
        return {"got": input}


@pytest.fixture
def patient(bench) -> Patient:
    """The agent "echo"."""
    return bench.agents.agent("echo")(Patient())


class Stubborn:
    """An agent that ignores its cancellation until it is let go."""

    def __init__(self) -> None:
        self.contexts: list[AgentContext] = []
        self.cancelled = 0
        self.ended = 0
        self.open = asyncio.Event()

    async def __call__(self, input: Any, context: AgentContext) -> str:
        self.contexts.append(context)
        while not self.open.is_set():
            try:
                await self.open.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
        self.ended += 1
        return "too late"


@pytest.fixture
def stubborn(bench) -> Iterator[Stubborn]:
    """The agent "echo"."""
    agent = bench.agents.agent("echo")(Stubborn())
    yield agent
    agent.open.set()


async def test_a_running_async_agent_is_cancelled_and_nothing_of_it_reported(bench, patient, task, eventually) -> None:
    await bench.start(concurrency=1)
    await bench.send(task(run_id=RUN))
    await eventually(lambda: patient.contexts)
    with capture_logs() as lines:
        await cancel(bench, RUN)
        await eventually(lambda: bench.unsettled() == 0)
    assert patient.seen == [(True, True)]
    assert bench.broker.published == []
    assert [line["run_id"] for line in told(lines, "attempt_cancelled")] == [str(RUN)]
    assert told(lines, "attempt_failed") == []
    assert await bench.waiting() == 0


async def test_the_slot_of_a_cancelled_agent_is_free_again(bench, patient, task) -> None:
    await bench.start(concurrency=1, report_started_after=SOON)
    await bench.send(task(run_id=RUN))
    assert (await bench.report()).status is ReportStatus.STARTED
    await cancel(bench, RUN)
    patient.open.set()
    await bench.send(task("echo", "next"))
    assert (await bench.report()).output == {"got": "next"}
    assert patient.contexts[1].cancelled is False


async def test_agents_of_other_runs_go_on(bench, patient, task, eventually) -> None:
    await bench.start(concurrency=3)
    await bench.send(task("echo", "stops", run_id=RUN), task("echo", "goes on"))
    await eventually(lambda: len(patient.contexts) == 2)
    await cancel(bench, RUN, uuid.uuid4())
    await eventually(lambda: bench.unsettled() == 1)
    patient.open.set()
    await eventually(lambda: bench.unsettled() == 0)
    assert patient.ended == ["goes on"]


async def test_a_running_sync_agent_sees_that_its_run_is_cancelled(bench, task, eventually) -> None:
    begun, seen = threading.Event(), []

    @bench.agents.agent("echo")
    def looks(input: Any, context: AgentContext) -> str:
        begun.set()
        while not context.over:
            time.sleep(0.001)
        seen.append(context.cancelled)
        return "too late"

    await bench.start(concurrency=1)
    await bench.send(task(run_id=RUN))
    await asyncio.to_thread(begun.wait)
    assert seen == []
    await cancel(bench, RUN)
    await eventually(lambda: seen == [True])
    await eventually(lambda: bench.unsettled() == 0)
    assert bench.broker.published == []


async def test_an_agent_whose_time_is_over_is_not_told_of_a_cancellation(bench, patient, task) -> None:
    await bench.start()
    await bench.send(task(timeout_seconds=0.01))
    assert (await bench.report()).error.type == "timeout"
    assert (patient.contexts[0].over, patient.contexts[0].cancelled) == (True, False)


async def test_a_cancelled_agent_may_clean_up_within_the_grace(bench, task, eventually) -> None:
    begun, release, cleaned = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @bench.agents.agent("echo")
    async def tidy(input: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()
            cleaned.set()

    await bench.start(cancel_grace=NEVER)
    await bench.send(task(run_id=RUN))
    await begun.wait()
    await cancel(bench, RUN)
    await bench.settle_down()
    assert bench.unsettled() == 1, "its slot is taken, so the broker must not hand out another task for it"
    release.set()
    await eventually(lambda: bench.unsettled() == 0)
    assert cleaned.is_set()


async def test_an_agent_that_ends_within_the_grace_is_not_said_to_go_on(bench, patient, task, eventually) -> None:
    await bench.start(cancel_grace=0.001)
    await bench.send(task(run_id=RUN))
    await eventually(lambda: patient.contexts)
    loop = asyncio.get_running_loop()
    with capture_logs() as lines:
        await cancel(bench, RUN)
        await eventually(lambda: bench.unsettled() == 0)
        over = loop.time() + 0.001
        await eventually(lambda: loop.time() > over)
    assert told(lines, "agent_abandoned") == []


async def test_an_agent_that_ignores_its_cancellation_goes_on_unattended_after_the_grace(
    bench, stubborn, task, eventually
) -> None:
    worker = await bench.start(concurrency=1, cancel_grace=0.01)
    await bench.send(task(run_id=RUN), task())
    await eventually(lambda: len(stubborn.contexts) == 1)
    with capture_logs() as lines:
        await cancel(bench, RUN)
        await eventually(lambda: len(stubborn.contexts) == 2)  # its slot is free
    assert (stubborn.cancelled, stubborn.ended, bench.unsettled()) == (1, 0, 1)
    assert [line["run_id"] for line in told(lines, "agent_abandoned")] == [str(RUN)]
    stubborn.open.set()
    await eventually(lambda: stubborn.ended == 2)
    await worker.drain()
    assert [message.type for message in bench.broker.published] == ["AgentResult"], "of the other task alone"
    assert (await bench.waiting(), bench.unsettled()) == (0, 0)


async def test_what_a_cancelled_agent_returns_instead_of_ending_is_not_reported(bench, task, eventually) -> None:
    begun = asyncio.Event()

    @bench.agents.agent("echo")
    async def insists(input: Any) -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "all the same"
        return "never"

    await bench.start()
    await bench.send(task(run_id=RUN))
    await begun.wait()
    await cancel(bench, RUN)
    await eventually(lambda: bench.unsettled() == 0)
    assert bench.broker.published == []


async def test_a_task_of_a_cancelled_run_that_comes_later_is_acked_and_not_run(
    bench, patient, task, eventually
) -> None:
    await bench.start(concurrency=1)
    await cancel(bench, RUN)
    await bench.settle_down()
    sent = [task(run_id=RUN) for _ in range(5)]
    with capture_logs() as lines:
        await bench.send(*sent)
        await eventually(lambda: len(told(lines, "task_dropped")) == 5)
        await eventually(lambda: bench.unsettled() == 0)
    assert {line["task_id"] for line in told(lines, "task_dropped")} == {str(one.task_id) for one in sent}
    assert await bench.waiting() == 0
    assert (patient.contexts, bench.broker.published) == ([], [])


async def test_a_task_that_waits_in_the_worker_is_dropped_once_and_the_one_behind_it_run(
    bench, patient, task, eventually
) -> None:
    await bench.start(concurrency=2)
    await bench.send(task("echo", "runs"), task("echo", "runs too"))
    await eventually(lambda: len(patient.contexts) == 2)
    thief = await bench.client.consume(agent_queue("echo"), prefetch=2)
    await bench.send(task("echo", "is dropped", run_id=RUN), task("echo", "is run"))
    bench.server.drop_connections()  # they reconnect in their order: the thief gets what runs, the worker what waits
    await eventually(lambda: bench.unsettled() == 4)
    await bench.settle_down()
    with capture_logs() as lines:
        await cancel(bench, RUN, RUN)
        await eventually(lambda: bench.unsettled() == 3)
    assert len(told(lines, "task_dropped")) == 1
    await thief.close()
    patient.open.set()
    await eventually(lambda: bench.unsettled() == 0)
    assert sorted(patient.ended) == ["is run", "runs", "runs too"]
    assert len(patient.contexts) == 3


async def test_of_the_tasks_that_wait_one_is_begun_for_each_that_is_dropped(
    bench, patient, task, eventually, monkeypatch
) -> None:
    monkeypatch.setattr("agent_worker.colleagues.PATIENCE", NEVER)
    await bench.start(concurrency=2)
    await bench.send(task(run_id=RUN), task(), earlier_deliveries=1)
    await eventually(lambda: len(questions(bench)) == 2)
    thief = await bench.client.consume(agent_queue("echo"), prefetch=2)
    await bench.send(first := task(), task())
    bench.server.drop_connections()  # they reconnect in their order: the thief gets what is asked about
    await eventually(lambda: bench.unsettled() == 4)
    await bench.settle_down()
    assert len(questions(bench)) == 2
    await cancel(bench, RUN)
    await eventually(lambda: questions(bench)[2:] == [str(first.task_id)])  # it came again too
    await bench.settle_down()
    assert len(questions(bench)) == 3
    await thief.close()


def questions(bench) -> list[str]:
    """Return the ids of the tasks about which the worker asked its colleagues."""
    return [body["task_id"] for body in bench.sent_bodies() if "asker" in body]


async def test_a_run_that_is_cancelled_twice_is_cancelled_once(bench, stubborn, task, eventually) -> None:
    await bench.start(cancel_grace=NEVER)
    await bench.send(task(run_id=RUN))
    await eventually(lambda: stubborn.contexts)
    await cancel(bench, RUN, RUN)
    await cancel(bench, RUN)
    await eventually(lambda: stubborn.cancelled == 1)
    await bench.settle_down()
    assert (stubborn.cancelled, bench.unsettled()) == (1, 1)
    stubborn.open.set()
    await eventually(lambda: bench.unsettled() == 0)


async def test_a_cancellation_while_the_result_is_on_its_way_changes_nothing(bench, patient, task, eventually) -> None:
    worker = await bench.start()
    patient.open.set()
    bench.broker.open.clear()
    await bench.send(task("echo", "done", run_id=RUN))
    await eventually(lambda: bench.broker.published)
    await cancel(bench, RUN)
    await bench.settle_down()
    bench.broker.open.set()
    assert (await bench.report()).output == {"got": "done"}
    await eventually(lambda: bench.unsettled() == 0)
    await worker.drain()
    assert await bench.waiting() == 0


async def test_a_cancellation_while_a_timeout_is_reported_that_the_agent_ignores_changes_nothing(
    bench, stubborn, task, eventually
) -> None:
    await bench.start(cancel_grace=0.001)
    bench.broker.open.clear()
    await bench.send(task(run_id=RUN, timeout_seconds=0.001))
    await eventually(lambda: bench.broker.published)
    with capture_logs() as lines:
        await cancel(bench, RUN)
        await bench.settle_down()
    assert told(lines, "attempt_cancelled") == []
    bench.broker.open.set()
    assert (await bench.report()).error.type == "timeout"
    await eventually(lambda: bench.unsettled() == 0)
    assert (stubborn.cancelled, stubborn.contexts[0].cancelled) == (1, False)


async def test_a_task_that_comes_again_while_its_cancelled_agent_cleans_up_is_settled_with_it(
    bench, stubborn, task, eventually
) -> None:
    await bench.start(cancel_grace=NEVER)
    await bench.send(sent := task(run_id=RUN))
    await eventually(lambda: stubborn.contexts)
    await cancel(bench, RUN)
    await eventually(lambda: stubborn.cancelled == 1)
    await bench.send(sent)
    await eventually(lambda: bench.unsettled() == 2)
    stubborn.open.set()
    await eventually(lambda: bench.unsettled() == 0)
    assert (stubborn.ended, await bench.waiting()) == (1, 0)


async def test_draining_ends_when_the_last_run_that_is_waited_for_is_cancelled(
    bench, patient, task, eventually
) -> None:
    worker = await bench.start(concurrency=1, drain_timeout=NEVER)
    await bench.send(task(run_id=RUN), task(run_id=RUN))
    await eventually(lambda: patient.contexts)
    draining = asyncio.create_task(worker.drain())
    await bench.settle_down()
    await cancel(bench, RUN)
    async with asyncio.timeout(5):
        await draining
    assert (len(patient.contexts), patient.seen) == (1, [(True, True)])
    assert (await bench.waiting(), bench.unsettled()) == (1, 0)  # others know that it is cancelled


async def test_closing_during_the_grace_gives_the_task_back_and_cancels_the_agent_no_further(
    bench, stubborn, task, eventually
) -> None:
    worker = await bench.start(cancel_grace=0.1)
    await bench.send(task(run_id=RUN))
    await eventually(lambda: stubborn.contexts)
    await cancel(bench, RUN)
    await eventually(lambda: stubborn.cancelled == 1)
    with capture_logs() as lines:
        await worker.close()
    assert len(told(lines, "agent_abandoned")) == 1
    assert (await bench.waiting(), bench.unsettled()) == (1, 0)
    stubborn.open.set()
    await eventually(lambda: stubborn.ended == 1)
    await bench.settle_down()
    assert (stubborn.cancelled, bench.broker.published) == (1, [])


@pytest.fixture
async def suspects(bench, task, monkeypatch, eventually) -> Any:
    """Two tasks of the run in the queue of "echo" that came back so often that they run one at a time."""
    monkeypatch.setattr("agent_worker.suspects.GATHERING", 0.05)
    await bench.send(task(run_id=RUN), task(run_id=RUN))
    for _ in range(SUSPECT_FROM):
        consumer = await bench.client.consume(agent_queue("echo"), prefetch=2)
        await consumer.receive(2)
        await consumer.close()


async def test_suspects_of_a_cancelled_run_let_the_next_one_run(bench, patient, suspects, task, eventually) -> None:
    await bench.start(concurrency=2)
    await eventually(lambda: len(patient.contexts) == 1)
    await cancel(bench, RUN)
    await eventually(lambda: bench.unsettled() == 0)
    assert len(patient.contexts) == 1, "the other one was dropped while it waited for its turn"
    patient.open.set()
    await bench.send(task("echo", "next"), earlier_deliveries=SUSPECT_FROM)
    assert (await bench.report()).output == {"got": "next"}


async def test_a_task_about_which_a_colleague_is_asked_is_dropped(
    bench, patient, task, eventually, monkeypatch
) -> None:
    monkeypatch.setattr("agent_worker.colleagues.PATIENCE", NEVER)
    await bench.start(concurrency=1)
    await bench.send(task(run_id=RUN), earlier_deliveries=1)
    await eventually(lambda: len(questions(bench)) == 1)
    await cancel(bench, RUN)
    await eventually(lambda: bench.unsettled() == 0)
    patient.open.set()
    await bench.send(task("echo", "next"))
    assert (await bench.report()).output == {"got": "next"}
    assert len(patient.contexts) == 1


async def test_a_task_that_is_about_to_start_is_dropped_and_its_slot_free(bench, patient, task, eventually) -> None:
    worker = await bench.start(concurrency=1)
    (consumer,) = worker._consumers
    take = consumer._take

    def cancelled_at_once(delivery: Any) -> None:
        take(delivery)
        worker._cancel(Cancelled(RUN))

    consumer._take = cancelled_at_once  # type: ignore[method-assign]
    await bench.send(task(run_id=RUN))
    await eventually(lambda: worker._desk.cancelled.covers(task(run_id=RUN)))
    await eventually(lambda: bench.unsettled() == 0)
    assert patient.contexts == []
    patient.open.set()
    await bench.send(task("echo", "next"))
    assert (await bench.report()).output == {"got": "next"}


async def test_a_finished_task_of_a_cancelled_run_that_comes_again_is_settled(bench, patient, task, eventually) -> None:
    await bench.start()
    patient.open.set()
    await bench.send(sent := task("echo", 1, run_id=RUN))
    await bench.report()
    await eventually(lambda: bench.unsettled() == 0)
    await cancel(bench, RUN)
    await bench.settle_down()
    await bench.send(sent)
    assert (await bench.report()).output == {"got": 1}
    await eventually(lambda: bench.unsettled() == 0)
    assert patient.ended == [1]


async def test_a_cancellation_that_cannot_be_understood_is_logged_and_the_next_one_heard(
    bench, patient, task, eventually
) -> None:
    await bench.start()
    await bench.send(task(run_id=RUN))
    await eventually(lambda: patient.contexts)
    with capture_logs() as lines:
        await say(bench, b"stop!", b'{"version": 2}')
        await cancel(bench, RUN)
        await eventually(lambda: bench.unsettled() == 0)
    assert [line["code"] for line in told(lines, "hearsay_refused")] == ["malformed_message", "unsupported_version"]


async def test_each_worker_hears_of_a_cancellation(bench, patient, task, eventually) -> None:
    await bench.start(concurrency=1)
    bench.broker, first = type(bench.broker)(bench.server), bench.broker
    try:
        await bench.start(concurrency=1, worker_id="worker-2")
        await bench.send(task(run_id=RUN), task(run_id=RUN))
        await eventually(lambda: len(patient.contexts) == 2)
        await cancel(bench, RUN)
        await eventually(lambda: bench.unsettled() == 0)
        assert len({context.worker_id for context in patient.contexts}) == 2
    finally:
        await asyncio.gather(*(worker.close() for worker in bench.workers))
        await first.close()
