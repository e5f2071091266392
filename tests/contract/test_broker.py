"""The broker port's contract; every adapter keeps all of it."""

import asyncio
import itertools
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from messaging.port import (
    Binding,
    Broker,
    BrokerUnavailable,
    Consumer,
    ConsumerClosed,
    DeadLetterReason,
    Delivery,
    Exchange,
    ExchangeKind,
    OutgoingMessage,
    PublishOutcome,
    Queue,
    QueueKind,
    QueueMissing,
    TopologyMismatch,
)
from messaging.topology import DEAD_LETTERS_EXCHANGE, DEAD_LETTERS_QUEUE
from tests.conftest import Eventually
from tests.contract.backends import Backend

CONFIRMED, RETURNED = PublishOutcome.CONFIRMED, PublishOutcome.RETURNED
TOO_LARGE, UNKNOWN = PublishOutcome.TOO_LARGE, PublishOutcome.UNKNOWN

WORK = Queue("work", QueueKind.QUORUM)
PLAIN = Queue("plain", QueueKind.CLASSIC)

DIRECT = Exchange("direct", ExchangeKind.DIRECT)
TOPIC = Exchange("topic", ExchangeKind.TOPIC)
FANOUT = Exchange("fanout", ExchangeKind.FANOUT)
DEAD_LETTERS = Exchange(DEAD_LETTERS_EXCHANGE, ExchangeKind.FANOUT)


def message(routing_key: str = "work", body: bytes = b"{}", **fields: Any) -> OutgoingMessage:
    complete = {"exchange": "", "type": "AgentTask", "message_id": str(uuid.uuid4())} | fields
    return OutgoingMessage(routing_key=routing_key, body=body, **complete)


def numbered(count: int, queue: str = "work") -> list[OutgoingMessage]:
    return [message(queue, str(number).encode()) for number in range(count)]


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.body for delivery in deliveries]


async def take(consumer: Consumer, count: int) -> list[Delivery]:
    """Receive until *count* deliveries have arrived."""
    taken: list[Delivery] = []
    async with asyncio.timeout(30):
        while len(taken) < count:
            taken += await consumer.receive(count - len(taken))
    return taken


async def ready(broker: Broker, queue: Queue) -> int:
    return (await broker.check_queue(queue.name)).ready


async def holds(broker: Broker, queue: Queue, count: int) -> bool:
    return await ready(broker, queue) == count


async def exists(broker: Broker, queue: Queue) -> bool:
    try:
        await broker.check_queue(queue.name)
    except QueueMissing:
        return False
    return True


async def publish_confirmed(broker: Broker, messages: Sequence[OutgoingMessage]) -> None:
    assert set(await broker.publish(messages)) == {CONFIRMED}


# Publishing


async def test_a_published_message_is_confirmed_and_arrives(broker: Broker) -> None:
    await broker.declare([], [WORK])
    assert await broker.publish([message(body=b"hello")]) == [CONFIRMED]
    consumer = await broker.consume(WORK, prefetch=1)
    assert bodies(await take(consumer, 1)) == [b"hello"]


async def test_publishing_nothing_gives_no_outcome(broker: Broker) -> None:
    assert await broker.publish([]) == []


async def test_a_mandatory_message_that_no_queue_takes_is_returned(broker: Broker) -> None:
    assert await broker.publish([message("nobody")]) == [RETURNED]


async def test_a_message_that_is_not_mandatory_is_confirmed_though_no_queue_takes_it(broker: Broker) -> None:
    assert await broker.publish([message("nobody", mandatory=False)]) == [CONFIRMED]


async def test_each_message_of_a_batch_has_its_own_outcome_in_order(backend: Backend) -> None:
    broker = await backend.client(max_message_bytes=1_000)
    await broker.declare([], [WORK])
    batch = [
        message("nobody"),
        message("work"),
        message("work", b"x" * 1_001),
        message("nobody", mandatory=False),
        message("nobody"),
        message("work"),
    ]
    assert await broker.publish(batch) == [RETURNED, CONFIRMED, TOO_LARGE, CONFIRMED, RETURNED, CONFIRMED]


async def test_an_unroutable_and_a_routable_message_with_one_id_are_told_apart(broker: Broker) -> None:
    await broker.declare([], [WORK])
    batch = [message("nobody", message_id="twice"), message("work", message_id="twice")]
    assert await broker.publish(batch) == [RETURNED, CONFIRMED]
    assert await broker.publish(list(reversed(batch))) == [CONFIRMED, RETURNED]


async def test_one_unroutable_message_published_twice_is_returned_twice(broker: Broker) -> None:
    twice = [message("nobody", message_id="twice")] * 2
    assert await broker.publish(twice) == [RETURNED, RETURNED]


async def test_a_message_of_exactly_the_largest_size_is_sent(backend: Backend) -> None:
    broker = await backend.client(max_message_bytes=1_000)
    await broker.declare([], [WORK])
    assert await broker.publish([message(body=b"x" * 1_000)]) == [CONFIRMED]


