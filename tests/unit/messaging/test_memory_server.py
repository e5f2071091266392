"""What the in-memory server offers beyond the port, and its exact order, which simulations rely on."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.memory import MemoryBroker, MemoryServer
from messaging.port import (
    Binding,
    BrokerUnavailable,
    Consumer,
    DeadLetterReason,
    Delivery,
    Exchange,
    ExchangeKind,
    OutgoingMessage,
    PublishOutcome,
    Queue,
    QueueKind,
)
from messaging.topology import DEAD_LETTERS_EXCHANGE, DEAD_LETTERS_QUEUE

WORK = Queue("work", QueueKind.QUORUM)


def numbered(*numbers: int) -> list[OutgoingMessage]:
    return [OutgoingMessage("", "work", "AgentTask", str(number), b"") for number in numbers]


def ids(deliveries: Sequence[Delivery]) -> list[str | None]:
    return [delivery.message_id for delivery in deliveries]


async def client(server: MemoryServer, **options: Any) -> MemoryBroker:
    broker = MemoryBroker(server, **options)
    await broker.connect()
    return broker


async def all_of(consumer: Consumer) -> list[str | None]:
    async with asyncio.timeout(30):
        return ids(await consumer.receive(10_000))


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer(clock=lambda: 0.0)


async def test_consumers_take_turns(server: MemoryServer) -> None:
    broker = await client(server)
    first = await broker.consume(WORK, prefetch=0)
    second = await broker.consume(WORK, prefetch=0)
    await broker.publish(numbered(*range(6)))
    assert (await all_of(first), await all_of(second)) == (["0", "2", "4"], ["1", "3", "5"])


async def test_a_consumer_without_room_is_passed_over(server: MemoryServer) -> None:
    broker = await client(server)
    narrow = await broker.consume(WORK, prefetch=1)
    wide = await broker.consume(WORK, prefetch=0)
    await broker.publish(numbered(*range(4)))
    assert (await all_of(narrow), await all_of(wide)) == (["0"], ["1", "2", "3"])


async def test_what_comes_back_is_delivered_before_what_is_younger(server: MemoryServer) -> None:
    broker = await client(server)
    consumer = await broker.consume(WORK, prefetch=3)
    await broker.publish(numbered(*range(6)))
    held = await consumer.receive(3)
    await consumer.requeue([held[2], held[0]])
    again = await consumer.receive(3)
    assert sorted(ids(again), key=str) == ["0", "2"]
    assert all(delivery.redelivered for delivery in again)
    await consumer.close()
    fresh = await broker.consume(WORK, prefetch=0)
    assert await all_of(fresh) == ["0", "1", "2", "3", "4", "5"]


async def test_when_all_clients_are_cut_off_a_message_comes_back_once(server: MemoryServer) -> None:
    one, two = await client(server), await client(server)
    first, second = await one.consume(WORK, prefetch=0), await two.consume(WORK, prefetch=0)
    await one.publish(numbered(*range(4)))
    assert (await all_of(first), await all_of(second)) == (["0", "2"], ["1", "3"])
    server.drop_connections()
    again = await first.receive(10)  # its client is the first to be back
    assert ids(again) == ["0", "1", "2", "3"]
    assert {delivery.earlier_deliveries for delivery in again} == {1}


async def test_what_one_client_held_goes_to_the_other_when_only_it_is_cut_off(server: MemoryServer) -> None:
    one, two = await client(server), await client(server)
    first = await one.consume(WORK, prefetch=2)
    await one.publish(numbered(0, 1))
    held = await first.receive(2)
    second = await two.consume(WORK, prefetch=0)
    one.drop_connection()
    assert await all_of(second) == ["0", "1"]
    await first.ack(held)
    assert server.unsettled("work") == 2


async def test_a_stopped_server_keeps_durable_queues_and_forgets_exclusive_ones(server: MemoryServer) -> None:
    broker = await client(server)
    await broker.declare([], [WORK, Queue("own", QueueKind.EXCLUSIVE)])
    await broker.publish(numbered(1))
    server.stop()
    assert not broker.connected
    assert await broker.publish(numbered(2)) == [PublishOutcome.UNKNOWN]
    with pytest.raises(BrokerUnavailable, match="stopped"):
        await broker.check_queue("work")
    server.start()
    assert (await broker.check_queue("work")).ready == 1
    assert server.queue_names == ("work",)


async def test_a_client_of_a_stopped_server_connects_when_it_starts(server: MemoryServer) -> None:
    server.stop()
    broker = MemoryBroker(server)
    connecting = asyncio.create_task(broker.connect())
    await asyncio.sleep(0)
    assert not connecting.done()
    server.start()
    await connecting
    assert broker.connected


async def test_expiry_follows_the_given_clock() -> None:
    now = 0.0
    server = MemoryServer(clock=lambda: now)
    broker = await client(server)
    brief = Queue("brief", QueueKind.CLASSIC, expires=timedelta(seconds=10))
    await broker.declare([], [brief])
    now = 9.0
    await broker.declare([], [brief])
    now = 18.0
    assert server.queue_names == ("brief",)
    now = 19.0
    assert server.queue_names == ()


async def test_expiry_counts_from_when_the_last_consumer_left() -> None:
    now = 0.0
    server = MemoryServer(clock=lambda: now)
    broker = await client(server)
    consumer = await broker.consume(Queue("brief", QueueKind.CLASSIC, expires=timedelta(seconds=10)), prefetch=1)
    now = 100.0
    await consumer.close()
    now = 109.0
    assert server.queue_names == ("brief",)
    now = 110.0
    assert server.queue_names == ()


async def test_dead_letters_carry_the_given_time_and_countable_ids() -> None:
    server = MemoryServer(wall_clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    broker = await client(server)
    await broker.declare([Exchange(DEAD_LETTERS_EXCHANGE, ExchangeKind.FANOUT)], [DEAD_LETTERS_QUEUE])
    consumer = await broker.consume(WORK, prefetch=1)
    await broker.publish(numbered(1))
    [delivery] = await consumer.receive(1)
    await consumer.dead_letter(delivery, DeadLetterReason("code", "text"))
    [dead] = await (await broker.consume(DEAD_LETTERS_QUEUE, prefetch=1)).receive(1)
    assert dead.headers["x-forkjoin-time"] == "2026-01-01T00:00:00+00:00"
    assert server.unsettled("work") == 0


async def test_headers_changed_after_publishing_do_not_change_the_message(server: MemoryServer) -> None:
    broker = await client(server)
    await broker.declare([], [WORK])
    headers = {"a": 1}
    await broker.publish([OutgoingMessage("", "work", "AgentTask", "1", b"", headers=headers)])
    headers["a"] = 2
    [delivery] = await (await broker.consume(WORK, prefetch=1)).receive(1)
    assert delivery.headers == {"a": 1}


async def test_a_deleted_queue_leaves_no_binding_behind(server: MemoryServer) -> None:
    broker = await client(server)
    bound = Queue("bound", QueueKind.CLASSIC, (Binding("x", "key"),))
    await broker.declare([Exchange("x", ExchangeKind.DIRECT)], [bound])
    await broker.delete_queue("bound")
    await broker.declare([], [Queue("bound", QueueKind.CLASSIC)])
    sent = OutgoingMessage("x", "key", "AgentTask", "1", b"")
    assert await broker.publish([sent]) == [PublishOutcome.RETURNED]


async def test_a_hundred_thousand_messages_pass_through_a_small_window(server: MemoryServer) -> None:
    broker = await client(server)
    consumer = await broker.consume(WORK, prefetch=100)
    await broker.publish(numbered(*range(100_000)))
    taken = 0
    while taken < 100_000:
        deliveries = await consumer.receive(100)
        assert deliveries[0].message_id == str(taken)
        taken += len(deliveries)
        await consumer.ack(deliveries)
    assert server.unsettled("work") == 0


Step = tuple[str, int]
STEPS = st.lists(st.tuples(st.sampled_from(["publish", "ack", "requeue", "drop", "close"]), st.integers(0, 5)))


@given(prefetch=st.integers(0, 3), steps=STEPS)
def test_no_message_is_lost_or_held_twice_whatever_happens(prefetch: int, steps: list[Step]) -> None:
    asyncio.run(check_conservation(prefetch, steps))


async def check_conservation(prefetch: int, steps: list[Step]) -> None:
    """Do *steps* with two consumers; every message is in the queue, held by exactly one of them, or acked."""
    server = MemoryServer(clock=lambda: 0.0)
    broker, other = await client(server), await client(server)
    consumers: list[Consumer] = [await broker.consume(WORK, prefetch=prefetch), await other.consume(WORK, prefetch=2)]
    published, acked = 0, 0
    for action, argument in steps:
        index = argument % 2
        match action:
            case "publish":
                await broker.publish(numbered(*range(published, published + argument)))
                published += argument
            case "ack" | "requeue":
                waiting = asyncio.create_task(consumers[index].receive(argument + 1))
                await asyncio.wait([waiting], timeout=0)
                await asyncio.sleep(0)
                if not waiting.done():
                    waiting.cancel()
                    await asyncio.wait([waiting])
                    continue
                if action == "ack":
                    await consumers[index].ack(waiting.result())
                    acked += len(waiting.result())
                else:
                    await consumers[index].requeue(waiting.result())
            case "drop":
                (broker, other)[index].drop_connection()
                await asyncio.sleep(0)
            case "close":
                await consumers[index].close()
                consumers[index] = await (broker, other)[index].consume(WORK, prefetch=prefetch)
        depth = await broker.check_queue("work")
        assert depth.ready + server.unsettled("work") + acked == published
        assert depth.consumers == 2
