"""What a message costs in each adapter, and in plain aio-pika for comparison.

Run it by hand, against a broker of your own::

    python tests/benchmarks/bench_messaging.py amqp://guest:guest@localhost:5672/ [number of messages]

It makes and deletes one queue named bench.<something>. Wall-clock microseconds per message, the broker's share
included, the best of three rounds; CPU microseconds are those of this process.
"""

import asyncio
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aio_pika

from messaging.memory import MemoryBroker
from messaging.port import Broker, OutgoingMessage, PublishOutcome, Queue, QueueKind
from messaging.rabbitmq import RabbitmqBroker

SECONDS = 120.0  # for all of it
_ROUNDS = 3
_BATCH = 500  # messages per publish and prefetch, as the services use them
_BODY = b'{"version":1,"task_id":"7f9c24e5","input":{"topic":"' + b"x" * 150 + b'"}}'


@dataclass(frozen=True)
class Cost:
    """Microseconds per message."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:7.1f} us ({self.cpu:5.1f} us CPU)"


async def measure(work: Callable[[], Awaitable[None]], count: int) -> Cost:
    """Return what one message of *work* costs."""
    wall, cpu = time.perf_counter(), time.process_time()
    await work()
    return Cost((time.perf_counter() - wall) / count * 1e6, (time.process_time() - cpu) / count * 1e6)


def messages(queue: str, count: int) -> list[OutgoingMessage]:
    return [OutgoingMessage("", queue, "AgentTask", uuid.uuid4().hex, _BODY) for _ in range(count)]


async def bench_port(broker: Broker, queue: Queue, count: int) -> tuple[Cost, Cost]:
    """Publish *count* messages in batches, then consume and ack them."""
    await broker.declare([], [queue])
    batches = [messages(queue.name, _BATCH) for _ in range(count // _BATCH)]

    async def publish() -> None:
        for outcomes in await asyncio.gather(*(broker.publish(batch) for batch in batches)):
            assert set(outcomes) == {PublishOutcome.CONFIRMED}

    async def consume() -> None:
        consumer = await broker.consume(queue, prefetch=_BATCH)
        left = count
        while left:
            deliveries = await consumer.receive(_BATCH)
            await consumer.ack(deliveries)
            left -= len(deliveries)
        await consumer.close()

    published, consumed = await measure(publish, count), await measure(consume, count)
    await broker.delete_queue(queue.name)
    return published, consumed


async def bench_aio_pika(url: str, name: str, count: int) -> tuple[Cost, Cost]:
    """Do the same with aio-pika's own publish, callback and ack, as many at a time."""
    connection = await aio_pika.connect(url)
    channel = await connection.channel()
    await channel.set_qos(_BATCH)
    queue = await channel.declare_queue(name, durable=True, arguments={"x-queue-type": "quorum"})

    async def publish_one() -> None:
        message = aio_pika.Message(
            _BODY, delivery_mode=2, message_id=uuid.uuid4().hex, type="AgentTask", content_type="application/json"
        )
        await channel.default_exchange.publish(message, name, mandatory=True)

    async def publish() -> None:
        for _ in range(count // _BATCH):
            await asyncio.gather(*(publish_one() for _ in range(_BATCH)))

    async def consume() -> None:
        done = asyncio.Event()
        left = count

        async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            nonlocal left
            await message.ack()
            left -= 1
            if not left:
                done.set()

        tag = await queue.consume(handle)
        await done.wait()
        await queue.cancel(tag)

    published, consumed = await measure(publish, count), await measure(consume, count)
    await queue.delete(if_unused=False, if_empty=False)
    await connection.close()
    return published, consumed


async def best(bench: Callable[[], Awaitable[tuple[Cost, Cost]]]) -> tuple[Cost, Cost]:
    """Return the cheapest publish and the cheapest consume of several rounds."""
    rounds = [await bench() for _ in range(_ROUNDS)]
    return min((cost[0] for cost in rounds), key=lambda cost: cost.wall), min(
        (cost[1] for cost in rounds), key=lambda cost: cost.wall
    )


async def measure_adapters(url: str, count: int) -> dict[str, tuple[Cost, Cost]]:
    """Return what publishing and what receiving a message costs, by adapter."""
    queue = Queue(f"bench.{uuid.uuid4().hex[:8]}", QueueKind.QUORUM)
    memory, rabbitmq = MemoryBroker(), RabbitmqBroker(url, name="bench")
    await memory.connect()
    await rabbitmq.connect()
    costs = {
        "memory": await best(lambda: bench_port(memory, queue, count)),
        "rabbitmq": await best(lambda: bench_port(rabbitmq, queue, count)),
        "aio-pika": await best(lambda: bench_aio_pika(url, queue.name, count)),
    }
    await rabbitmq.close()
    return costs


async def main(url: str, count: int) -> None:
    """Measure and print."""
    costs = await measure_adapters(url, count)
    for name, (published, consumed) in costs.items():
        sys.stdout.write(f"{name:10} publish {published}   receive and ack {consumed}\n")
    ours, theirs = costs["rabbitmq"], costs["aio-pika"]
    sys.stdout.write(
        f"of aio-pika's CPU time, publish takes {ours[0].cpu / theirs[0].cpu:.0%}, "
        f"receive and ack {ours[1].cpu / theirs[1].cpu:.0%}\n"
    )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000))