async def test_after_a_message_that_is_too_large_publishing_goes_on(backend: Backend) -> None:
    broker = await backend.client(max_message_bytes=1_000)
    consumer = await broker.consume(WORK, prefetch=0)
    assert await broker.publish([message(body=b"x" * 1_001)]) == [TOO_LARGE]
    assert await broker.publish([message(body=b"small")]) == [CONFIRMED]
    assert bodies(await take(consumer, 1)) == [b"small"]


@pytest.mark.parametrize("size", [0, 1, 131_063, 131_064, 131_065, 1_000_000], ids=lambda size: f"{size} bytes")
async def test_a_body_arrives_unchanged_however_many_frames_it_needs(broker: Broker, size: int) -> None:
    consumer = await broker.consume(WORK, prefetch=0)
    body = bytes(itertools.islice(itertools.cycle(range(251)), size))
    await publish_confirmed(broker, [message(body=body), message(body=b"next")])
    assert bodies(await take(consumer, 2)) == [body, b"next"]


async def test_properties_and_headers_arrive_as_they_were_sent(broker: Broker) -> None:
    await broker.declare([DIRECT], [])
    consumer = await broker.consume(Queue("work", QueueKind.QUORUM, (Binding("direct", "key"),)), prefetch=1)
    sent = message(
        "key",
        b'{"a": "\xc3\xa4"}',
        exchange="direct",
        type="RunRequest",
        message_id="the-id",
        correlation_id="the-correlation",
        reply_to="the-reply",
        headers={"text": "ä", "number": 7, "nested": {"list": [1, "two", True, None]}},
    )
    await publish_confirmed(broker, [sent])
    [got] = await take(consumer, 1)
    assert (got.queue, got.exchange, got.routing_key) == ("work", "direct", "key")
    assert (got.type, got.message_id, got.body) == ("RunRequest", "the-id", sent.body)
    assert (got.correlation_id, got.reply_to) == ("the-correlation", "the-reply")
    assert got.headers == sent.headers
    assert (got.redelivered, got.earlier_deliveries) == (False, 0)


async def test_what_was_not_sent_arrives_as_none(broker: Broker) -> None:
    consumer = await broker.consume(WORK, prefetch=1)
    await publish_confirmed(broker, [message()])
    [got] = await take(consumer, 1)
    assert (got.correlation_id, got.reply_to, dict(got.headers)) == (None, None, {})


async def test_concurrent_publishers_each_get_their_own_outcomes(broker: Broker) -> None:
    await broker.declare([], [WORK])
    publishes = (broker.publish([message("work" if number % 2 else "nobody")] * 3) for number in range(60))
    outcomes = await asyncio.gather(*publishes)
    assert outcomes == [[CONFIRMED] * 3 if number % 2 else [RETURNED] * 3 for number in range(60)]
    assert await ready(broker, WORK) == 90


async def test_a_cancelled_publish_does_not_disturb_the_next(broker: Broker) -> None:
    await broker.declare([], [WORK])
    cut_short = [asyncio.create_task(broker.publish(numbered(50))) for _ in range(20)]
    for turns, publishing in enumerate(cut_short):
        for _ in range(turns):
            await asyncio.sleep(0)
        publishing.cancel()
    await asyncio.wait(cut_short)
    assert await broker.publish([message("nobody"), message("work")]) == [RETURNED, CONFIRMED]


async def test_a_name_that_amqp_cannot_carry_is_refused_before_anything_is_sent(broker: Broker) -> None:
    await broker.declare([], [WORK])
    with pytest.raises(ValueError, match="routing_key"):
        await broker.publish([message("work"), message("k" * 256)])
    assert await ready(broker, WORK) == 0


async def test_a_message_to_an_exchange_that_does_not_exist_is_unknown_and_publishing_goes_on(broker: Broker) -> None:
    await broker.declare([], [WORK])
    assert await broker.publish([message("key", exchange="no-such-exchange")]) == [UNKNOWN]
    assert await broker.publish([message("work")]) == [CONFIRMED]


async def test_publishing_goes_on_after_the_connection_was_lost(backend: Backend, broker: Broker) -> None:
    await broker.declare([], [WORK])
    await publish_confirmed(broker, [message("work")])
    await backend.cut()
    await publish_until_confirmed(broker, message("work"))
    assert await ready(broker, WORK) >= 2


async def test_while_the_broker_is_away_publishing_ends_as_unknown(backend: Backend, eventually: Eventually) -> None:
    broker = await backend.client(publish_timeout=0.2)
    await broker.declare([], [WORK])
    assert broker.connected
    await backend.stop()
    await eventually(lambda: not broker.connected)
    assert await broker.publish(numbered(2)) == [UNKNOWN, UNKNOWN]
    await backend.start()
    await eventually(lambda: broker.connected)
    assert await broker.publish([message("work"), message("nobody")]) == [CONFIRMED, RETURNED]


async def test_connecting_waits_for_the_broker(backend: Backend, eventually: Eventually) -> None:
    await backend.stop()
    broker = backend.unconnected_client()
    connecting = asyncio.create_task(broker.connect())
    await asyncio.wait([connecting], timeout=0.01)
    assert not connecting.done()
    await backend.start()
    async with asyncio.timeout(30):
        await connecting
    assert broker.connected


