"""What only the RabbitMQ adapter can get wrong: refusals, stalls, other clients' messages, secrets in logs."""

import asyncio
import importlib
import ssl
import struct
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import aiormq
import pytest
from aiormq.abc import ChannelFrame
from pamqp import commands
from pamqp.frame import marshal
from structlog.testing import capture_logs
from yarl import URL

from messaging.port import (
    Binding,
    Broker,
    BrokerUnavailable,
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
from messaging.rabbitmq import RabbitmqBroker
from messaging.rabbitmq.connection import Connection, Session
from messaging.rabbitmq.consume_channel import ConsumeChannel
from messaging.rabbitmq.consumer import RabbitmqConsumer
from messaging.tls import TlsFiles
from messaging.topology import DEAD_LETTERS_EXCHANGE, DEAD_LETTERS_QUEUE
from tests.conftest import Eventually
from tests.contract.backends import RabbitmqBackend
from tests.contract.proxy import Proxy
from tests.services.certificates import Authority, KeyPair
from tests.services.management import Management
from tests.services.rabbitmq import RabbitMQ

CONFIRMED, RETURNED, UNKNOWN = PublishOutcome.CONFIRMED, PublishOutcome.RETURNED, PublishOutcome.UNKNOWN
WORK = Queue("work", QueueKind.QUORUM)
TOPIC = Exchange("topic", ExchangeKind.TOPIC)


@pytest.fixture
async def backend(amqp_url: str) -> AsyncIterator[RabbitmqBackend]:
    backend = RabbitmqBackend(amqp_url)
    await backend.start()
    yield backend
    await backend.close()


@pytest.fixture
async def broker(backend: RabbitmqBackend) -> Broker:
    return await backend.client()


@pytest.fixture
def management(rabbitmq: RabbitMQ) -> Management:
    if rabbitmq.management is None:
        pytest.skip("needs RabbitMQ's management API")
    return rabbitmq.management


@dataclass(frozen=True)
class User:
    """A user of the broker, made for one test."""

    name: str
    url: str


MakeUser = Callable[..., User]


@pytest.fixture
def make_user(amqp_url: str, management: Management) -> Iterator[MakeUser]:
    names: list[str] = []

    def make(*, configure: str) -> User:
        name = f"user-{uuid.uuid4().hex[:8]}"
        management.call("PUT", f"/users/{name}", {"password": "pw", "tags": ""})
        names.append(name)
        rights = {"configure": configure, "write": ".*", "read": ".*"}
        management.call("PUT", f"/permissions/{URL(amqp_url).path.lstrip('/')}/{name}", rights)
        return User(name, str(URL(amqp_url).with_user(name).with_password("pw")))

    yield make
    for name in names:
        management.call("DELETE", f"/users/{name}")


def message(routing_key: str = "work", body: bytes = b"{}", **fields: Any) -> OutgoingMessage:
    complete = {"exchange": "", "type": "AgentTask", "message_id": str(uuid.uuid4())} | fields
    return OutgoingMessage(routing_key=routing_key, body=body, **complete)


async def take_one(broker: Broker, queue: Queue) -> Delivery:
    """Consume *queue*, return its first delivery and leave it unsettled."""
    consumer = await broker.consume(queue, prefetch=1)
    async with asyncio.timeout(30):
        [delivery] = await consumer.receive(1)
    return delivery


async def test_a_channel_that_the_broker_does_not_open_is_given_up(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("messaging.rabbitmq.connection._OPEN_TIMEOUT", 0.2)
    url = URL(amqp_url)
    proxy = Proxy(str(url.host), url.port or 5672)
    await proxy.start()
    broker = RabbitmqBroker(str(url.with_host("127.0.0.1").with_port(proxy.port)), name="frozen", heartbeat=600)
    await broker.connect()
    proxy.freeze()
    async with asyncio.timeout(60):
        with pytest.raises(BrokerUnavailable, match="opening a channel was cut off"):
            await broker.check_queue("anything")
    proxy.thaw()
    await broker.close()
    await proxy.stop()


async def test_connecting_can_be_cancelled_at_any_moment_and_leaves_no_task_behind(amqp_url: str) -> None:
    before = asyncio.all_tasks()
    for turns in range(0, 3_000, 60):  # of the event loop: each time a little later
        broker = RabbitmqBroker(amqp_url, name="cancelled")
        connecting = asyncio.create_task(broker.connect())
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        await asyncio.wait([connecting])
        await broker.close()
        assert asyncio.all_tasks() == before, f"cancelled after {turns} turns"


# Connecting


async def test_wrong_credentials_are_refused_at_once_and_not_shown(amqp_url: str) -> None:
    broker = RabbitmqBroker(str(URL(amqp_url).with_password("the-secret")), name="test")
    with capture_logs() as lines:
        async with asyncio.timeout(30):
            with pytest.raises(BrokerUnavailable, match="password") as refusal:
                await broker.connect()
    assert not broker.connected
    assert "the-secret" not in f"{refusal.value!r} {refusal.value.__cause__!r} {lines}"


async def test_a_vhost_that_does_not_exist_is_refused_at_once(amqp_url: str) -> None:
    broker = RabbitmqBroker(str(URL(amqp_url).with_path("/no-such-vhost")), name="test")
    async with asyncio.timeout(30):
        with pytest.raises(BrokerUnavailable, match=r"vhost no-such-vhost.*does not exist"):
            await broker.connect()
    with pytest.raises(BrokerUnavailable):
        await broker.check_queue("work")


async def test_waiting_for_a_broker_that_is_away_can_be_cancelled(backend: RabbitmqBackend) -> None:
    await backend.stop()
    broker = backend.unconnected_client()
    with capture_logs() as lines, pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await broker.connect()
    assert [line["action"] for line in lines] == ["broker_unreachable"]
    assert not broker.connected


async def test_one_line_says_that_the_broker_was_lost_and_one_that_it_is_back_however_many_connections_there_are(
    backend: RabbitmqBackend, broker: Broker, eventually: Eventually
) -> None:
    await broker.consume(WORK, prefetch=1)
    with capture_logs() as lines:
        await backend.cut()
        await eventually(lambda: "broker_connection_restored" in actions(lines))
        await eventually(lambda: has_consumers(broker, WORK))
    assert actions(lines) == ["broker_connection_lost", "broker_connection_restored"]
    assert "guest:guest" not in str(lines)


async def test_a_connection_that_the_broker_closes_is_restored(
    make_user: MakeUser, management: Management, eventually: Eventually
) -> None:
    user = make_user(configure=".*")
    broker = RabbitmqBroker(user.url, name="test")
    await broker.connect()
    consumer = await broker.consume(WORK, prefetch=1)
    assert await broker.publish([message(body=b"before")]) == [CONFIRMED]
    [held] = await consumer.receive(1)
    with capture_logs() as lines:
        await asyncio.to_thread(management.call, "DELETE", f"/connections/username/{user.name}")
        await eventually(lambda: "broker_connection_restored" in actions(lines))
    assert "CONNECTION_FORCED" in str(lines)
    await consumer.ack([held])
    async with asyncio.timeout(30):
        [again] = await consumer.receive(1)
    assert (again.body, again.redelivered) == (b"before", True)
    await broker.close()


async def has_consumers(broker: Broker, queue: Queue) -> bool:
    return (await broker.check_queue(queue.name)).consumers > 0


async def test_a_consumer_that_is_cancelled_while_the_broker_is_away_is_not_opened_for_a_moment_either(
    backend: RabbitmqBackend, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await backend.client()
    consumer = cast("RabbitmqConsumer", await broker.consume(WORK, prefetch=1))
    waits, opened = asyncio.Event(), []
    session, consume = Connection.session, ConsumeChannel.consume

    async def waited_for(connection: Connection) -> Session:
        if connection is consumer._connection:
            waits.set()
        return await session(connection)

    async def noted(channel: ConsumeChannel, prefetch: int) -> None:
        opened.append(channel)
        await consume(channel, prefetch)

    monkeypatch.setattr(Connection, "session", waited_for)
    monkeypatch.setattr(ConsumeChannel, "consume", noted)
    await backend.stop()
    await waits.wait()
    await consumer.cancel()
    await backend.start()
    await eventually(lambda: consumer._keeper is None or consumer._keeper.done())
    assert opened == []
    assert (await broker.check_queue("work")).consumers == 0


def actions(lines: list[Any]) -> list[str]:
    return [line["action"] for line in lines if line["log_level"] != "debug"]


# Stalls


async def test_a_confirm_that_comes_too_late_does_not_confuse_later_ones(backend: RabbitmqBackend) -> None:
    broker = await backend.client(publish_timeout=0.3)
    await broker.declare([], [WORK])
    assert await broker.publish([message()]) == [CONFIRMED]
    backend.proxy.freeze()
    assert await broker.publish([message("work"), message("nobody")]) == [UNKNOWN, UNKNOWN]
    backend.proxy.thaw()
    assert await broker.publish([message("nobody"), message("work"), message("nobody")]) == [
        RETURNED,
        CONFIRMED,
        RETURNED,
    ]
    assert (await broker.check_queue("work")).ready == 3  # what timed out has arrived all the same


async def test_more_than_the_socket_takes_times_out_as_unknown_too(backend: RabbitmqBackend) -> None:
    broker = await backend.client(publish_timeout=0.5)
    await broker.declare([], [WORK])
    assert await broker.publish([message()]) == [CONFIRMED]
    backend.proxy.freeze()
    large = [message(body=b"x" * 1_000_000) for _ in range(30)]
    assert set(await broker.publish(large)) == {UNKNOWN}
    backend.proxy.thaw()
    patient = await backend.client()
    assert set(await patient.publish(large)) == {CONFIRMED}
    assert set(await broker.publish([message(), message("nobody")])) <= {CONFIRMED, RETURNED, UNKNOWN}


async def test_closing_does_not_wait_for_a_broker_that_stopped_reading(backend: RabbitmqBackend) -> None:
    broker = await backend.client(publish_timeout=0.5)
    await broker.declare([], [WORK])
    assert await broker.publish([message()]) == [CONFIRMED]
    backend.proxy.freeze()
    more_than_sockets_buffer = b"x" * 16_000_000
    assert await broker.publish([message(body=more_than_sockets_buffer)] * 2) == [UNKNOWN, UNKNOWN]
    async with asyncio.timeout(30):
        await broker.close()
    assert not broker.connected


@pytest.mark.slow
async def test_a_half_open_connection_is_noticed_and_replaced(backend: RabbitmqBackend, eventually: Eventually) -> None:
    broker = await backend.client(publish_timeout=60, heartbeat=1)
    consumer = await broker.consume(WORK, prefetch=1)
    assert await broker.publish([message()]) == [CONFIRMED]
    assert len(await consumer.receive(1)) == 1
    backend.proxy.freeze()
    # Missed heartbeats end this publish: not as a cancellation, which nobody asked for.
    assert await broker.publish([message()]) == [UNKNOWN]
    backend.proxy.cut()
    backend.proxy.thaw()
    await eventually(lambda: broker.connected)
    assert (await consumer.receive(1))[0].redelivered
    assert await broker.publish([message("nobody")]) == [RETURNED]


# The way past aiormq


@pytest.fixture
def read_by_aiormq(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the frames that aiormq's channels read though the router should have taken them."""
    seen: list[str] = []

    def watch(method: str) -> None:
        original = getattr(aiormq.Channel, method)

        async def note(channel: aiormq.Channel, frame: Any) -> None:
            seen.append(frame.name)
            await original(channel, frame)

        monkeypatch.setattr(aiormq.Channel, method, note)

    for method in ("_on_deliver_frame", "_on_confirm_frame", "_on_return_frame"):
        watch(method)
    return seen


@pytest.fixture
def authority() -> Iterator[Authority]:
    authority = Authority()
    yield authority
    authority.remove()


class TlsProxy(Proxy):
    """Takes TLS off, in front of a broker that has none."""

    def __init__(self, host: str, port: int, own: KeyPair) -> None:
        super().__init__(host, port)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(own.certificate, own.key)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]


@asynccontextmanager
async def behind_tls(url: str, own: KeyPair) -> AsyncIterator[str]:
    proxy = TlsProxy(URL(url).host or "", URL(url).port or 5672, own)
    await proxy.start()
    yield str(URL(url).with_scheme("amqps").with_host("localhost").with_port(proxy.port))
    await proxy.stop()


async def round_trips(url: str, count: int, tls: TlsFiles | None = None) -> None:
    """Publish, have one returned, consume and ack."""
    broker = RabbitmqBroker(url, name="test", tls=tls)
    await broker.connect()
    consumer = await broker.consume(WORK, prefetch=100)
    sent = [message(body=b"%d" % number * 1_000) for number in range(count)]
    assert await broker.publish([*sent, message("nobody")]) == [*[CONFIRMED] * count, RETURNED]
    arrived: list[Delivery] = []
    async with asyncio.timeout(30):
        while len(arrived) < count:
            some = await consumer.receive(100)
            await consumer.ack(some)
            arrived += some
    assert [delivery.body for delivery in arrived] == [one.body for one in sent]
    await broker.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_deliveries_confirms_and_returns_never_pass_aiormq(
    amqp_url: str, read_by_aiormq: list[str], loop: str
) -> None:
    pytest.importorskip(loop)
    await asyncio.to_thread(importlib.import_module(loop).run, round_trips(amqp_url, 300))
    assert read_by_aiormq == []


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_nor_do_they_under_tls(amqp_url: str, authority: Authority, read_by_aiormq: list[str], loop: str) -> None:
    pytest.importorskip(loop)
    async with behind_tls(amqp_url, authority.issue("localhost", file="proxy")) as url:
        work = round_trips(url, 300, TlsFiles(authority.certificate))
        await asyncio.to_thread(importlib.import_module(loop).run, work)
    assert read_by_aiormq == []


async def test_what_many_publish_in_one_turn_leaves_together(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    await broker.declare([], [WORK])
    assert await broker.publish([message()]) == [CONFIRMED]
    stream, writes = (await broker._publishing.session()).writer._stream, []
    write = stream.write
    monkeypatch.setattr(stream, "write", lambda data: (writes.append(data), write(data)))
    outcomes = await asyncio.gather(*(broker.publish([message()]) for _ in range(50)))
    assert outcomes == [[CONFIRMED]] * 50
    assert len([data for data in writes if b"AgentTask" in data]) == 1


async def test_an_asyncio_that_hands_over_its_bytes_otherwise_is_told_at_once(
    amqp_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = asyncio.StreamReader.feed_data
    monkeypatch.setattr(
        asyncio.StreamReaderProtocol, "data_received", lambda protocol, data: feed(protocol._stream_reader, data)
    )
    broker = RabbitmqBroker(amqp_url, name="test")
    with pytest.raises(RuntimeError, match="feed_data"):
        await broker.connect()


async def test_a_broker_that_sends_nonsense_is_left_and_connected_to_again(
    backend: RabbitmqBackend, eventually: Eventually
) -> None:
    broker = await backend.client()
    consumer = await broker.consume(WORK, prefetch=1)
    channel = consumer._channel
    assert channel is not None
    deliver = marshal(commands.Basic.Deliver("tag", 1, False, "", "work"), channel._channel.number)
    with capture_logs() as lines:
        (await broker._consuming.session()).router.feed(deliver * 2)
        await eventually(lambda: "broker_connection_restored" in actions(lines))
    assert "frame_out_of_place" in actions(lines)
    assert await broker.publish([message(body=b"after")]) == [CONFIRMED]
    async with asyncio.timeout(30):
        assert [delivery.body for delivery in await consumer.receive(1)] == [b"after"]


# Permissions


async def test_where_nothing_may_be_declared_existing_queues_are_consumed(broker: Broker, make_user: MakeUser) -> None:
    work = Queue("work", QueueKind.QUORUM, (Binding("topic", "#"),))
    await broker.declare([TOPIC], [work])
    worker = RabbitmqBroker(make_user(configure="^$").url, name="worker")
    await worker.connect()
    await worker.declare([TOPIC], [work])
    assert await worker.publish([message("any", exchange="topic")]) == [CONFIRMED]
    assert (await take_one(worker, work)).routing_key == "any"
    with pytest.raises(QueueMissing, match="nowhere"):
        await worker.consume(Queue("nowhere", QueueKind.QUORUM), prefetch=1)
    with pytest.raises(TopologyMismatch, match="nowhere"):
        await worker.declare([Exchange("nowhere", ExchangeKind.TOPIC)], [])
    await worker.close()


# Messages of other clients


def shortstr(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def table(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


def nested(depth: int) -> bytes:
    inner = table(b"")
    for _ in range(depth):
        inner = table(b"\x01aF" + inner)
    return inner


UNREADABLE = {
    "a message id that is not UTF-8": (0x0080, shortstr(b"\xff\xfe")),
    "a type that is not UTF-8": (0x0020, shortstr(b"\xff")),
    "a time in the far future": (0x0040, b"\x7f" + b"\xff" * 7),
    "a header name that is not UTF-8": (0x2000, table(b"\x02\xff\xfeV")),
    "a header value that is not UTF-8": (0x2000, table(b"\x01aS" + table(b"\xff\xfe"))),
    "a header time in the far future": (0x2000, table(b"\x01aT\x7f" + b"\xff" * 7)),
    "a header number that is too large to send": (0x2000, table(b"\x01ad" + struct.pack(">d", 1e300))),
    "headers that are nested too deeply": (0x2000, nested(5_000)),
}


@pytest.mark.parametrize("case", UNREADABLE)
async def test_a_message_with_unreadable_properties_arrives_and_can_be_dead_lettered(
    broker: Broker, amqp_url: str, case: str
) -> None:
    await broker.declare([Exchange(DEAD_LETTERS_EXCHANGE, ExchangeKind.FANOUT)], [WORK, DEAD_LETTERS_QUEUE])
    consumer = await broker.consume(WORK, prefetch=1)
    flags, properties = UNREADABLE[case]
    await publish_raw(amqp_url, commands.Basic.Publish(routing_key="work"), flags, properties, b"the body")
    async with asyncio.timeout(30):
        [delivery] = await consumer.receive(1)
    assert (delivery.body, delivery.redelivered) == (b"the body", False)
    await consumer.dead_letter(delivery, DeadLetterReason("malformed_message", case))
    assert (await take_one(broker, DEAD_LETTERS_QUEUE)).body == b"the body"


async def test_a_message_with_an_unreadable_routing_key_arrives(broker: Broker, amqp_url: str) -> None:
    await broker.declare([TOPIC], [])
    consumer = await broker.consume(Queue("work", QueueKind.QUORUM, (Binding("topic", "result.#"),)), prefetch=1)
    readable = marshal(commands.Basic.Publish(exchange="topic", routing_key="result.?"), 1)
    await write_raw(amqp_url, readable.replace(b"result.?", b"result.\xff"), 0, b"", b"the body")
    async with asyncio.timeout(30):
        [delivery] = await consumer.receive(1)
    assert (delivery.routing_key, delivery.body) == (r"result.\xff", b"the body")


async def publish_raw(url: str, publish: commands.Basic.Publish, flags: int, properties: bytes, body: bytes) -> None:
    await write_raw(url, marshal(publish, 1), flags, properties, body)


async def write_raw(url: str, method: bytes, flags: int, properties: bytes, body: bytes) -> None:
    """Publish with *properties* exactly as given, on channel 1 of a connection of its own."""
    header = struct.pack(">HHQH", 60, 0, len(body), flags) + properties
    frames = [method, struct.pack(">BHI", 2, 1, len(header)) + header + b"\xce"]
    frames.append(struct.pack(">BHI", 3, 1, len(body)) + body + b"\xce")
    connection = await aiormq.connect(url)
    channel = await connection.channel(1, publisher_confirms=False)
    await connection.write_queue.put(ChannelFrame(b"".join(frames), False))
    await channel.close()
    await connection.close()


async def test_headers_that_amqp_cannot_carry_are_the_callers_mistake(broker: Broker) -> None:
    await broker.declare([], [WORK])
    with pytest.raises(ValueError, match="AgentTask"):
        await broker.publish([message(), message(headers={"object": object()})])
    assert await broker.publish([message()]) == [CONFIRMED]
    assert (await broker.check_queue("work")).ready == 1
