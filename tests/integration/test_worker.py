"""Workers against RabbitMQ: in this process, and as the real command with real signals."""

import asyncio
import json
import os
import signal
import sys
import urllib.parse
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from agent_worker import AgentRegistry
from agent_worker.options import WorkerOptions
from agent_worker.worker import Worker
from messaging.port import Consumer, OutgoingMessage, PublishOutcome
from messaging.rabbitmq import RabbitmqBroker
from messaging.topology import DEAD_LETTERS_QUEUE, EXCHANGES, QUEUES, RESULTS_QUEUE, TASKS_EXCHANGE, agent_queue
from schemas.codec import decode, encode
from schemas.messages import AgentResult, AgentTask
from schemas.statuses import ReportStatus

pytestmark = pytest.mark.filterwarnings("error")

Eventually = Callable[..., Awaitable[Any]]

AGENTS = """
import asyncio, os, pathlib, signal

from agent_worker import AgentContext, AgentRegistry

agents = AgentRegistry()
HERE = pathlib.Path(__file__).parent


def note(what):
    with open(HERE / "journal", "a") as journal:
        journal.write(what + "\\n")


def released():
    return (HERE / "release").exists()


@agents.agent("echo")
async def echo(input):
    note("echo")
    return {"got": input}


@agents.agent("waits")
async def waits(input, context: AgentContext):
    note("waits started")
    while not released():
        await asyncio.sleep(0.01)
    note("waits ended")
    return {"worker": context.worker_id}


@agents.agent("stubborn")
async def stubborn(input):
    note("stubborn started")
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            note("stubborn cancelled")


@agents.agent("stuck")
def stuck(input):
    note("stuck started")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signal.sigwait([signal.SIGUSR1])


@agents.agent("mixed")
async def mixed(input):
    if input == "kill":
        os._exit(7)
    return {"got": input}
"""


class Client:
    """The broker's other side: sends tasks, reads reports."""

    def __init__(self, broker: RabbitmqBroker, results: Consumer) -> None:
        self.broker = broker
        self._results = results
        self._received: list[AgentResult] = []

    async def send(self, agent_name: str, *inputs: Any, **fields: Any) -> list[AgentTask]:
        given = {"run_id": uuid.uuid4(), "step_id": "step-a", "attempt": 1} | fields
        tasks = [AgentTask(task_id=uuid.uuid4(), agent_name=agent_name, input=value, **given) for value in inputs]
        await self.send_bodies(agent_name, *map(encode, tasks))
        return tasks

    async def send_bodies(self, agent_name: str, *bodies: bytes) -> None:
        await self.broker.declare([], [agent_queue(agent_name)])
        outcomes = await self.broker.publish(
            [OutgoingMessage(TASKS_EXCHANGE, agent_name, "AgentTask", str(uuid.uuid4()), body) for body in bodies]
        )
        assert set(outcomes) == {PublishOutcome.CONFIRMED}

    async def results(self, count: int) -> list[AgentResult]:
        """Return the next *count* reports that end an attempt."""
        async with asyncio.timeout(30):
            while len(self._received) < count:
                deliveries = await self._results.receive(1_000)
                await self._results.ack(deliveries)
                reports = [decode(AgentResult, delivery.body) for delivery in deliveries]
                self._received += [report for report in reports if report.status.ends_attempt]
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    async def waiting(self, agent_name: str) -> int:
        return (await self.broker.check_queue(agent_queue(agent_name).name)).ready