async def test_a_client_that_is_not_connected_says_so(backend: Backend) -> None:
    broker = backend.unconnected_client()
    assert not broker.connected
    with pytest.raises(BrokerUnavailable, match=r"connect\(\)"):
        await broker.declare([], [WORK])
    assert await broker.publish([message()]) == [UNKNOWN]


async def publish_until_confirmed(broker: Broker, sent: OutgoingMessage) -> None:
    """Publish as a caller does: what is not known to have arrived is sent again."""
    async with asyncio.timeout(120):
        while await broker.publish([sent]) != [CONFIRMED]:
            pass


# Routing


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("*.b", "a.b", True),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("#", "", True),
        ("#", "a.b", True),
        ("#.c", "a.b.c", True),
        ("#.c", "a.b", False),
        ("a.#.c", "a.c", True),
        ("a.#.c", "a.b.b.c", True),
        ("*", "", False),
        ("", "", True),
    ],
)
async def test_a_topic_exchange_routes_by_pattern(broker: Broker, pattern: str, key: str, matches: bool) -> None:
    await broker.declare([TOPIC], [Queue("plain", QueueKind.CLASSIC, (Binding("topic", pattern),))])
    assert await broker.publish([message(key, exchange="topic")]) == [CONFIRMED if matches else RETURNED]


async def test_a_direct_exchange_routes_by_equal_keys(broker: Broker) -> None:
    one = Queue("one", QueueKind.CLASSIC, (Binding("direct", "a"), Binding("direct", "b")))
    two = Queue("two", QueueKind.CLASSIC, (Binding("direct", "b"),))
    await broker.declare([DIRECT], [one, two])
    batch = [message(key, exchange="direct") for key in ("a", "b", "c")]
    assert await broker.publish(batch) == [CONFIRMED, CONFIRMED, RETURNED]
    assert (await ready(broker, one), await ready(broker, two)) == (2, 1)


async def test_a_fanout_exchange_gives_every_queue_a_copy_whatever_the_key(broker: Broker) -> None:
    one = Queue("one", QueueKind.CLASSIC, (Binding("fanout", ""),))
    two = Queue("two", QueueKind.QUORUM, (Binding("fanout", "ignored"),))
    await broker.declare([FANOUT], [one, two])
    await publish_confirmed(broker, [message("anything", exchange="fanout")])
    assert (await ready(broker, one), await ready(broker, two)) == (1, 1)


async def test_a_queue_with_two_matching_bindings_gets_one_copy(broker: Broker) -> None:
    queue = Queue("plain", QueueKind.CLASSIC, (Binding("topic", "a.#"), Binding("topic", "*.b")))
    await broker.declare([TOPIC], [queue])
    await publish_confirmed(broker, [message("a.b", exchange="topic")])
    assert await ready(broker, queue) == 1


# Consuming and settling


async def test_deliveries_come_in_the_order_of_publishing(broker: Broker) -> None:
    consumer = await broker.consume(WORK, prefetch=0)
    await publish_confirmed(broker, numbered(100))
    assert bodies(await take(consumer, 100)) == [str(number).encode() for number in range(100)]


async def test_receive_gives_at_most_what_was_asked_for(broker: Broker, eventually: Eventually) -> None:
    await broker.declare([], [WORK])
    await publish_confirmed(broker, numbered(5))
    consumer = await broker.consume(WORK, prefetch=0)
    await eventually(lambda: holds(broker, WORK, 0))
    assert len(await consumer.receive(2)) <= 2
    with pytest.raises(ValueError, match="limit"):
        await consumer.receive(0)


async def test_a_receive_that_is_cancelled_loses_nothing(broker: Broker) -> None:
    consumer = await broker.consume(WORK, prefetch=0)
    for _ in range(10):
        receiving = asyncio.create_task(consumer.receive(1))
        await asyncio.sleep(0)
        receiving.cancel()
        await asyncio.wait([receiving])
    await publish_confirmed(broker, numbered(3))
    assert bodies(await take(consumer, 3)) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("queue", [WORK, PLAIN], ids=lambda queue: queue.kind)
async def test_never_more_than_the_window_is_unsettled_and_an_ack_brings_the_next(
    broker: Broker, queue: Queue, eventually: Eventually
) -> None:
    await broker.declare([], [queue])
    await publish_confirmed(broker, numbered(5, queue.name))
    consumer = await broker.consume(queue, prefetch=2)
    held = await take(consumer, 2)
    assert bodies(held) == [b"0", b"1"]
    assert await ready(broker, queue) == 3
    await consumer.ack([held[0]])
    [third] = await take(consumer, 1)
    assert third.body == b"2"
    assert await ready(broker, queue) == 2
    await consumer.ack([third, held[1]])
    assert bodies(await take(consumer, 2)) == [b"3", b"4"]


async def test_the_window_is_that_of_each_consumer(broker: Broker, other: Broker) -> None:
    await broker.declare([], [WORK])
    await publish_confirmed(broker, numbered(10))
    first = await broker.consume(WORK, prefetch=3)
    second = await other.consume(WORK, prefetch=2)
    held = await take(first, 3), await take(second, 2)
    assert sorted(bodies(held[0]) + bodies(held[1])) == [b"0", b"1", b"2", b"3", b"4"]
    assert await ready(broker, WORK) == 5


