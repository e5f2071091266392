"""A policy's delivery limit that is reached before the worker's own: what the broker then leaves behind."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from messaging.port import Delivery, OutgoingMessage
from messaging.rabbitmq import RabbitmqBroker
from messaging.topology import DEAD_LETTERS_QUEUE, EXCHANGES, QUEUES, TASKS_EXCHANGE, agent_queue
from orchestrator.engine.inputs import TaskUndeliverable
from orchestrator.service.lost_tasks import lost_tasks
from schemas.codec import encode
from schemas.messages import AgentTask
from tests.services.rabbitmq import RabbitMQ

TASK = AgentTask(task_id=uuid.uuid4(), run_id=uuid.uuid4(), step_id="step", agent_name="lost", attempt=1, input=None)
LIMIT = 2


@pytest.fixture
async def broker(rabbitmq: RabbitMQ, amqp_url: str) -> AsyncIterator[RabbitmqBroker]:
    """A client of a vhost whose agents' queues have a delivery limit, as deploy/compose/README.md proposes."""
    if rabbitmq.management is None:
        pytest.skip("needs RabbitMQ's management API, to set a policy")
    vhost = urlsplit(amqp_url).path.removeprefix("/")
    definition = {"delivery-limit": LIMIT, "dead-letter-exchange": "orchestrator.dead-letters"}
    policy = {"pattern": r"^agent\..+$", "definition": definition, "apply-to": "queues"}
    rabbitmq.management.call("PUT", f"/policies/{vhost}/forkjoin", policy)
    broker = RabbitmqBroker(amqp_url, name="test")
    await broker.connect()
    await broker.declare(EXCHANGES, QUEUES)
    yield broker
    await broker.close()


async def test_a_task_that_the_broker_gives_up_is_a_dead_letter_that_names_the_lost_attempt(
    broker: RabbitmqBroker,
) -> None:
    queue = agent_queue(TASK.agent_name)
    await broker.declare([], [queue])
    await broker.publish([OutgoingMessage(TASKS_EXCHANGE, TASK.agent_name, "AgentTask", "id", encode(TASK))])
    for earlier in range(LIMIT + 1):
        consumer = await broker.consume(queue, prefetch=1)
        async with asyncio.timeout(30):
            (delivery,) = await consumer.receive(1)
        assert delivery.earlier_deliveries == earlier
        await consumer.close()  # as when its worker dies

    letter = await dead_letter(broker)
    assert (letter.type, letter.message_id, letter.body) == ("AgentTask", "id", encode(TASK))
    assert lost_tasks([letter]) == [TaskUndeliverable(TASK.run_id, "step", TASK.task_id, "worker_lost")]


async def dead_letter(broker: RabbitmqBroker) -> Delivery:
    consumer = await broker.consume(DEAD_LETTERS_QUEUE, prefetch=0)
    async with asyncio.timeout(30):
        (letter,) = await consumer.receive(10)
    return letter
