import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent_worker import AgentContext
from agent_worker.errors import NoAgents
from agent_worker.suspects import SUSPECT_FROM
from messaging.memory import MemoryBroker
from messaging.port import PublishOutcome, Queue, QueueKind, QueueMissing, TopologyMismatch
from messaging.topology import RESULTS_QUEUE, agent_queue
from schemas.codec import decode
from schemas.messages import AgentTask
from schemas.statuses import ReportStatus

SOON, NEVER = 0.0, 3_600.0


class Gate:
    """An agent that waits until it is let go, and counts."""

    def __init__(self) -> None:
        self.started = 0
        self.ended = 0
        self.begun = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, input: Any) -> Any:
        self.started += 1
        self.begun.set()
        await self.open.wait()
        self.ended += 1
        return {"got": input}


@pytest.fixture
def gate(bench) -> Gate:
    """The agent "echo"."""
    return bench.agents.agent("echo")(Gate())


@pytest.fixture
def echo(bench):
    """The agent "echo", which answers at once; gives the list of inputs it was called with."""
    calls: list[Any] = []

    @bench.agents.agent("echo")
    async def echo(input):
        calls.append(input)
        return {"got": input}

    return calls


async def test_a_task_is_run_its_result_reported_and_its_delivery_acked(bench, echo, task, eventually) -> None:
    await bench.start()
    sent = task("echo", {"a": 1})
    await bench.send(sent)
    result = await bench.report()
    assert (result.task_id, result.run_id, result.worker_id) == (sent.task_id, sent.run_id, "worker-1")
    assert (result.status, result.output) == (ReportStatus.COMPLETED, {"got": {"a": 1}})
    assert result.started_at is not None
    assert result.finished_at is not None
    assert result.started_at <= result.finished_at
    await eventually(lambda: bench.unsettled() == 0)
    assert await bench.waiting() == 0
    message = bench.broker.published[0]
    assert (message.routing_key, message.type, message.persistent) == ("result.echo", "AgentResult", True)


async def test_a_delivery_is_acked_only_after_its_result_is_confirmed(bench, echo, task, eventually) -> None:
    await bench.start()
    bench.broker.open.clear()
    await bench.send(task())
    await eventually(lambda: bench.broker.published)
    await bench.settle_down()
    assert bench.unsettled() == 1
    bench.broker.open.set()
    await eventually(lambda: bench.unsettled() == 0)
    assert await bench.waiting() == 0


@pytest.mark.parametrize("outcome", [PublishOutcome.UNKNOWN, PublishOutcome.RETURNED])
async def test_a_result_that_is_not_confirmed_is_sent_again_until_it_is(bench, echo, task, eventually, outcome) -> None:
    await bench.start()
    bench.broker.outcomes.extend([outcome, outcome])
    with capture_logs() as lines:
        await bench.send(task())
        assert (await bench.report()).status is ReportStatus.COMPLETED
        await eventually(lambda: bench.unsettled() == 0)
    assert len(bench.broker.published) == 3
    assert len({message.message_id for message in bench.broker.published}) == 3
    assert echo == [None]
    expected = {"RETURNED": "results_returned", "UNKNOWN": "results_unconfirmed"}[outcome]
    told = [line["action"] for line in lines if line["action"].startswith("results_")]
    assert told == [expected, "results_confirmed"]  # each once, whatever the number of tries


async def test_a_result_waits_for_the_results_queue_to_exist(bench, echo, task, eventually) -> None:
    await bench.client.delete_queue(RESULTS_QUEUE.name)
    await bench.start()
    await bench.send(task())
    await eventually(lambda: len(bench.broker.batches) >= 2)
    assert bench.unsettled() == 1
    assert (await bench.report()).status is ReportStatus.COMPLETED  # this declares the queue


async def test_results_that_finish_during_a_publish_go_out_together_in_the_next(bench, echo, task, eventually) -> None:
    await bench.start(concurrency=20)
    bench.broker.open.clear()
    await bench.send(task())
    await eventually(lambda: bench.broker.batches == [1])
    await bench.send(*(task() for _ in range(15)))
    await eventually(lambda: len(echo) == 16)
    bench.broker.open.set()
    await eventually(lambda: bench.unsettled() == 0)
    assert bench.broker.batches == [1, 15]