async def test_two_consumers_share_a_queue(broker: Broker, other: Broker) -> None:
    first = await broker.consume(WORK, prefetch=1)
    second = await other.consume(WORK, prefetch=1)
    await publish_confirmed(broker, numbered(2))
    got = await take(first, 1) + await take(second, 1)
    assert sorted(bodies(got)) == [b"0", b"1"]


async def test_consumers_of_different_queues_do_not_wait_for_each_other(broker: Broker) -> None:
    blocked = await broker.consume(WORK, prefetch=1)
    free = await broker.consume(PLAIN, prefetch=1)
    await publish_confirmed(broker, [*numbered(3, "work"), *numbered(3, "plain")])
    await take(blocked, 1)
    for number in range(3):
        [got] = await take(free, 1)
        assert got.body == str(number).encode()
        await free.ack([got])
    assert await ready(broker, WORK) == 2


async def test_without_a_window_everything_is_delivered(broker: Broker) -> None:
    consumer = await broker.consume(WORK, prefetch=0)
    await publish_confirmed(broker, numbered(300))
    assert len(await take(consumer, 300)) == 300


@pytest.mark.parametrize("prefetch", [-1, 65_536])
async def test_a_window_that_amqp_cannot_express_is_refused(broker: Broker, prefetch: int) -> None:
    with pytest.raises(ValueError, match="65535"):
        await broker.consume(WORK, prefetch=prefetch)


async def test_the_largest_window_is_accepted(broker: Broker) -> None:
    consumer = await broker.consume(WORK, prefetch=65_535)
    await publish_confirmed(broker, [message()])
    assert len(await take(consumer, 1)) == 1


@pytest.mark.parametrize("acked", [[0], [1], [4], [0, 1], [1, 3], [0, 2, 4], [4, 0], [3, 2, 1, 0], [0, 1, 2, 3, 4]])
async def test_exactly_the_acked_deliveries_are_gone(broker: Broker, acked: list[int]) -> None:
    await broker.declare([], [WORK])
    consumer = await broker.consume(WORK, prefetch=0)
    await publish_confirmed(broker, numbered(5))
    held = await take(consumer, 5)
    await consumer.ack([held[index] for index in acked])
    await consumer.close()
    left = sorted(set(range(5)) - set(acked))
    again = await broker.consume(WORK, prefetch=0)
    await publish_confirmed(broker, [message(body=b"9")])
    assert sorted(bodies(await take(again, len(left) + 1))) == [str(number).encode() for number in [*left, 9]]


async def test_acks_in_any_order_and_twice_leave_the_consumer_working(broker: Broker) -> None:
    consumer = await broker.consume(WORK, prefetch=0)
    await publish_confirmed(broker, numbered(10))
    held = await take(consumer, 10)
    await consumer.ack([held[3]])
    await consumer.ack(held[2:5])
    await consumer.ack([held[9], held[0]])
    await consumer.ack(held)
    await consumer.requeue(held)
    await publish_confirmed(broker, [message(body=b"last")])
    assert bodies(await take(consumer, 1)) == [b"last"]
    assert await ready(broker, WORK) == 0


async def test_a_delivery_of_another_consumer_is_not_settled(broker: Broker, eventually: Eventually) -> None:
    one = await broker.consume(WORK, prefetch=0)
    two = await broker.consume(PLAIN, prefetch=0)
    await publish_confirmed(broker, [message("work"), message("plain")])
    [foreign] = await take(one, 1)
    await take(two, 1)
    await two.ack([foreign])
    await one.close()
    await two.close()
    await eventually(lambda: holds(broker, WORK, 1))
    await eventually(lambda: holds(broker, PLAIN, 1))


@pytest.mark.parametrize("queue", [WORK, PLAIN], ids=lambda queue: queue.kind)
async def test_a_requeued_delivery_comes_again_and_says_so(broker: Broker, queue: Queue) -> None:
    consumer = await broker.consume(queue, prefetch=1)
    await publish_confirmed(broker, numbered(1, queue.name))
    [first] = await take(consumer, 1)
    await consumer.requeue([first])
    [second] = await take(consumer, 1)
    assert (first.redelivered, second.redelivered) == (False, True)
    assert second.body == first.body
    assert second.tag != first.tag
    assert second.earlier_deliveries == (1 if queue is WORK else 0)


async def test_requeued_deliveries_of_a_classic_queue_return_to_their_places(broker: Broker) -> None:
    consumer = await broker.consume(PLAIN, prefetch=3)
    await publish_confirmed(broker, numbered(5, "plain"))
    held = await take(consumer, 3)
    await consumer.close()
    assert bodies(held) == [b"0", b"1", b"2"]
    again = await broker.consume(PLAIN, prefetch=0)
    assert bodies(await take(again, 5)) == [b"0", b"1", b"2", b"3", b"4"]


async def test_closing_a_consumer_returns_what_it_held(broker: Broker, eventually: Eventually) -> None:
    consumer = await broker.consume(WORK, prefetch=3)
    await publish_confirmed(broker, numbered(5))
    await take(consumer, 1)
    await consumer.close()
    await eventually(lambda: holds(broker, WORK, 5))
    assert (await broker.check_queue("work")).consumers == 0
    again = await broker.consume(WORK, prefetch=0)
    assert len(await take(again, 5)) == 5


