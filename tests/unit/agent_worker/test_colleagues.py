"""A task that is handed out again while another worker has it."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent_worker.options import WorkerOptions
from agent_worker.registry import AgentRegistry
from agent_worker.worker import Worker
from messaging.memory import MemoryBroker
from messaging.port import BrokerUnavailable, OutgoingMessage, Queue
from messaging.topology import agent_queue
from schemas.statuses import ReportStatus


class Agent:
    """The agent "echo" of one worker: waits until it is let go."""

    def __init__(self) -> None:
        self.started = 0
        self.begun = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, input: Any) -> Any:
        self.started += 1
        self.begun.set()
        await self.open.wait()
        return input


class Colleague:
    """Another worker, on a connection of its own."""

    def __init__(self, bench: Any) -> None:
        self.agent = Agent()
        self.agent.open.set()
        agents = AgentRegistry()
        agents.agent("echo")(self.agent)
        self.broker = MemoryBroker(bench.server)
        self.worker = Worker(self.broker, agents, WorkerOptions(worker_id="worker-2", max_deliveries=3))

    async def close(self) -> None:
        await self.worker.close()
        await self.broker.close()


@pytest.fixture
def first(bench) -> Agent:
    """The agent of the first worker, `bench.start`."""
    return bench.agents.agent("echo")(Agent())


@pytest.fixture
async def second(bench) -> AsyncIterator[Colleague]:
    """Another worker; not started yet."""
    colleague = Colleague(bench)
    yield colleague
    await colleague.close()


async def both_have(bench, task, first: Agent, second: Colleague, eventually, lines) -> Any:
    """Let the first worker run a task, and the broker hand it to the second one as well."""
    worker = await bench.start(concurrency=1)
    sent = task("echo", "once")
    await bench.send(sent)
    await first.begun.wait()
    await second.worker.start()
    await bench.send(sent, earlier_deliveries=50)
    await eventually(lambda: any(line["action"] == "stands_by" for line in lines))
    return worker


async def test_a_task_that_another_worker_runs_is_neither_run_nor_failed(
    bench, task, first, second, eventually
) -> None:
    with capture_logs() as lines:
        await both_have(bench, task, first, second, eventually, lines)
        assert bench.unsettled() == 2
        first.open.set()
        await eventually(lambda: bench.unsettled() == 0)
    assert (await bench.report()).worker_id == "worker-1"
    assert (first.started, second.agent.started, await bench.reports_left(), await bench.waiting()) == (1, 0, 0, 0)
    told = [line for line in lines if line["action"] == "stands_by"]
    assert [line["setting"] for line in told] == ["consumer_timeout"]
    assert [line["action"] for line in lines].count("finished_elsewhere") == 1


async def test_a_task_whose_worker_is_gone_is_run_though_it_waited(bench, task, first, second, eventually) -> None:
    with capture_logs() as lines:
        worker = await both_have(bench, task, first, second, eventually, lines)
        await worker.close()
        report = await bench.report()
    assert (report.worker_id, report.error.type) == ("worker-2", "worker_lost")
    assert "delivered 50 times" in report.error.message


async def test_a_task_that_nobody_has_is_run_when_nobody_answers(bench, task, first, second) -> None:
    await bench.start()
    await second.worker.start()
    first.open.set()
    await bench.send(task("echo", "x"), earlier_deliveries=1)
    assert (await bench.report()).status is ReportStatus.COMPLETED
    assert first.started + second.agent.started == 1


async def test_a_task_that_comes_for_the_first_time_is_nobodys_question(bench, task, first) -> None:
    await bench.start()
    first.open.set()
    await bench.send(task("echo"))
    await bench.report()
    assert [message.type for message in bench.broker.published] == ["AgentResult"]


async def test_draining_gives_back_a_task_that_waits_for_a_colleague(bench, task, first, second, eventually) -> None:
    with capture_logs() as lines:
        await both_have(bench, task, first, second, eventually, lines)
        await second.worker.drain()
    assert (await bench.waiting(), bench.unsettled(), second.agent.started) == (1, 1, 0)


async def test_what_cannot_be_understood_is_logged_and_the_next_question_answered(
    bench, task, first, second, eventually
) -> None:
    with capture_logs() as lines:
        await bench.start(concurrency=1)
        sent = task("echo")
        await bench.send(sent)
        await first.begun.wait()
        (queue,) = [name for name in bench.server.queue_names if name.startswith("orchestrator.worker.")]
        await publish_nonsense(bench, "asked.echo")
        await eventually(lambda: any(line["action"] == "hearsay_refused" for line in lines))
        await second.worker.start()
        await bench.send(sent, earlier_deliveries=1)
        await eventually(lambda: any(line["action"] == "stands_by" for line in lines))
    assert bench.server.unsettled(queue) == 0


async def publish_nonsense(bench, key: str) -> None:
    message = OutgoingMessage("orchestrator.workers", key, "Question", str(uuid.uuid4()), b"who?")
    await bench.client.publish([message])


async def test_a_worker_that_may_not_listen_says_so_and_works(bench, task, first, monkeypatch) -> None:
    consume = bench.broker.consume

    async def forbidden(queue: Queue, *, prefetch: int) -> Any:
        if queue.name != agent_queue("echo").name:
            raise BrokerUnavailable("not permitted")
        return await consume(queue, prefetch=prefetch)

    monkeypatch.setattr(bench.broker, "consume", forbidden)
    first.open.set()
    with capture_logs() as lines:
        await bench.start()
        await bench.send(task("echo"), earlier_deliveries=1)
        assert (await bench.report()).status is ReportStatus.COMPLETED
    assert [line["action"] for line in lines].count("colleagues_unreachable") == 1
