"""The deadly agents in a worker that dies when a result is confirmed and its task is about to be acked."""

import os
import signal
from collections.abc import Sequence

from messaging.port import Delivery
from messaging.rabbitmq.consumer import RabbitmqConsumer
from tests.faults.deadly_agents import agents

__all__ = ["agents"]


async def _die(consumer: RabbitmqConsumer, deliveries: Sequence[Delivery]) -> None:
    if any(delivery.queue.startswith("agent.") for delivery in deliveries):
        os.kill(os.getpid(), signal.SIGKILL)


RabbitmqConsumer.ack = _die  # type: ignore[method-assign]