async def test_what_was_acked_just_before_closing_stays_acked(broker: Broker, eventually: Eventually) -> None:
    consumer = await broker.consume(WORK, prefetch=0)
    await publish_confirmed(broker, numbered(100))
    held = await take(consumer, 100)
    await consumer.ack(held[:70])
    await consumer.ack(held[70::3])
    await consumer.close()
    await eventually(lambda: holds(broker, WORK, 20))


async def test_closing_wakes_whoever_waits_for_deliveries(broker: Broker) -> None:
    consumer = await broker.consume(WORK, prefetch=1)
    receiving = asyncio.create_task(consumer.receive(1))
    await asyncio.sleep(0)
    await consumer.close()
    async with asyncio.timeout(30):
        with pytest.raises(ConsumerClosed, match="work"):
            await receiving
    with pytest.raises(ConsumerClosed):
        await consumer.receive(1)


async def test_closing_twice_and_settling_afterwards_is_harmless(broker: Broker, eventually: Eventually) -> None:
    consumer = await broker.consume(WORK, prefetch=1)
    await publish_confirmed(broker, [message()])
    held = await take(consumer, 1)
    await consumer.close()
    await consumer.close()
    await consumer.ack(held)
    await consumer.requeue(held)
    await eventually(lambda: holds(broker, WORK, 1))


async def test_closing_the_broker_returns_what_its_consumers_held(broker: Broker, other: Broker) -> None:
    consumer = await broker.consume(WORK, prefetch=2)
    await publish_confirmed(other, numbered(3))
    await take(consumer, 2)
    await broker.close()
    assert not broker.connected
    again = await other.consume(WORK, prefetch=0)
    assert len(await take(again, 3)) == 3


async def test_after_closing_nothing_is_sent_and_nothing_hangs(broker: Broker) -> None:
    await broker.close()
    await broker.close()
    assert await broker.publish([message()]) == [UNKNOWN]
    with pytest.raises(BrokerUnavailable):
        await broker.check_queue("work")


async def test_two_thousand_messages_are_published_received_and_settled_in_order(broker: Broker) -> None:
    consumer = await broker.consume(WORK, prefetch=500)
    publishing = asyncio.create_task(broker.publish(numbered(2_000)))
    got: list[bytes] = []
    while len(got) < 2_000:
        batch = await take(consumer, 1) + list(await consumer_rest(consumer))
        got += bodies(batch)
        await consumer.ack(batch)
    assert got == [str(number).encode() for number in range(2_000)]
    assert set(await publishing) == {CONFIRMED}
    await consumer.close()
    assert await ready(broker, WORK) == 0


async def consumer_rest(consumer: Consumer) -> Sequence[Delivery]:
    """Return what has arrived meanwhile, without waiting for more."""
    receiving = asyncio.ensure_future(consumer.receive(1_000))
    await asyncio.wait([receiving], timeout=0)
    for _ in range(3):
        await asyncio.sleep(0)
    if receiving.done():
        return receiving.result()
    receiving.cancel()
    await asyncio.wait([receiving])
    return []


# Losing the connection


@pytest.mark.parametrize("queue", [WORK, PLAIN], ids=lambda queue: queue.kind)
async def test_what_was_unsettled_comes_again_after_the_connection_was_lost(
    backend: Backend, broker: Broker, queue: Queue
) -> None:
    consumer = await broker.consume(queue, prefetch=3)
    await publish_confirmed(broker, numbered(5, queue.name))
    held = await take(consumer, 3)
    await backend.cut()
    again = await take(consumer, 3)
    assert sorted(bodies(again)) == sorted(bodies(held))
    assert all(delivery.redelivered for delivery in again)
    assert {delivery.earlier_deliveries for delivery in again} == ({1} if queue is WORK else {0})
    await consumer.ack(again)
    assert bodies(await take(consumer, 2)) == [b"3", b"4"]


async def test_settling_a_delivery_of_a_lost_connection_changes_nothing(
    backend: Backend, broker: Broker, eventually: Eventually
) -> None:
    consumer = await broker.consume(WORK, prefetch=2)
    await publish_confirmed(broker, numbered(2))
    held = await take(consumer, 2)
    await backend.cut()
    await consumer.ack(held[:1])
    await consumer.requeue(held[1:])
    again = await take(consumer, 2)
    await consumer.ack(held)
    await consumer.close()
    await eventually(lambda: holds(broker, WORK, 2))
    assert all(delivery.redelivered for delivery in again)


async def test_what_was_delivered_but_not_received_is_not_given_out_twice(
    backend: Backend, broker: Broker, eventually: Eventually
) -> None:
    consumer = await broker.consume(WORK, prefetch=0)
    await publish_confirmed(broker, numbered(20))
    await take(consumer, 1)
    await backend.stop()
    await eventually(lambda: not broker.connected)
    receiving = asyncio.create_task(take(consumer, 20))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not receiving.done()
    await backend.start()
    got = await receiving
    assert all(delivery.redelivered for delivery in got)
    assert sorted(int(body) for body in bodies(got)) == list(range(20))
    await consumer.ack(got)
    await publish_until_confirmed(broker, message(body=b"new"))
    assert bodies(await take(consumer, 1)) == [b"new"]