async def test_a_short_attempt_sends_its_result_and_nothing_else(bench, echo, task) -> None:
    await bench.start()
    await bench.send(task())
    assert (await bench.report()).status is ReportStatus.COMPLETED
    assert await bench.reports_left() == 0


async def test_an_attempt_that_runs_on_is_reported_started_with_its_real_start(bench, gate, task) -> None:
    await bench.start(report_started_after=SOON)
    await bench.send(task())
    started = await bench.report()
    assert (started.status, started.finished_at) == (ReportStatus.STARTED, None)
    gate.open.set()
    result = await bench.report()
    assert result.status is ReportStatus.COMPLETED
    assert result.started_at == started.started_at
    assert await bench.reports_left() == 0


async def test_an_attempt_that_runs_long_sends_heartbeats_until_it_ends(bench, gate, task) -> None:
    await bench.start(report_started_after=SOON, heartbeat_interval=0.01)
    await bench.send(task())
    seen = [(await bench.report()).status for _ in range(4)]
    assert seen == [ReportStatus.STARTED] + [ReportStatus.HEARTBEAT] * 3
    gate.open.set()
    while (status := (await bench.report()).status) is not ReportStatus.COMPLETED:
        assert status is ReportStatus.HEARTBEAT
    await bench.settle_down()
    assert await bench.reports_left() == 0


async def test_a_sign_of_life_that_is_lost_is_not_sent_again(bench, gate, task, eventually) -> None:
    await bench.start(report_started_after=SOON, heartbeat_interval=NEVER)
    bench.broker.outcomes.append(PublishOutcome.UNKNOWN)
    await bench.send(task())
    await eventually(lambda: bench.broker.batches == [1])
    gate.open.set()
    assert (await bench.report()).status is ReportStatus.COMPLETED
    assert bench.broker.batches == [1, 1]


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_an_agent_can_send_a_heartbeat_but_not_flood(bench, task, kind) -> None:
    def synchronous(input, context: AgentContext):
        for _ in range(1_000):
            context.heartbeat()

    async def asynchronous(input, context: AgentContext):
        for _ in range(1_000):
            await context.heartbeat()

    bench.agents.agent("echo")(synchronous if kind == "sync" else asynchronous)
    await bench.start()
    await bench.send(task())
    seen = [(await bench.report()).status for _ in range(3)]
    assert seen == [ReportStatus.STARTED, ReportStatus.HEARTBEAT, ReportStatus.COMPLETED]


async def test_a_heartbeat_after_the_end_is_not_sent(bench, task) -> None:
    contexts: list[AgentContext] = []

    @bench.agents.agent("echo")
    async def keeps(input, context: AgentContext):
        contexts.append(context)
        assert not context.over

    await bench.start()
    await bench.send(task())
    assert (await bench.report()).status is ReportStatus.COMPLETED
    assert contexts[0].over
    await contexts[0].heartbeat()
    await bench.settle_down()
    assert await bench.reports_left() == 0


async def test_the_context_knows_the_task(bench, task) -> None:
    contexts: list[AgentContext] = []

    @bench.agents.agent("echo")
    async def keeps(context: AgentContext, input):
        contexts.append(context)
        context.logger.info("Working", action="working")

    sent = task("echo", step_id="step-b", parent_step_id="block", branch_name="step-b", attempt=3)
    await bench.start()
    with capture_logs() as lines:
        await bench.send(sent)
        await bench.report()
    context = contexts[0]
    assert (context.run_id, context.step_id, context.task_id) == (sent.run_id, "step-b", sent.task_id)
    assert (context.parent_step_id, context.branch_name, context.attempt) == ("block", "step-b", 3)
    assert (context.agent_name, context.worker_id) == ("echo", "worker-1")
    line = next(line for line in lines if line["action"] == "working")
    assert (line["run_id"], line["attempt"], line["branch_name"]) == (str(sent.run_id), 3, "step-b")


async def test_an_agents_exception_is_reported_and_logged_with_its_place(bench, task) -> None:
    @bench.agents.agent("echo")
    async def fails(input):
        raise LookupError("no such page")

    await bench.start()
    sent = task()
    with capture_logs() as lines:
        await bench.send(sent)
        result = await bench.report()
    assert result.status is ReportStatus.FAILED
    assert (result.error.type, result.error.message) == ("LookupError", "no such page")
    line = next(line for line in lines if line["action"] == "attempt_failed")
    assert (line["run_id"], line["step_id"], line["error_type"]) == (str(sent.run_id), "step-a", "LookupError")