class Command:
    """A worker process, with the log lines that it wrote so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self._reading = asyncio.create_task(self._read())

    @property
    def actions(self) -> list[str]:
        return [line.get("action", line["event"]) for line in self.lines]

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    async def ended(self) -> int:
        async with asyncio.timeout(30):
            await self._reading
            return await self.process.wait()

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.ended()

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:
                self.lines.append({"event": line.decode()})


@pytest.fixture
async def client(amqp_url: str) -> AsyncIterator[Client]:
    broker = RabbitmqBroker(amqp_url, name="test client")
    await broker.connect()
    await broker.declare(EXCHANGES, QUEUES)
    yield Client(broker, await broker.consume(RESULTS_QUEUE, prefetch=0))
    await broker.close()


@pytest.fixture
async def worker_broker(amqp_url: str) -> AsyncIterator[RabbitmqBroker]:
    broker = RabbitmqBroker(amqp_url, name="test worker")
    await broker.connect()
    yield broker
    await broker.close()


@pytest.fixture
async def launch(amqp_url: str, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Command]]]:
    """Starts ``python -m agent_worker`` in a directory with agents; kills what is left."""
    (tmp_path / "my_agents.py").write_text(AGENTS)
    started: list[Command] = []

    async def launch(*arguments: str, **environment: str) -> Command:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("FORKJOIN_")}
        given = {"FORKJOIN_AMQP_URL": amqp_url, "PYTHONPATH": str(Path(__file__).parents[2])} | environment
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "agent_worker",
            *(arguments or ("my_agents:agents",)),
            cwd=tmp_path,
            env=inherited | given,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(Command(process))
        return started[-1]

    yield launch
    await asyncio.gather(*(command.kill() for command in started))


@pytest.fixture
def journal(tmp_path: Path) -> Callable[[], list[str]]:
    """Returns what the agents noted so far."""
    path = tmp_path / "journal"
    return lambda: path.read_text().splitlines() if path.exists() else []


async def ready(command: Command, eventually: Eventually) -> Command:
    await eventually(lambda: "worker_ready" in command.actions or command.process.returncode is not None)
    assert "worker_ready" in command.actions, command.lines
    return command


async def test_five_hundred_tasks_have_five_hundred_results_and_nothing_is_left(
    client: Client, worker_broker: RabbitmqBroker, eventually: Eventually
) -> None:
    agents = AgentRegistry()
    agents.agent("echo")(lambda input: {"got": input})

    @agents.agent("async-echo")
    async def echo(input: Any) -> Any:
        return {"got": input}

    worker = Worker(worker_broker, agents, WorkerOptions(concurrency=50))
    tasks = await client.send("echo", *range(250)) + await client.send("async-echo", *range(250))
    await worker.start()
    results = await client.results(500)
    assert {result.task_id: result.output for result in results} == {t.task_id: {"got": t.input} for t in tasks}
    await worker.drain()
    assert [await client.waiting(name) for name in agents.names] == [0, 0]


async def test_a_message_that_is_no_task_is_dead_lettered_once_and_the_next_task_runs(
    client: Client, worker_broker: RabbitmqBroker
) -> None:
    agents = AgentRegistry()
    agents.agent("echo")(lambda input: {"got": input})
    worker = Worker(worker_broker, agents)
    await worker.start()
    await client.send_bodies("echo", b"no task")
    await client.send("echo", 1)
    assert (await client.results(1))[0].output == {"got": 1}
    letters = await client.broker.consume(DEAD_LETTERS_QUEUE, prefetch=0)
    async with asyncio.timeout(30):
        (letter,) = await letters.receive(10)
    assert (letter.body, letter.headers["x-forkjoin-reason"]) == (b"no task", "malformed_message")
    await worker.drain()
    assert await client.waiting("echo") == 0


async def test_a_task_that_runs_through_a_lost_connection_is_run_once_and_answered(
    rabbitmq: Any, amqp_url: str, client: Client, worker_broker: RabbitmqBroker, eventually: Eventually
) -> None:
    agents = AgentRegistry()
    begun, release = asyncio.Event(), asyncio.Event()
    runs: list[Any] = []

    @agents.agent("waits")
    async def waits(input: Any) -> Any:
        runs.append(input)
        begun.set()
        await release.wait()
        return "done"

    worker = Worker(worker_broker, agents)
    await worker.start()
    await client.send("waits", 1)
    await begun.wait()
    await cut(rabbitmq, amqp_url, "test worker", eventually)
    await eventually(lambda: not worker_broker.connected)
    await eventually(lambda: worker_broker.connected)

    async def came_again() -> bool:
        return await client.waiting("waits") == 0

    await eventually(came_again)  # or it would wait for another worker, which is right too
    release.set()
    assert (await client.results(1))[0].output == "done"
    await worker.drain()
    assert await client.waiting("waits") == 0
    assert runs == [1]


async def cut(rabbitmq: Any, amqp_url: str, name: str, eventually: Eventually) -> None:
    """Close the connections of one client from the broker's side."""
    if rabbitmq.management is None:
        pytest.skip("needs RabbitMQ's management API")
    vhost = urllib.parse.urlsplit(amqp_url).path.removeprefix("/")

    def found() -> list[str]:
        connections = rabbitmq.management.call("GET", f"/vhosts/{vhost}/connections")
        mine = [
            c["name"] for c in connections if c.get("client_properties", {}).get("connection_name", "").startswith(name)
        ]
        return mine if len(mine) == 2 else []  # one to publish, one to consume

    for connection in await eventually(lambda: asyncio.to_thread(found)):
        rabbitmq.management.call("DELETE", f"/connections/{urllib.parse.quote(connection, safe='')}")


async def test_the_command_says_when_it_is_ready_and_works(
    client: Client, launch: Callable[..., Awaitable[Command]], eventually: Eventually
) -> None:
    command = await ready(
        await launch("my_agents:agents", "--concurrency", "3", FORKJOIN_WORKER_ID="worker-7"), eventually
    )
    line = next(line for line in command.lines if line.get("action") == "worker_ready")
    assert line["concurrency"] == 3
    assert "echo" in line["agents"]
    await client.send("echo", {"a": 1})
    (result,) = await client.results(1)
    assert (result.output, result.worker_id) == ({"got": {"a": 1}}, "worker-7")