async def test_consumers_are_restored_with_queue_bindings_and_window(
    backend: Backend, broker: Broker, eventually: Eventually
) -> None:
    await broker.declare([DIRECT], [])
    notices = Queue("notices", QueueKind.EXCLUSIVE, (Binding("direct", "notice"),))
    consumer = await broker.consume(notices, prefetch=2)
    for _ in range(2):
        await backend.cut()
        await eventually(lambda: broker.connected)
        await eventually(lambda: is_routable(broker, "direct", "notice"))
    got = await take(consumer, 2)
    assert {delivery.routing_key for delivery in got} == {"notice"}
    batch = [message("notice", str(number).encode(), exchange="direct") for number in range(5)]
    await publish_confirmed(broker, batch)
    assert await ready(broker, notices) >= 5


async def is_routable(broker: Broker, exchange: str, key: str) -> bool:
    """Publish two messages and say whether both were taken."""
    return set(await broker.publish([message(key, exchange=exchange)] * 2)) == {CONFIRMED}


async def test_a_consumer_waits_out_a_broker_that_is_away(
    backend: Backend, broker: Broker, eventually: Eventually
) -> None:
    consumer = await broker.consume(WORK, prefetch=1)
    await publish_confirmed(broker, [message()])
    [held] = await take(consumer, 1)
    receiving = asyncio.create_task(take(consumer, 1))
    await backend.stop()
    await eventually(lambda: not broker.connected)
    await consumer.ack([held])
    assert not receiving.done()
    await backend.start()
    [again] = await receiving
    assert again.redelivered


async def test_a_consumer_can_be_closed_while_the_broker_is_away(
    backend: Backend, broker: Broker, eventually: Eventually
) -> None:
    consumer = await broker.consume(WORK, prefetch=1)
    await backend.stop()
    await eventually(lambda: not broker.connected)
    async with asyncio.timeout(30):
        await consumer.close()
    await backend.start()
    await eventually(lambda: broker.connected)
    assert (await broker.check_queue("work")).consumers == 0


async def test_the_broker_can_be_closed_while_it_is_away(backend: Backend, broker: Broker) -> None:
    await broker.consume(WORK, prefetch=1)
    await backend.stop()
    async with asyncio.timeout(30):
        await broker.close()
    assert not broker.connected


@pytest.mark.parametrize("queue", [WORK, PLAIN], ids=lambda queue: queue.kind)
async def test_a_consumer_whose_queue_was_deleted_declares_it_again(
    broker: Broker, other: Broker, queue: Queue
) -> None:
    consumer = await broker.consume(queue, prefetch=1)
    await publish_confirmed(broker, numbered(1, queue.name))
    held = await take(consumer, 1)
    await other.delete_queue(queue.name)
    await publish_until_confirmed(other, message(queue.name, b"after"))
    assert bodies(await take(consumer, 1)) == [b"after"]
    await consumer.ack(held)


async def test_a_consumer_is_restored_once_its_queue_can_have_its_properties_again(
    broker: Broker, other: Broker, eventually: Eventually
) -> None:
    consumer = await broker.consume(Queue("contested", QueueKind.CLASSIC), prefetch=1)
    otherwise = Queue("contested", QueueKind.CLASSIC, expires=timedelta(hours=1))

    async def take_the_name() -> bool:
        try:  # together, or the consumer always has the queue back first
            await asyncio.gather(other.delete_queue("contested"), other.declare([], [otherwise]))
        except TopologyMismatch:
            return False
        return True

    await eventually(take_the_name)
    await other.delete_queue("contested")
    await publish_until_confirmed(other, message("contested", b"after"))
    assert bodies(await take(consumer, 1)) == [b"after"]


# Dead letters


async def test_a_dead_letter_keeps_the_message_and_says_why(broker: Broker) -> None:
    await broker.declare([DEAD_LETTERS, DIRECT], [DEAD_LETTERS_QUEUE])
    consumer = await broker.consume(Queue("work", QueueKind.QUORUM, (Binding("direct", "key"),)), prefetch=1)
    sent = message(
        "key",
        b"\xff not json",
        exchange="direct",
        type="AgentResult",
        message_id="the-id",
        correlation_id="the-correlation",
        reply_to="the-reply",
        headers={"tenant": "t1", "attempt": 3},
    )
    await publish_confirmed(broker, [sent])
    [delivery] = await take(consumer, 1)
    await consumer.dead_letter(delivery, DeadLetterReason("malformed_message", "the body is not JSON"))

    graveyard = await broker.consume(DEAD_LETTERS_QUEUE, prefetch=1)
    [dead] = await take(graveyard, 1)
    assert (dead.body, dead.type) == (sent.body, "AgentResult")
    assert (dead.correlation_id, dead.reply_to) == ("the-correlation", "the-reply")
    assert dead.message_id is not None
    assert dead.message_id.startswith("the-id.")
    headers = dict(dead.headers)
    assert datetime.fromisoformat(headers.pop("x-forkjoin-time")).utcoffset() == timedelta(0)
    assert headers == {
        "tenant": "t1",
        "attempt": 3,
        "x-forkjoin-reason": "malformed_message",
        "x-forkjoin-message": "the body is not JSON",
        "x-forkjoin-queue": "work",
        "x-forkjoin-exchange": "direct",
        "x-forkjoin-routing-key": "key",
        "x-forkjoin-message-id": "the-id",
    }


