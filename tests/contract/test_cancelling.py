"""Consumers that are cancelled: no new deliveries, but those in hand can still be settled. And publishes given up."""

import asyncio

import pytest

from messaging.port import Broker, ConsumerClosed
from tests.conftest import Eventually
from tests.contract.backends import Backend
from tests.contract.test_broker import (
    CONFIRMED,
    UNKNOWN,
    WORK,
    bodies,
    holds,
    message,
    numbered,
    publish_confirmed,
    take,
)


async def test_a_cancelled_consumer_gives_back_at_once_what_was_not_received(
    broker: Broker, eventually: Eventually
) -> None:
    consumer = await broker.consume(WORK, prefetch=3)
    await publish_confirmed(broker, numbered(5))
    held = await take(consumer, 1)
    await consumer.cancel()
    await eventually(lambda: holds(broker, WORK, 4))
    with pytest.raises(ConsumerClosed, match="work"):
        await consumer.receive(1)
    await consumer.ack(held)
    await consumer.close()
    await eventually(lambda: holds(broker, WORK, 4))


async def test_what_comes_after_cancelling_goes_to_others_while_the_rest_is_still_held(
    broker: Broker, other: Broker, eventually: Eventually
) -> None:
    consumer = await broker.consume(WORK, prefetch=2)
    await publish_confirmed(broker, numbered(2))
    held = await take(consumer, 2)
    await consumer.cancel()
    idle = await other.consume(WORK, prefetch=10)
    await publish_confirmed(broker, [message(body=b"new")])
    assert bodies(await take(idle, 1)) == [b"new"]
    await consumer.requeue(held[:1])
    assert bodies(await take(idle, 1)) == [b"0"]
    await consumer.ack(held[1:])
    await consumer.close()
    await idle.close()
    await eventually(lambda: holds(broker, WORK, 2))


async def test_cancelling_wakes_whoever_waits_for_deliveries(broker: Broker) -> None:
    consumer = await broker.consume(WORK, prefetch=1)
    receiving = asyncio.create_task(consumer.receive(1))
    await asyncio.sleep(0)
    await consumer.cancel()
    async with asyncio.timeout(30):
        with pytest.raises(ConsumerClosed, match="work"):
            await receiving


async def test_cancelling_twice_and_after_closing_is_harmless(broker: Broker, eventually: Eventually) -> None:
    consumer = await broker.consume(WORK, prefetch=1)
    await publish_confirmed(broker, [message()])
    await take(consumer, 1)
    await consumer.cancel()
    await consumer.cancel()
    await consumer.close()
    await consumer.cancel()
    await eventually(lambda: holds(broker, WORK, 1))


async def test_a_cancelled_consumer_is_not_restored_after_the_connection_was_lost(
    backend: Backend, broker: Broker, other: Broker, eventually: Eventually
) -> None:
    consumer = await broker.consume(WORK, prefetch=2)
    await publish_confirmed(broker, numbered(3))
    held = await take(consumer, 1)
    await consumer.cancel()
    await backend.cut()
    await eventually(lambda: broker.connected and other.connected)
    await eventually(lambda: holds(other, WORK, 3))
    await consumer.ack(held)  # too late
    assert (await other.check_queue("work")).consumers == 0
    assert len(await take(await other.consume(WORK, prefetch=0), 3)) == 3


async def test_a_consumer_that_is_cancelled_while_the_broker_is_away_stays_away(
    backend: Backend, broker: Broker, eventually: Eventually
) -> None:
    consumer = await broker.consume(WORK, prefetch=1)
    await backend.stop()
    await eventually(lambda: not broker.connected)
    async with asyncio.timeout(30):
        await consumer.cancel()
    await backend.start()
    await eventually(lambda: broker.connected)
    await publish_confirmed(broker, [message()])
    # The broker may be late to notice that the first connection is gone, and give the message to that for a moment.
    await eventually(lambda: holds(broker, WORK, 1))
    assert (await broker.check_queue("work")).consumers == 0
    await consumer.close()


async def test_what_was_given_up_before_it_was_written_never_arrives(
    backend: Backend, broker: Broker, eventually: Eventually
) -> None:
    await broker.declare([], [WORK])
    assert await broker.publish([message(body=b"before")]) == [CONFIRMED]
    await backend.stop()
    await eventually(lambda: not broker.connected)
    assert await broker.publish([message(body=b"timed out")], timeout=0.05) == [UNKNOWN]
    publishing = asyncio.create_task(broker.publish([message(body=b"cancelled")]))
    await asyncio.wait([publishing], timeout=0.05)
    publishing.cancel()
    await asyncio.wait([publishing])
    await backend.start()
    await eventually(lambda: broker.connected)
    assert await broker.publish([message(body=b"after")]) == [CONFIRMED]
    consumer = await broker.consume(WORK, prefetch=0)
    assert bodies(await take(consumer, 2)) == [b"before", b"after"]