async def test_sigterm_in_mid_task_finishes_it_and_exits_with_0(
    client: Client,
    launch: Callable[..., Awaitable[Command]],
    journal: Callable[[], list[str]],
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    command = await ready(await launch("my_agents:agents", "--concurrency", "1"), eventually)
    await client.send("waits", 1, 2)
    await eventually(lambda: journal() == ["waits started"])
    command.terminate()
    await eventually(lambda: "worker_draining" in command.actions)
    (tmp_path / "release").touch()
    assert await command.ended() == 0
    (result,) = await client.results(1)
    assert result.status is ReportStatus.COMPLETED
    assert journal() == ["waits started", "waits ended"]
    assert await client.waiting("waits") == 1  # the second was not started
    assert command.actions[-1] == "worker_stopped"


async def test_a_second_sigterm_exits_quickly_and_the_task_goes_back(
    client: Client,
    launch: Callable[..., Awaitable[Command]],
    journal: Callable[[], list[str]],
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    command = await ready(await launch(), eventually)
    await client.send("waits", 1)
    await eventually(lambda: journal() == ["waits started"])
    command.terminate()
    await eventually(lambda: "worker_draining" in command.actions)
    command.terminate()
    assert await command.ended() == 0
    await eventually(lambda: client.waiting("waits"))
    (tmp_path / "release").touch()
    await ready(await launch(), eventually)
    assert (await client.results(1))[0].status is ReportStatus.COMPLETED
    assert journal() == ["waits started", "waits started", "waits ended"]


@pytest.mark.parametrize("agent_name", ["stubborn", "stuck"])
async def test_agents_that_cannot_be_stopped_do_not_keep_the_process_alive(
    client: Client,
    launch: Callable[..., Awaitable[Command]],
    journal: Callable[[], list[str]],
    eventually: Eventually,
    agent_name: str,
) -> None:
    command = await ready(await launch(FORKJOIN_WORKER_DRAIN_TIMEOUT="0.1"), eventually)
    await client.send(agent_name, 1)
    await eventually(lambda: journal() == [f"{agent_name} started"])
    command.terminate()
    assert await command.ended() == 0
    assert "drain_timed_out" in command.actions
    await eventually(lambda: client.waiting(agent_name))


async def test_a_killed_workers_task_is_finished_by_another(
    client: Client,
    launch: Callable[..., Awaitable[Command]],
    journal: Callable[[], list[str]],
    tmp_path: Path,
    eventually: Eventually,
) -> None:
    first = await ready(await launch(), eventually)
    await client.send("waits", 1)
    await eventually(lambda: journal() == ["waits started"])
    await ready(await launch(FORKJOIN_WORKER_ID="second"), eventually)
    await first.kill()
    await eventually(lambda: len(journal()) == 2)
    (tmp_path / "release").touch()
    assert (await client.results(1))[0].output == {"worker": "second"}


async def test_a_task_that_kills_its_process_each_time_is_failed_and_its_neighbours_get_done(
    client: Client, launch: Callable[..., Awaitable[Command]], eventually: Eventually
) -> None:
    tasks = await client.send("mixed", "kill", *range(4))
    # four times together, then twice one at a time in opposite orders, then the guilty one is known
    for _ in range(6):
        command = await launch(FORKJOIN_WORKER_MAX_DELIVERIES="6")
        assert await command.ended() == 7
    command = await launch(FORKJOIN_WORKER_MAX_DELIVERIES="6")
    results = {result.task_id: result for result in await client.results(5)}
    guilty = results[tasks[0].task_id].error
    assert guilty is not None
    assert (guilty.type, guilty.retryable) == ("worker_lost", False)
    assert [results[task.task_id].output for task in tasks[1:]] == [{"got": number} for number in range(4)]
    command.terminate()
    assert await command.ended() == 0
    assert await client.waiting("mixed") == 0


async def test_refused_credentials_end_the_command_with_code_1_and_no_secret_in_the_log(
    amqp_url: str, launch: Callable[..., Awaitable[Command]]
) -> None:
    parts = urllib.parse.urlsplit(amqp_url)
    wrong = parts._replace(netloc=f"nobody:hush@{parts.hostname}:{parts.port}").geturl()
    command = await launch(FORKJOIN_AMQP_URL=wrong)
    assert await command.ended() == 1
    assert "worker_failed" in command.actions
    assert "hush" not in json.dumps(command.lines)


async def test_a_worker_that_waits_for_the_broker_can_be_stopped(
    launch: Callable[..., Awaitable[Command]], eventually: Eventually
) -> None:
    command = await launch(FORKJOIN_AMQP_URL="amqp://guest:guest@127.0.0.1:1/")
    await eventually(lambda: command.lines)
    command.terminate()
    assert await command.ended() == 0