async def test_dead_lettering_settles_the_delivery(broker: Broker, eventually: Eventually) -> None:
    await broker.declare([DEAD_LETTERS], [DEAD_LETTERS_QUEUE])
    consumer = await broker.consume(WORK, prefetch=1)
    await publish_confirmed(broker, numbered(2))
    [delivery] = await take(consumer, 1)
    await consumer.dead_letter(delivery, DeadLetterReason("code", "text"))
    assert bodies(await take(consumer, 1)) == [b"1"]
    await consumer.close()
    await eventually(lambda: holds(broker, WORK, 1))


async def test_a_redelivered_message_starts_anew_in_the_dead_letters(broker: Broker) -> None:
    await broker.declare([DEAD_LETTERS], [DEAD_LETTERS_QUEUE])
    consumer = await broker.consume(WORK, prefetch=1)
    await publish_confirmed(broker, [message()])
    await consumer.requeue(await take(consumer, 1))
    [delivery] = await take(consumer, 1)
    assert delivery.earlier_deliveries == 1
    await consumer.dead_letter(delivery, DeadLetterReason("code", "text"))
    graveyard = await broker.consume(DEAD_LETTERS_QUEUE, prefetch=1)
    [dead] = await take(graveyard, 1)
    assert (dead.redelivered, dead.earlier_deliveries) == (False, 0)


async def test_dead_letters_of_messages_with_one_id_have_different_ids(broker: Broker) -> None:
    await broker.declare([DEAD_LETTERS], [DEAD_LETTERS_QUEUE])
    consumer = await broker.consume(WORK, prefetch=0)
    await publish_confirmed(broker, [message(message_id="same" * 60), message(message_id="same" * 60)])
    for delivery in await take(consumer, 2):
        await consumer.dead_letter(delivery, DeadLetterReason("code", "text"))
    graveyard = await broker.consume(DEAD_LETTERS_QUEUE, prefetch=0)
    dead = await take(graveyard, 2)
    assert len({delivery.message_id for delivery in dead}) == 2


async def test_a_dead_letter_that_does_not_arrive_leaves_the_delivery_unsettled(
    broker: Broker, eventually: Eventually
) -> None:
    await broker.declare([DEAD_LETTERS], [])  # the exchange, and no queue
    consumer = await broker.consume(WORK, prefetch=1)
    await publish_confirmed(broker, [message()])
    [delivery] = await take(consumer, 1)
    with pytest.raises(BrokerUnavailable, match=r"orchestrator\.dead-letters"):
        await consumer.dead_letter(delivery, DeadLetterReason("code", "text"))
    await consumer.close()
    await eventually(lambda: holds(broker, WORK, 1))


async def test_a_message_above_our_own_limit_can_be_dead_lettered(backend: Backend, broker: Broker) -> None:
    strict = await backend.client(max_message_bytes=10)
    await strict.declare([DEAD_LETTERS], [DEAD_LETTERS_QUEUE])
    consumer = await strict.consume(WORK, prefetch=1)
    await publish_confirmed(broker, [message(body=b"x" * 100)])
    [delivery] = await take(consumer, 1)
    await consumer.dead_letter(delivery, DeadLetterReason("payload_too_large", "100 bytes"))
    assert await ready(broker, DEAD_LETTERS_QUEUE) == 1


# Topology


async def test_declaring_again_is_harmless(broker: Broker, other: Broker) -> None:
    queue = Queue("work", QueueKind.QUORUM, (Binding("direct", "key"),))
    expiring = Queue("expiring", QueueKind.CLASSIC, expires=timedelta(minutes=1))
    for client in (broker, other, broker):
        await client.declare([DIRECT, TOPIC, FANOUT], [queue, expiring])
    await publish_confirmed(broker, [message("key", exchange="direct")])
    assert await ready(broker, queue) == 1


async def test_declaring_with_more_bindings_adds_them(broker: Broker) -> None:
    await broker.declare([DIRECT], [Queue("work", QueueKind.QUORUM, (Binding("direct", "a"),))])
    await broker.declare([DIRECT], [Queue("work", QueueKind.QUORUM, (Binding("direct", "b"),))])
    await publish_confirmed(broker, [message(key, exchange="direct") for key in "ab"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Queue("q", QueueKind.QUORUM), Queue("q", QueueKind.CLASSIC)),
        (Queue("q", QueueKind.CLASSIC), Queue("q", QueueKind.CLASSIC, expires=timedelta(minutes=1))),
        (
            Queue("q", QueueKind.CLASSIC, expires=timedelta(minutes=2)),
            Queue("q", QueueKind.CLASSIC, expires=timedelta(minutes=1)),
        ),
    ],
    ids=["another kind", "expires or not", "expires otherwise"],
)
async def test_a_queue_that_exists_with_other_properties_is_a_mismatch(
    broker: Broker, first: Queue, second: Queue
) -> None:
    await broker.declare([], [first])
    with pytest.raises(TopologyMismatch, match='"q"') as declared:
        await broker.declare([], [second])
    assert second.kind in str(declared.value)
    with pytest.raises(TopologyMismatch, match='"q"'):
        await broker.consume(second, prefetch=1)
    await publish_confirmed(broker, [message("q")])
    consumer = await broker.consume(first, prefetch=1)
    assert len(await take(consumer, 1)) == 1