async def test_a_timeout_is_reported_and_the_delivery_settled(bench, gate, task, eventually) -> None:
    await bench.start()
    await bench.send(task(timeout_seconds=0.01))
    assert (await bench.report()).error.type == "timeout"
    await eventually(lambda: bench.unsettled() == 0)


async def test_an_agent_that_cancels_itself_has_ended_like_any_other(bench, task, eventually) -> None:
    @bench.agents.agent("echo")
    async def cancels(input):
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        if input == "waits":
            await asyncio.sleep(0)
        return "done"

    await bench.start(concurrency=1)
    await bench.send(task("echo", "waits"), task("echo", "ends"))
    results = [await bench.report() for _ in range(2)]
    assert results[0].error.type == "asyncio.exceptions.CancelledError"
    assert results[1].output == "done"
    await eventually(lambda: bench.unsettled() == 0)


async def test_a_result_that_is_not_json_or_too_large_is_a_failure(bench, task, eventually) -> None:
    @bench.agents.agent("echo")
    async def agent(input):
        return {"nan": float("nan")} if input == "nan" else "x" * 10_000

    await bench.start(max_result_bytes=5_000)
    await bench.send(task("echo", "nan"))
    assert (await bench.report()).error.type == "invalid_result"
    await bench.send(task("echo", "large"))
    assert (await bench.report()).error.type == "payload_too_large"
    await eventually(lambda: bench.unsettled() == 0)


async def test_a_result_that_the_broker_finds_too_large_is_replaced_by_a_failure(bench, echo, task, eventually) -> None:
    await bench.start()
    bench.broker.outcomes.append(PublishOutcome.TOO_LARGE)
    await bench.send(task())
    assert (await bench.report()).error.type == "payload_too_large"
    await eventually(lambda: bench.unsettled() == 0)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_message"),
        (b"not json", "malformed_message"),
        (b"[1]", "malformed_message"),
        (b'{"version": 1}', "malformed_message"),
        (b'{"version": 2}', "unsupported_version"),
        (b"[" * 100_000, "malformed_message"),
    ],
)
async def test_a_message_that_is_no_task_is_dead_lettered_once(bench, echo, task, eventually, body, code) -> None:
    await bench.start()
    await bench.send(body)
    letters = await bench.dead_letters()
    assert [letter.headers["x-forkjoin-reason"] for letter in letters] == [code]
    assert letters[0].body == body
    await eventually(lambda: bench.unsettled() == 0)
    await bench.send(task())
    assert (await bench.report()).status is ReportStatus.COMPLETED
    assert len(echo) == 1


async def test_a_message_that_is_no_task_waits_for_the_dead_letters_to_take_it(bench, echo, eventually) -> None:
    await bench.client.delete_queue("orchestrator.dead-letters")
    await bench.start()
    await bench.send(b"not json")
    await eventually(lambda: bench.unsettled() == 1)
    assert len(await bench.dead_letters()) == 1  # this declares the queue
    await eventually(lambda: bench.unsettled() == 0)


async def test_a_task_for_another_agent_is_run_if_there_is_one_and_else_fails(bench, echo, task, eventually) -> None:
    @bench.agents.agent("other")
    async def other(input):
        return "by other"

    await bench.start()
    await bench.send(task("other"), to="echo")
    assert (await bench.report()).output == "by other"
    await bench.send(task("stranger"), to="echo")
    result = await bench.report()
    assert result.error.type == "unknown_agent"
    assert 'no agent "stranger"; it has echo, other' in result.error.message
    assert result.started_at is None
    assert bench.broker.published[-1].routing_key == "result.stranger"
    await eventually(lambda: bench.unsettled() == 0)


async def test_a_finished_task_that_comes_again_is_answered_from_memory(bench, echo, task, eventually) -> None:
    await bench.start()
    sent = task("echo", 1)
    await bench.send(sent)
    first = await bench.report()
    await eventually(lambda: bench.unsettled() == 0)
    await bench.send(sent)
    assert await bench.report() == first
    await eventually(lambda: bench.unsettled() == 0)
    assert echo == [1]
    assert len({message.message_id for message in bench.broker.published}) == 2


