"""The users of `forkjoin rabbitmq definitions` on a real broker: what each can do, and what it cannot."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiormq
import pytest
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed
from yarl import URL

from messaging.definitions import Role, User, definitions
from messaging.port import Broker, Queue, QueueKind
from messaging.rabbitmq import RabbitmqBroker
from orchestrator.service.identities import Identities
from orchestrator.storage.definitions import register_workflow
from schemas.codec import encode
from schemas.messages import RunRequest
from schemas.statuses import ResultStatus
from schemas.validation import parse_workflow
from tests.integration.replicas import Brokers
from tests.integration.system import System
from tests.services.management import Management
from tests.services.rabbitmq import RabbitMQ
from tests.services.waiting import eventually

PASSWORD = "a word of ours"
DURABLE_QUORUM = {"x-queue-type": "quorum"}


@dataclass
class Users:
    """A vhost with the definitions for one user of each role; the worker serves `research`, another one `write`."""

    vhost_url: str
    suffix: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def name(self, role: str) -> str:
        return f"{role}-{self.suffix}"

    def url(self, role: str) -> str:
        return str(URL(self.vhost_url).with_user(self.name(role)).with_password(PASSWORD))

    def definitions(self, major_version: int) -> dict[str, Any]:
        users = [
            User(self.name("orchestrator"), Role.ORCHESTRATOR),
            User(self.name("research"), Role.WORKER, ["research"]),
            User(self.name("write"), Role.WORKER, ["write"]),
            User(self.name("submitter"), Role.SUBMITTER),
            User(self.name("operator"), Role.OPERATOR),
        ]
        passwords = {user.name: PASSWORD for user in users}
        vhost = URL(self.vhost_url).path.lstrip("/")
        return definitions(users, passwords, vhost=vhost, major_version=major_version)


@pytest.fixture(scope="module")
def management(rabbitmq: RabbitMQ) -> Management:
    if rabbitmq.management is None:
        pytest.skip(f"imports definitions by RabbitMQ's management API; {rabbitmq.origin} has none")
    return rabbitmq.management


@pytest.fixture(scope="module")
def users(rabbitmq: RabbitMQ, management: Management) -> Iterator[Users]:
    url = rabbitmq.new_vhost()
    users = Users(url)
    imported = users.definitions(int(management.version().partition(".")[0]))
    management.call("POST", "/definitions", imported)
    yield users
    rabbitmq.drop_vhost(url)
    for user in imported["users"]:
        management.call("DELETE", f"/users/{user['name']}")


@dataclass
class ByRole(Brokers):
    """Clients that connect as the user that their name stands for."""

    users: Users | None = None

    async def connect(self, name: str, **options: Any) -> Broker:
        assert self.users is not None
        role = {"client": "submitter", "worker": "research"}.get(name, "orchestrator")
        broker = RabbitmqBroker(self.users.url(role), name=name, **{"signs": True, **options})
        await broker.connect()
        return broker


@pytest.fixture
async def system(users: Users, migrated_url: str) -> AsyncIterator[System]:
    system = await System(ByRole(users.vhost_url, users=users), migrated_url).open()
    yield system
    await system.close()


async def research(task: dict[str, Any]) -> dict[str, Any]:
    return task


async def test_a_run_passes_through_services_and_a_client_with_users_of_their_own(system: System) -> None:
    await system.start_replica()
    await system.start_worker(research, declare=False)
    steps = {name: {"agent_name": "research", "input_mapping": {"n": name}} for name in ("a", "b", "c")}
    limited = {"type": "parallel", "parallel_steps": list(steps), "max_parallelism": 1}
    result = await system.run({"name": "users", "start_step": "block", "steps": {"block": limited, **steps}})

    assert (result.status, result.output) == (ResultStatus.COMPLETED, {name: {"n": name} for name in steps})


async def test_an_operator_cancels_a_run_and_its_worker_hears_of_it(system: System, users: Users) -> None:
    over = asyncio.Event()

    async def research(task: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(600)
        finally:
            over.set()

    await system.start_replica()
    await system.start_worker(research, declare=False, report_started_after=0)
    run_id = await system.submit({"name": "long", "start_step": "a", "steps": {"a": {"agent_name": "research"}}})
    started = "SELECT 1 FROM step_executions WHERE run_id = $1 AND status = 'RUNNING'"
    await eventually(lambda: system.fetch(started, run_id))
    operator = RabbitmqBroker(users.url("operator"), name="operator")
    await operator.connect()

    await type(system.client)(operator).cancel(run_id, "by an operator")

    assert await system.ended(run_id) == "CANCELLED"
    await asyncio.wait_for(over.wait(), 30)
    await operator.close()


WHOM: dict[str, set[str]] = {"research": {"research"}, "write": {"write"}}


def identities(users: Users, whom: dict[str, set[str]]) -> Identities:
    return Identities({users.name(role): agents for role, agents in whom.items()}, users.name("orchestrator"))


async def test_where_reports_must_be_signed_those_of_the_agents_worker_count_and_so_do_sub_workflows(
    system: System, users: Users
) -> None:
    await system.start_replica(identities=identities(users, WHOM))
    await system.start_worker(research, declare=False)
    child = {"name": "child", "start_step": "c", "steps": {"c": {"agent_name": "research"}}}
    await register_workflow(system.database, parse_workflow(child), child)
    parent = {"name": "parent", "start_step": "p", "steps": {"p": {"type": "sub_workflow", "workflow_id": "child"}}}
    assert (await system.run(parent)).status is ResultStatus.COMPLETED


@pytest.mark.parametrize("whom", [{"write": {"write"}}, {"research": {"write"}}])
async def test_where_reports_must_be_signed_those_of_others_have_no_effect_and_are_dead_letters(
    system: System, users: Users, whom: dict[str, set[str]]
) -> None:
    await system.start_replica(identities=identities(users, whom))
    await system.start_worker(research, declare=False)
    run_id = await system.submit({"name": "forged", "start_step": "a", "steps": {"a": {"agent_name": "research"}}})

    async def refused() -> bool:
        return bool(await system.fetch("SELECT 1 FROM dead_letters WHERE code = 'forged_result'"))

    await eventually(refused)
    assert await system.status(run_id) == "RUNNING"


async def test_a_submitter_cannot_complete_the_step_of_a_stranger_by_a_run_of_its_own(
    system: System, users: Users
) -> None:
    """The orchestrator would send the result of that run, and sign it."""
    block = asyncio.Event()

    async def research(task: dict[str, Any]) -> str:
        if task["slow"]:
            await block.wait()
        return "forged"

    await system.start_replica(identities=identities(users, WHOM))
    await system.start_worker(research, declare=False, concurrency=2)
    steps = {"c": {"agent_name": "research", "input_mapping": {"slow": "${workflow.input.slow}"}}}
    child = {"name": "slow-child", "start_step": "c", "steps": steps}
    await register_workflow(system.database, parse_workflow(child), child)
    step = {"type": "sub_workflow", "workflow_id": "slow-child", "input_mapping": {"slow": True}}
    parent = await system.submit({"name": "parent", "start_step": "p", "steps": {"p": step}})
    await eventually(lambda: system.fetch("SELECT 1 FROM step_executions WHERE status = 'RUNNING' AND step_id = 'c'"))
    task_id = (await system.task_ids(parent))["p"]

    connection = await aiormq.connect(users.url("submitter"))
    channel = await connection.channel(publisher_confirms=True)
    for request in (
        RunRequest(workflow=child, input={"slow": False}),
        RunRequest(workflow=child, input={"slow": False}, run_id=task_id, parent_run_id=parent),
        None,
    ):
        properties = aiormq.spec.Basic.Properties(
            message_type="RunRequest",
            reply_to="orchestrator.results",
            correlation_id=f"{parent}/{task_id}",
            user_id=users.name("submitter"),
        )
        body = encode(request) if request is not None else b"nonsense"
        key = "orchestrator.runs"
        await channel.basic_publish(body, exchange="orchestrator.submit", routing_key=key, properties=properties)

    letters = await system.stored_dead_letters(3)
    codes = sorted(letter["code"] for letter in letters)
    assert codes == ["forged_request", "invalid_reply_to", "invalid_reply_to"]
    assert await system.status(parent) == "RUNNING"
    block.set()
    assert await system.ended(parent) == "COMPLETED"
    await connection.close()


async def test_whoever_signs_with_the_name_of_another_is_cut_off(users: Users) -> None:
    connection = await aiormq.connect(users.url("research"))
    channel = await connection.channel(publisher_confirms=True)
    properties = aiormq.spec.Basic.Properties(user_id=users.name("write"))
    with pytest.raises(ChannelPreconditionFailed):
        await channel.basic_publish(
            b"{}", exchange="orchestrator.results", routing_key="result.research", properties=properties, timeout=30
        )
    await connection.close()


Attempt = Callable[[AbstractChannel], Awaitable[Any]]


def publishing(exchange: str, key: str) -> Attempt:
    return lambda channel: channel.basic_publish(b"{}", exchange=exchange, routing_key=key, timeout=30)


def consuming(queue: str) -> Attempt:
    async def attempt(channel: AbstractChannel) -> None:
        async def taken(_: Any) -> None:
            raise AssertionError("nothing is delivered to whoever may not read")

        await channel.basic_consume(queue, taken)

    return attempt


def declaring(queue: str, **arguments: Any) -> Attempt:
    return lambda channel: channel.queue_declare(queue, durable=True, arguments=arguments or DURABLE_QUORUM)


def binding(queue: str, exchange: str, key: str) -> Attempt:
    async def attempt(channel: AbstractChannel) -> None:
        await channel.queue_declare(queue, exclusive=True)
        await channel.queue_bind(queue, exchange, key)

    return attempt


FORBIDDEN = {
    "a worker takes tasks of another's agent": ("research", consuming("agent.write")),
    "a worker has tasks of another's agent copied": (
        "research",
        binding("orchestrator.worker.x", "orchestrator.tasks", "write"),
    ),
    "a worker reads results": ("research", consuming("orchestrator.results")),
    "a worker has results copied": ("research", binding("orchestrator.worker.x", "orchestrator.results", "result.#")),
    "a worker reports for another's agent": ("research", publishing("orchestrator.results", "result.write")),
    "a worker sends tasks": ("research", publishing("orchestrator.tasks", "research")),
    "a worker tells of cancellations": ("research", publishing("orchestrator.workers", "cancelled")),
    "a worker asks about another's tasks": ("research", publishing("orchestrator.workers", "asked.write")),
    "a worker hears questions about another's tasks": (
        "research",
        binding("orchestrator.worker.x", "orchestrator.workers", "asked.write"),
    ),
    "a worker submits a run": ("research", publishing("orchestrator.submit", "orchestrator.runs")),
    "a worker gives a command": ("research", publishing("", "orchestrator.commands")),
    "a worker reads dead letters": ("research", consuming("orchestrator.dead-letters")),
    "a worker declares the queue of its agent": ("research", declaring("agent.research")),
    "a worker declares the queue of another's agent": ("research", declaring("agent.write")),
    "a worker declares a queue of another name": ("research", declaring("mine")),
    "a worker deletes the queue of its agent": ("research", lambda channel: channel.queue_delete("agent.research")),
    "a worker purges the queue of another's agent": ("research", lambda channel: channel.queue_purge("agent.write")),
    "a submitter reports a result": ("submitter", publishing("orchestrator.results", "result.research")),
    "a submitter publishes to a queue by its name": ("submitter", publishing("", "agent.research")),
    "a submitter gives a command": ("submitter", publishing("", "orchestrator.commands")),
    "a submitter sends tasks": ("submitter", publishing("orchestrator.tasks", "research")),
    "a submitter reads requests": ("submitter", consuming("orchestrator.runs")),
    "a submitter takes tasks": ("submitter", consuming("agent.research")),
    "a submitter has tasks copied": ("submitter", binding("orchestrator.watch.x", "orchestrator.tasks", "research")),
    "a submitter declares a queue of another name": ("submitter", declaring("mine")),
    "an operator takes tasks": ("operator", consuming("agent.research")),
    "an operator reports a result": ("operator", publishing("orchestrator.results", "result.research")),
    "an orchestrator takes tasks": ("orchestrator", consuming("agent.research")),
    "an orchestrator declares the queue of an agent": ("orchestrator", declaring("agent.research")),
    "an orchestrator deletes the queue of an agent": (
        "orchestrator",
        lambda channel: channel.queue_delete("agent.research"),
    ),
    "an orchestrator declares a queue of another name": ("orchestrator", declaring("mine")),
}


@pytest.mark.parametrize("what", FORBIDDEN)
async def test_nobody_may_do_what_is_not_theirs(users: Users, what: str) -> None:
    role, attempt = FORBIDDEN[what]
    connection = await aiormq.connect(users.url(role))
    channel = await connection.channel(publisher_confirms=True)
    with pytest.raises(ChannelAccessRefused):
        await asyncio.wait_for(attempt(channel), 30)
    await connection.close()


ALLOWED = {
    "a worker takes the tasks of its agent": ("research", consuming("agent.research")),
    "a worker reports for its agent": ("research", publishing("orchestrator.results", "result.research")),
    "a worker sets a message aside": ("research", publishing("orchestrator.dead-letters", "")),
    "a submitter submits a run": ("submitter", publishing("orchestrator.submit", "orchestrator.runs")),
    "an operator gives a command": ("operator", publishing("", "orchestrator.commands")),
    "an orchestrator answers a client": ("orchestrator", publishing("", "orchestrator.reply.x")),
}


@pytest.mark.parametrize("what", ALLOWED)
async def test_everybody_may_do_what_is_theirs(users: Users, what: str) -> None:
    role, attempt = ALLOWED[what]
    connection = await aiormq.connect(users.url(role))
    channel = await connection.channel(publisher_confirms=True)
    await asyncio.wait_for(attempt(channel), 30)
    await connection.close()


async def test_the_policies_hold_for_the_queues(users: Users, management: Management) -> None:
    vhost = URL(users.vhost_url).path.lstrip("/")

    def policy(queue: str) -> dict[str, Any]:
        found: dict[str, Any] = (
            management.call("GET", f"/queues/{vhost}/{queue}").get("effective_policy_definition") or {}
        )
        return found

    await eventually(lambda: policy("agent.research").get("delivery-limit") == 100)
    assert policy("orchestrator.results")["dead-letter-exchange"] == "orchestrator.dead-letters"
    assert policy("orchestrator.runs")["overflow"] == "reject-publish"
    assert policy("orchestrator.dead-letters").get("delivery-limit", -1) == -1


async def test_a_task_that_comes_back_too_often_is_a_dead_letter_and_not_lost(
    users: Users, management: Management
) -> None:
    worker = RabbitmqBroker(users.url("write"), name="poisoned")
    await worker.connect()
    connection = await aiormq.connect(users.vhost_url)
    channel = await connection.channel(publisher_confirms=True)
    await channel.queue_purge("orchestrator.dead-letters")
    await channel.basic_publish(b"poison", exchange="orchestrator.tasks", routing_key="write")
    consumer = await worker.consume(Queue("agent.write", QueueKind.QUORUM), prefetch=1)
    for _ in range(101):
        await consumer.requeue(await asyncio.wait_for(consumer.receive(1), 30))

    async def dead() -> bool:
        return bool((await channel.queue_declare("orchestrator.dead-letters", passive=True)).message_count)

    await eventually(dead)
    await worker.close()
    await connection.close()