async def test_an_exchange_that_exists_with_another_kind_is_a_mismatch(broker: Broker) -> None:
    await broker.declare([DIRECT], [])
    with pytest.raises(TopologyMismatch, match='"direct"'):
        await broker.declare([Exchange("direct", ExchangeKind.TOPIC)], [])
    await broker.declare([DIRECT], [])


async def test_a_binding_to_an_exchange_that_does_not_exist_is_a_mismatch(broker: Broker) -> None:
    with pytest.raises(TopologyMismatch, match='"nowhere"'):
        await broker.declare([], [Queue("q", QueueKind.CLASSIC, (Binding("nowhere", "key"),))])


async def test_checking_a_queue_tells_what_it_holds(broker: Broker) -> None:
    consumer = await broker.consume(WORK, prefetch=2)
    await publish_confirmed(broker, numbered(5))
    await take(consumer, 2)
    depth = await broker.check_queue("work")
    assert (depth.ready, depth.consumers) == (3, 1)


async def test_checking_a_queue_that_does_not_exist_says_so(broker: Broker) -> None:
    with pytest.raises(QueueMissing, match='"nowhere"'):
        await broker.check_queue("nowhere")
    await broker.declare([], [WORK])
    assert await ready(broker, WORK) == 0


async def test_a_deleted_queue_is_gone_with_what_it_held(broker: Broker) -> None:
    await broker.declare([DIRECT], [Queue("q", QueueKind.CLASSIC, (Binding("direct", "key"),))])
    await publish_confirmed(broker, [message("key", exchange="direct")])
    await broker.delete_queue("q")
    await broker.delete_queue("q")
    assert await broker.publish([message("key", exchange="direct"), message("q")]) == [RETURNED, RETURNED]
    await broker.declare([], [Queue("q", QueueKind.CLASSIC)])
    assert (await broker.check_queue("q")).ready == 0


async def test_an_exclusive_queue_dies_with_its_client(broker: Broker, other: Broker, eventually: Eventually) -> None:
    own = Queue("own", QueueKind.EXCLUSIVE)
    await other.declare([], [own])
    assert await other.publish([message("own")]) == [CONFIRMED]
    assert await broker.publish([message("own")]) == [CONFIRMED]
    await other.close()
    await eventually(lambda: is_gone(broker, own))


async def test_an_exclusive_queue_dies_with_its_consumer(broker: Broker, eventually: Eventually) -> None:
    own = Queue("own", QueueKind.EXCLUSIVE)
    consumer = await broker.consume(own, prefetch=1)
    await consumer.close()
    await eventually(lambda: is_gone(broker, own))


async def test_an_exclusive_queue_is_closed_to_other_clients(broker: Broker, other: Broker) -> None:
    own = Queue("own", QueueKind.EXCLUSIVE)
    await broker.consume(own, prefetch=1)
    with pytest.raises(TopologyMismatch, match='"own"'):
        await other.consume(own, prefetch=1)
    with pytest.raises(TopologyMismatch, match='"own"'):
        await other.check_queue("own")
    with pytest.raises(TopologyMismatch, match='"own"'):
        await other.delete_queue("own")


async def is_gone(broker: Broker, queue: Queue) -> bool:
    return not await exists(broker, queue)


async def test_an_unused_queue_expires(backend: Backend, broker: Broker, eventually: Eventually) -> None:
    brief = Queue("brief", QueueKind.CLASSIC, (Binding("direct", "key"),), timedelta(seconds=0.3))
    await broker.declare([DIRECT], [brief])
    assert await broker.publish([message("key", exchange="direct")]) == [CONFIRMED]
    backend.pass_time(0.31)
    await eventually(lambda: is_unroutable(broker, "direct", "key"))
    assert not await exists(broker, brief)


async def is_unroutable(broker: Broker, exchange: str, key: str) -> bool:
    return await broker.publish([message(key, exchange=exchange)]) == [RETURNED]


async def test_a_queue_with_a_consumer_does_not_expire(
    backend: Backend, broker: Broker, eventually: Eventually
) -> None:
    used = Queue("used", QueueKind.CLASSIC, expires=timedelta(seconds=0.3))
    unused = Queue("unused", QueueKind.CLASSIC, expires=timedelta(seconds=0.3))
    consumer = await broker.consume(used, prefetch=1)
    await broker.declare([], [unused])
    backend.pass_time(0.31)
    await eventually(lambda: is_unroutable(broker, "", "unused"))
    assert await exists(broker, used)
    await consumer.close()
    assert await exists(broker, used)
    backend.pass_time(0.31)
    await eventually(lambda: is_unroutable(broker, "", "used"))
