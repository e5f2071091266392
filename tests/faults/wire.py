"""What any client in any language can do over AMQP, without our code: publish, declare, look, take and drop."""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pika
import pika.exceptions
from pika.adapters.blocking_connection import BlockingChannel

from tests.acceptance.cluster import Cluster

RESULTS = ("orchestrator.results", "result.any")
SUBMIT = ("orchestrator.submit", "orchestrator.runs")


@contextmanager
def channel(cluster: Cluster) -> Iterator[BlockingChannel]:
    """Yield a channel with confirms."""
    with pika.BlockingConnection(pika.URLParameters(cluster.amqp_url)) as connection:
        opened = connection.channel()
        opened.confirm_delivery()
        yield opened


def publish(cluster: Cluster, address: tuple[str, str], type: str, bodies: Iterable[Mapping[str, Any]]) -> None:
    """Publish messages to an exchange with a routing key, each confirmed."""
    with channel(cluster) as opened:
        for body in bodies:
            properties = pika.BasicProperties(type=type, message_id=str(uuid.uuid4()), delivery_mode=2)
            opened.basic_publish(*address, json.dumps({"version": 1, **body}).encode(), properties, mandatory=True)


def result(run_id: str, task_id: str, output: Any = None, *, worker_id: str = "by-hand") -> dict[str, Any]:
    """Return the body of an AgentResult."""
    return {
        "run_id": run_id, "task_id": task_id, "status": "COMPLETED", "output": output, "worker_id": worker_id,
    }  # fmt: skip


def declare_agent(cluster: Cluster, agent_name: str) -> None:
    """Declare an agent's queue, as a worker does that is never seen again."""
    with channel(cluster) as opened:
        opened.queue_declare(f"agent.{agent_name}", durable=True, arguments={"x-queue-type": "quorum"})
        opened.queue_bind(f"agent.{agent_name}", "orchestrator.tasks", agent_name)


def depth(cluster: Cluster, queue: str) -> int:
    """Return how many messages are ready in a queue."""
    with channel(cluster) as opened:
        return int(opened.queue_declare(queue, passive=True).method.message_count)


def exists(cluster: Cluster, queue: str) -> bool:
    """Whether there is such a queue."""
    try:
        depth(cluster, queue)
    except pika.exceptions.ChannelClosedByBroker as closed:
        if closed.reply_code != 404:
            raise
        return False
    return True


def take_and_drop(cluster: Cluster, queue: str) -> bool:
    """Take a message and close the connection, as a consumer that dies; return whether there was one."""
    with channel(cluster) as opened:
        return opened.basic_get(queue)[0] is not None