async def test_a_task_that_comes_again_while_it_runs_is_not_started_twice(bench, gate, task, eventually) -> None:
    await bench.start()
    sent = task()
    await bench.send(sent, sent)
    await eventually(lambda: bench.unsettled() == 2)
    await gate.begun.wait()
    await bench.settle_down()
    gate.open.set()
    assert (await bench.report()).status is ReportStatus.COMPLETED
    await eventually(lambda: bench.unsettled() == 0)
    assert gate.started == 1
    assert await bench.reports_left() == 0


async def test_after_a_lost_connection_the_new_delivery_is_attached_to_the_running_attempt(
    bench, gate, task, eventually
) -> None:
    await bench.start()
    await bench.send(task())
    await gate.begun.wait()
    with capture_logs() as lines:
        bench.server.drop_connections()
        await eventually(lambda: any(line["action"] == "attached_to_attempt" for line in lines))
    assert bench.unsettled() == 1
    gate.open.set()
    assert (await bench.report()).status is ReportStatus.COMPLETED
    await eventually(lambda: bench.unsettled() == 0)
    assert await bench.waiting() == 0
    assert gate.started == 1


@pytest.mark.parametrize(("timeout", "told"), [(0.001, 0.001), (NEVER, None), (None, None)])
async def test_a_result_tells_of_the_brokers_timeout_only_if_the_attempt_outlived_it(
    bench, gate, task, eventually, timeout, told
) -> None:
    await bench.start()
    await bench.send(task())
    await gate.begun.wait()
    (consumer,) = [c for c in bench.broker._consumers if c._queue.name == "agent.echo"]
    consumer.consumer_timeout = timeout
    begun = asyncio.get_running_loop().time()
    await eventually(lambda: asyncio.get_running_loop().time() > begun + 0.001)
    gate.open.set()
    assert (await bench.report()).consumer_timeout == told


async def test_a_connection_lost_during_the_confirm_neither_loses_nor_repeats_work(
    bench, echo, task, eventually
) -> None:
    await bench.start()
    bench.broker.open.clear()
    await bench.send(task())
    await eventually(lambda: bench.broker.published)
    bench.server.drop_connections()
    bench.broker.outcomes.append(PublishOutcome.UNKNOWN)
    bench.broker.open.set()
    assert (await bench.report()).status is ReportStatus.COMPLETED
    await eventually(lambda: bench.unsettled() == 0)
    assert await bench.waiting() == 0
    assert len(echo) == 1


async def test_each_agent_has_its_own_concurrency(bench, gate, task, eventually) -> None:
    other = bench.agents.agent("other")(Gate())
    await bench.start(concurrency=3)
    await bench.send(*(task("echo") for _ in range(5)), *(task("other") for _ in range(5)))
    await eventually(lambda: (gate.started, other.started) == (3, 3))
    await bench.settle_down()
    assert (gate.started, other.started) == (3, 3)
    assert (await bench.waiting("echo"), await bench.waiting("other")) == (2, 2)  # the broker keeps the others
    gate.open.set()
    await eventually(lambda: gate.ended == 5)
    assert other.started == 3


async def test_concurrency_holds_when_a_reconnect_brings_other_tasks(bench, gate, task, eventually) -> None:
    await bench.start(concurrency=2)
    await bench.send(task(), task())
    await eventually(lambda: gate.started == 2)
    thief = await bench.client.consume(agent_queue("echo"), prefetch=2)
    await bench.send(task(), task())
    await thief.receive(2)
    bench.server.drop_connections()  # everything goes back, and is handed out anew
    await eventually(lambda: bench.unsettled() == 4)
    await bench.settle_down()
    assert gate.started == 2
    await thief.close()
    gate.open.set()
    await eventually(lambda: bench.unsettled() == 0)
    assert gate.started == 4


async def test_draining_finishes_what_runs_and_takes_nothing_more(bench, gate, task, eventually) -> None:
    worker = await bench.start(concurrency=1)
    await bench.send(task("echo", "first"), task("echo", "second"))
    await gate.begun.wait()
    draining = asyncio.create_task(worker.drain())
    await bench.settle_down()
    assert not draining.done()
    gate.open.set()
    await draining
    assert (await bench.report()).output == {"got": "first"}
    assert await bench.reports_left() == 0
    assert gate.started == 1
    assert (await bench.waiting(), bench.unsettled()) == (1, 0)


