"""What a worker says of itself, and what it counts of its attempts."""

import asyncio

import pytest

from agent_worker import AgentFailed, RetryLater
from agent_worker.monitoring import WorkerMonitor
from agent_worker.options import WorkerOptions
from agent_worker.worker import Worker
from messaging.memory import MemoryBroker
from messaging.monitoring.condition import Condition, Status
from messaging.monitoring.instruments import Count, Gauge, Instrument, Spread
from messaging.port import OutgoingMessage
from messaging.topology import CANCELLED_KEY, WORKERS_EXCHANGE
from schemas.codec import encode
from schemas.messages import RunCancelled


@pytest.fixture
def monitor(bench) -> WorkerMonitor:
    """Answers for a worker that `monitored` makes."""
    return WorkerMonitor(bench.broker, lambda: 3, concurrency=10)


def monitored(bench, monitor: WorkerMonitor) -> Worker:
    options = WorkerOptions(worker_id="worker-1", report_started_after=3_600.0)
    worker = Worker(bench.broker, bench.agents, options, book=monitor.book, observer=monitor.attempts.ended)
    bench.workers.append(worker)
    monitor.watch(worker)
    return worker


def named(instruments: list[Instrument]) -> dict[str, Instrument]:
    return {one.description.name: one for one in instruments}


async def test_a_worker_starts_works_and_drains(bench, monitor, eventually) -> None:
    bench.agents.agent("echo")(lambda input: input)
    bench.broker.server.stop()
    worker = monitored(bench, monitor)
    running = asyncio.create_task(worker.run_until_stopped())
    await eventually(lambda: not bench.broker.connected)
    before: Condition = await monitor.condition()
    bench.broker.server.start()
    await eventually(lambda: worker.ready)
    during = await monitor.condition()
    bench.broker.server.stop()
    cut_off = await monitor.condition()
    bench.broker.server.start()
    await eventually(lambda: bench.broker.connected)
    worker.stop()
    after = await monitor.condition()
    await running
    assert [one.status for one in (before, during, cut_off, after)] == [
        Status.STARTING,
        Status.OK,
        Status.DEGRADED,
        Status.DRAINING,
    ]
    assert [(trouble.part, trouble.reason) for trouble in before.troubles] == [("broker", "not reached yet")]
    assert [trouble.part for trouble in cut_off.troubles] == ["broker"]


async def test_attempts_are_counted_by_how_they_ended(bench, monitor, task, eventually) -> None:
    waiting = asyncio.Event()

    @bench.agents.agent("echo")
    async def echo(input):
        match input:
            case "fail":
                raise AgentFailed("no")
            case "later":
                raise RetryLater(1)
            case "wait":
                waiting.set()
                await asyncio.Event().wait()
        return input

    await monitored(bench, monitor).start()
    sent = [task("echo", given) for given in ("fine", "fine", "fail", "later", "wait")]
    await bench.send(*sent)
    await waiting.wait()
    await eventually(lambda: sum(monitor.attempts.instruments()[0].values.values()) == 4)
    running = named(await monitor.instruments())["forkjoin_worker_running"]
    body = encode(RunCancelled(run_id=sent[-1].run_id))
    await bench.client.publish([OutgoingMessage(WORKERS_EXCHANGE, CANCELLED_KEY, "RunCancelled", "m-1", body)])
    await eventually(lambda: sum(monitor.attempts.instruments()[0].values.values()) == 5)

    found = named(await monitor.instruments())
    ended, seconds = found["forkjoin_worker_attempts"], found["forkjoin_worker_attempt_seconds"]
    assert isinstance(running, Gauge)
    assert running.values == {("echo",): 1}
    assert isinstance(ended, Count)
    assert ended.values == {
        ("echo", "completed"): 2,
        ("echo", "failed"): 1,
        ("echo", "postponed"): 1,
        ("echo", "cancelled"): 1,
    }
    assert isinstance(seconds, Spread)
    assert sum(seconds.tallies["echo",].counts) == 5
    assert isinstance(found["forkjoin_worker_concurrency"], Gauge)
    assert found["forkjoin_worker_concurrency"].values == {("echo",): 10}
    assert found["forkjoin_broker_reconnects"].values == {(): 3}
    assert found["forkjoin_ready"].values == {(): True}


async def test_a_worker_that_does_not_exist_yet_starts() -> None:
    assert (await WorkerMonitor(MemoryBroker(), int, concurrency=1).condition()).status is Status.STARTING
