"""What is counted of a broker's messages. That it is a broker all the same, the contract tests say."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from messaging import topology
from messaging.memory import MemoryBroker
from messaging.monitoring.metered_broker import BrokerMeter, MeteredBroker
from messaging.port import DeadLetterReason, OutgoingMessage


@pytest.fixture
async def broker() -> AsyncIterator[MemoryBroker]:
    broker = MemoryBroker(max_message_bytes=100)
    await broker.connect()
    await broker.declare(topology.EXCHANGES, topology.QUEUES)
    yield broker
    await broker.close()


def message(number: int, *, key: str = "orchestrator.commands", size: int = 1) -> OutgoingMessage:
    return OutgoingMessage(topology.DEFAULT_EXCHANGE, key, "CancelRun", f"m-{number}", b"x" * size)


async def test_messages_are_counted_by_what_became_of_them_and_batches_by_their_size(broker: MemoryBroker) -> None:
    meter = BrokerMeter()
    metered = MeteredBroker(broker, meter)
    await metered.publish([message(1), message(2), message(3, key="nowhere"), message(4, size=101)])
    await metered.publish([message(5)])
    assert meter.published.values == {("CONFIRMED",): 3, ("RETURNED",): 1, ("TOO_LARGE",): 1}
    assert (sum(meter.publish_batches.tallies[()].counts), meter.publish_batches.tallies[()].sum) == (2, 5)
    assert sum(meter.publish_seconds.tallies[()].counts) == 2


async def test_what_is_delivered_again_and_dead_lettered_is_counted_under_its_queue(broker: MemoryBroker) -> None:
    meter = BrokerMeter()
    metered = MeteredBroker(broker, meter)
    await metered.publish([message(1), message(2)])
    consumer = await metered.consume(topology.COMMANDS_QUEUE, prefetch=10)
    first = [*await consumer.receive(1), *await consumer.receive(1)]
    assert meter.redeliveries.values == {}
    await consumer.requeue(first[:1])
    [again] = await consumer.receive(10)
    await consumer.dead_letter(again, DeadLetterReason("malformed_message", "it is"))
    queue = "orchestrator.commands"
    assert meter.redeliveries.values == {(queue,): 1}
    assert meter.dead_lettered.values == {(queue, "malformed_message"): 1}
    tally = meter.deliveries.tallies[queue,]
    assert (sum(tally.counts), tally.sum) == (3, 3)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("orchestrator.runs", "orchestrator.runs"),
        ("orchestrator.dead-letters", "orchestrator.dead-letters"),
        ("agent.research", "agent.research"),
        (topology.gate_queue(UUID(int=1), "block").name, "orchestrator.gate"),
        (topology.replica_queue("host-1").name, "orchestrator.replica"),
        (topology.worker_queue("w", ["a"]).name, "orchestrator.worker"),
        (topology.events_queue("w", UUID(int=1)).name, "orchestrator.watch"),
        (topology.reply_queue("c").name, "orchestrator.reply"),
    ],
)
def test_queues_of_one_purpose_are_counted_together(name: str, family: str) -> None:
    assert topology.queue_family(name) == family