async def test_a_task_that_arrives_while_draining_is_not_started(bench, gate, task) -> None:
    worker = await bench.start(concurrency=2)
    await bench.send(task("echo", "first"))
    await gate.begun.wait()
    draining = asyncio.create_task(worker.drain())
    await bench.settle_down()
    await bench.send(task("echo", "second"))
    await bench.settle_down()
    assert gate.started == 1
    assert (await bench.waiting(), bench.unsettled()) == (1, 1), "an idle worker could have it now"
    gate.open.set()
    await draining
    assert (await bench.waiting(), bench.unsettled()) == (1, 0)
    assert gate.started == 1


async def test_draining_waits_for_results_to_be_confirmed(bench, echo, task, eventually) -> None:
    worker = await bench.start()
    bench.broker.open.clear()
    await bench.send(task())
    await eventually(lambda: bench.broker.published)
    draining = asyncio.create_task(worker.drain())
    await bench.settle_down()
    assert not draining.done()
    bench.broker.open.set()
    await draining
    assert (await bench.waiting(), bench.unsettled()) == (0, 0)
    assert (await bench.report()).status is ReportStatus.COMPLETED


async def test_draining_gives_back_at_once_what_has_not_started(bench, gate, task, eventually) -> None:
    worker = await bench.start(concurrency=1)
    thief = await bench.client.consume(agent_queue("echo"), prefetch=1)
    await bench.send(task("echo", "runs"), task("echo", "waits"))
    await gate.begun.wait()
    other = MemoryBroker(bench.server)
    await other.connect()
    colleague = await other.consume(agent_queue("echo"), prefetch=1)
    bench.server.drop_connections()  # they reconnect in their order: the thief gets what runs, the worker what waits
    await eventually(lambda: bench.unsettled() == 2)
    await bench.settle_down()
    draining = asyncio.create_task(worker.drain())
    async with asyncio.timeout(30):
        given_back = await colleague.receive(1)
    assert decode(AgentTask, given_back[0].body).input == "waits"
    assert not draining.done()
    gate.open.set()
    await draining
    assert gate.started == 1
    await thief.close()
    await other.close()


async def test_an_idle_agents_queue_is_let_go_while_another_still_drains(bench, gate, echo_too, task) -> None:
    worker = await bench.start()
    await bench.send(task("echo"))
    await gate.begun.wait()
    draining = asyncio.create_task(worker.drain())
    await bench.settle_down()
    assert (await bench.client.check_queue("agent.other")).consumers == 0
    assert bench.unsettled("other") == 0
    assert bench.unsettled("echo") == 1
    gate.open.set()
    await draining


@pytest.fixture
def echo_too(bench):
    @bench.agents.agent("other")
    async def other(input): ...


async def test_what_is_not_finished_within_the_drain_timeout_goes_back_unsettled(bench, gate, task) -> None:
    worker = await bench.start(drain_timeout=0.01)
    await bench.send(task())
    await gate.begun.wait()
    await worker.drain()
    assert (await bench.waiting(), bench.unsettled()) == (1, 0)
    assert bench.broker.published == []
    assert gate.ended == 0


async def test_closing_cancels_what_runs_and_reports_no_failure(bench, gate, task) -> None:
    worker = await bench.start()
    await bench.send(task(), task())
    await gate.begun.wait()
    await worker.close()
    await worker.close()  # again is harmless
    assert (await bench.waiting(), bench.unsettled()) == (2, 0)
    assert bench.broker.published == []


async def test_closing_lets_a_cancelled_agent_clean_up(bench, task) -> None:
    begun, cleaned = asyncio.Event(), asyncio.Event()

    @bench.agents.agent("echo")
    async def tidy(input):
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    worker = await bench.start()
    await bench.send(task())
    await begun.wait()
    await worker.close()
    assert cleaned.is_set()
    assert (await bench.waiting(), bench.unsettled()) == (1, 0)
    assert bench.broker.published == []


class Stubborn:
    """An agent that ignores its cancellation until it is let go."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.open = asyncio.Event()
        self.contexts: list[AgentContext] = []
        self.started = 0
        self.cancelled = 0
        self.ended = 0

    async def __call__(self, input: Any, context: AgentContext) -> str:
        self.contexts.append(context)
        self.started += 1
        self.begun.set()
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


async def test_closing_waits_no_longer_than_the_grace_for_an_agent_that_ignores_its_cancellation(
    bench, stubborn, task, eventually
) -> None:
    worker = await bench.start(cancel_grace=0.01)
    await bench.send(task())
    await stubborn.begun.wait()
    with capture_logs() as lines:
        async with asyncio.timeout(30):
            await worker.close()
    assert [line["action"] for line in lines if line["log_level"] == "warning"] == ["agent_abandoned"]
    assert stubborn.contexts[0].over
    stubborn.open.set()
    await eventually(lambda: stubborn.ended == 1)
    await bench.settle_down()
    assert bench.broker.published == []
    assert (await bench.waiting(), bench.unsettled()) == (1, 0)


async def test_an_agent_that_ignores_its_timeout_is_reported_and_holds_up_nothing(
    bench, stubborn, task, eventually
) -> None:
    worker = await bench.start(concurrency=1, cancel_grace=0.01)
    await bench.send(task(timeout_seconds=0.01), task(timeout_seconds=0.01))
    results = [await bench.report() for _ in range(2)]
    assert [result.error.type for result in results] == ["timeout", "timeout"]
    await eventually(lambda: bench.unsettled() == 0)
    assert (stubborn.started, stubborn.ended) == (2, 0)
    assert all(context.over for context in stubborn.contexts)
    stubborn.open.set()
    await eventually(lambda: stubborn.ended == 2)
    await bench.settle_down()
    await worker.drain()
    assert len(bench.broker.published) == 2, "what it returned after all does not count"


async def test_a_task_that_waits_for_an_agent_that_ignores_its_timeout_is_started(
    bench, stubborn, task, eventually
) -> None:
    await bench.start(concurrency=1, cancel_grace=0.01)
    thief = await bench.client.consume(agent_queue("echo"), prefetch=1)
    await bench.send(task("echo", timeout_seconds=0.2), task("echo"))
    await stubborn.begun.wait()
    bench.server.drop_connections()  # they reconnect in their order: the thief gets what runs, the worker what waits
    await eventually(lambda: stubborn.started == 2)
    assert stubborn.ended == 0
    await thief.close()


async def test_an_attempt_that_is_given_up_during_its_grace_sends_nothing(bench, stubborn, task, eventually) -> None:
    worker = await bench.start(cancel_grace=0.2)
    await bench.send(task(timeout_seconds=0.01))
    await eventually(lambda: stubborn.cancelled == 1)  # its time is over
    await worker.close()
    assert bench.broker.published == []
    assert (await bench.waiting(), bench.unsettled()) == (1, 0)
    stubborn.open.set()
    await eventually(lambda: stubborn.ended == 1)


async def test_closing_does_not_wait_for_a_thread(bench, task) -> None:
    begun, release = threading.Event(), threading.Event()

    @bench.agents.agent("echo")
    def stuck(input):
        begun.set()
        release.wait()

    worker = await bench.start()
    await bench.send(task())
    await asyncio.to_thread(begun.wait)
    await worker.close()
    assert await bench.waiting() == 1
    release.set()


async def test_stop_drains_and_a_second_stop_gives_up(bench, gate, task) -> None:
    worker = bench.worker()
    running = asyncio.create_task(worker.run_until_stopped())
    await bench.send(task())
    await gate.begun.wait()
    worker.stop()
    await bench.settle_down()
    assert not running.done()
    worker.stop()
    async with asyncio.timeout(20):  # less than the drain timeout
        await running
    assert (await bench.waiting(), bench.unsettled()) == (1, 0)


async def test_stop_while_the_broker_is_away_returns(bench, echo) -> None:
    bench.server.stop()
    worker = bench.worker()
    running = asyncio.create_task(worker.run_until_stopped())
    await bench.settle_down()
    assert not running.done()
    worker.stop()
    await running
    bench.server.start()


async def test_a_bug_in_a_loop_ends_the_worker_loudly(bench, echo, task, monkeypatch) -> None:
    async def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    worker = bench.worker()
    running = asyncio.create_task(worker.run_until_stopped())
    monkeypatch.setattr(bench.broker, "publish", broken)
    await bench.send(task())
    with pytest.raises(ZeroDivisionError):
        await running
    assert await bench.waiting() == 1


async def test_a_bug_while_working_on_a_task_ends_the_worker_loudly(bench, echo, task, monkeypatch) -> None:
    def broken(_: Any) -> bytes:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("agent_worker.reports.dump_checked", broken)
    worker = bench.worker()
    running = asyncio.create_task(worker.run_until_stopped())
    await bench.send(task())
    async with asyncio.timeout(30):
        with pytest.raises(ZeroDivisionError):
            await running
    assert await bench.waiting() == 1


async def test_a_bug_while_running_an_agent_fails_that_attempt_only(bench, echo, task, monkeypatch) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a bug")

    await bench.start()
    with monkeypatch.context() as patch:
        patch.setattr("agent_worker.execution.check_json", broken)
        await bench.send(task())
        error = (await bench.report()).error
    assert (error.type, error.message) == ("internal_error", "a bug in the worker: ZeroDivisionError('a bug')")
    await bench.send(task())
    assert (await bench.report()).status is ReportStatus.COMPLETED


@pytest.mark.parametrize("limit", [1, SUSPECT_FROM, SUSPECT_FROM + 1])
async def test_a_task_that_keeps_coming_back_is_failed_instead_of_run(bench, echo, task, eventually, limit) -> None:
    await bench.send(task())
    for _ in range(limit):
        consumer = await bench.client.consume(agent_queue("echo"), prefetch=1)
        await consumer.receive(1)
        await consumer.close()
    await bench.start(max_deliveries=limit)
    result = await bench.report()
    assert result.error.type == "worker_lost"
    assert f"delivered {limit} times" in result.error.message
    assert result.error.retryable is False
    assert echo == []
    await eventually(lambda: bench.unsettled() == 0)


async def test_tasks_that_came_back_often_run_one_at_a_time(bench, gate, task, eventually, monkeypatch) -> None:
    monkeypatch.setattr("agent_worker.suspects.GATHERING", 0.001)
    await bench.send(task(), task(), task())
    for _ in range(SUSPECT_FROM):
        consumer = await bench.client.consume(agent_queue("echo"), prefetch=3)
        await consumer.receive(3)
        await consumer.close()
    await bench.start(concurrency=5)
    await bench.send(task())  # a new one is not held up
    await eventually(lambda: gate.started == 2)
    await bench.settle_down()
    assert gate.started == 2
    gate.open.set()
    await eventually(lambda: gate.ended == 4)
    await eventually(lambda: bench.unsettled() == 0)


async def test_draining_gives_back_a_task_that_waits_for_its_turn_to_run_alone(
    bench, gate, task, eventually, monkeypatch
) -> None:
    monkeypatch.setattr("agent_worker.suspects.GATHERING", 0.001)
    await bench.send(task(), task())
    for _ in range(SUSPECT_FROM):
        consumer = await bench.client.consume(agent_queue("echo"), prefetch=2)
        await consumer.receive(2)
        await consumer.close()
    with capture_logs() as lines:
        worker = await bench.start()
        await eventually(lambda: [line["action"] for line in lines].count("suspect_task") == 2)
    await gate.begun.wait()
    draining = asyncio.create_task(worker.drain())
    await bench.settle_down()
    gate.open.set()
    await draining
    assert gate.started == 1
    assert (await bench.waiting(), bench.unsettled()) == (1, 0)


async def test_a_worker_declares_its_queues(bench, echo) -> None:
    await bench.start()
    assert "agent.echo" in bench.server.queue_names


async def test_a_worker_that_may_not_declare_checks_that_its_queues_exist(bench, echo) -> None:
    with pytest.raises(QueueMissing, match=r"missing: agent.echo; declare them, or let the worker do it"):
        await bench.start(declare=False)
    await bench.client.declare([], [agent_queue("echo")])
    await bench.start(declare=False)


async def test_a_queue_with_other_properties_is_an_error_at_start(bench, echo) -> None:
    await bench.client.declare([], [Queue("agent.echo", QueueKind.CLASSIC)])
    with pytest.raises(TopologyMismatch, match=r"agent.echo"):
        await bench.start()


async def test_a_registry_without_agents_is_an_error_at_start(bench) -> None:
    with pytest.raises(NoAgents):
        await bench.start()
