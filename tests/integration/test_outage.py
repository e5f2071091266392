"""The broker is out of reach of one replica for a while: nothing is sent twice."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from yarl import URL

from messaging import topology
from messaging.port import Binding, Delivery, Queue, QueueKind
from orchestrator.service import relay as relays
from orchestrator.storage import unit_of_work as transactions
from tests.conftest import Eventually
from tests.contract.proxy import Proxy
from tests.integration.by_hand import requested
from tests.integration.documents import one_block
from tests.integration.replicas import Brokers
from tests.integration.system import System

SPY = Queue("spy", QueueKind.CLASSIC, (Binding(topology.TASKS_EXCHANGE, "echo"),))
GRACE = 2.0  # instead of the ten seconds for which sweepers leave a message to the process that wrote it


async def echo(input: Any) -> Any:
    return input


class CutOff:
    """The way of one replica to the broker, which can be cut; everybody else has another."""

    def __init__(self, brokers: Brokers, proxy: Proxy) -> None:
        assert brokers.amqp_url is not None
        url = URL(brokers.amqp_url)
        self.brokers = Brokers(str(url.with_host("127.0.0.1").with_port(proxy.port)))
        self.cut = proxy.stop
        self.mend = proxy.start


@pytest.fixture
async def cut_off(amqp_url: str) -> AsyncIterator[CutOff]:
    url = URL(amqp_url)
    proxy = Proxy(url.host or "127.0.0.1", url.port or 5672)
    await proxy.start()
    yield CutOff(Brokers(amqp_url), proxy)
    await proxy.stop()


@pytest.fixture
async def rabbitmq_system(amqp_url: str, migrated_url: str) -> AsyncIterator[System]:
    system = await System(Brokers(amqp_url), migrated_url).open()
    yield system
    await system.close()


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "HAND_OVER_SECONDS", GRACE)
    monkeypatch.setattr(relays, "SEND_SECONDS", GRACE * 0.4)
    monkeypatch.setattr(relays, "PUBLISH_SECONDS", GRACE * 0.4)


@pytest.mark.usefixtures("short_grace")
async def test_a_replica_that_is_cut_off_from_the_broker_leaves_its_messages_to_others_for_good(
    rabbitmq_system: System, cut_off: CutOff, eventually: Eventually
) -> None:
    """All its senders wait in a publish, and the rest waits in memory; meanwhile another replica sends it all."""
    system = rabbitmq_system
    await system.start_worker(echo)
    await system.broker.declare(topology.EXCHANGES, [SPY])
    alone = await system.start_replica("cut-off", brokers=cut_off.brokers)
    first = await system.submit(one_block(2))
    assert await system.ended(first) == "COMPLETED"
    await eventually(lambda: not alone.replica.relay.waiting)
    await cut_off.cut()
    await eventually(lambda: not alone.broker.connected)
    requests = [await requested(system.database, one_block(3)) for _ in range(6)]
    for request in requests:
        await alone.replica.driver.drive([request])
    assert alone.replica.relay.waiting == 6 * (3 + 1), "tasks and events of each"
    await system.start_replica("reachable")
    for request in requests:
        assert await system.ended(request.run_id) == "COMPLETED"
    await cut_off.mend()
    await eventually(lambda: alone.broker.connected)
    last = await system.submit(one_block(2))
    assert await system.ended(last) == "COMPLETED"
    await eventually(lambda: not alone.replica.relay.waiting)
    await system.quiet()
    sent = Counter([delivery.correlation_id for delivery in await everything(system, SPY)])
    assert len(sent) == 2 + 6 * 3 + 2
    assert set(sent.values()) == {1}


async def everything(system: System, queue: Queue) -> list[Delivery]:
    count = (await system.broker.check_queue(queue.name)).ready
    consumer = await system.broker.consume(queue, prefetch=0)
    taken: list[Delivery] = []
    while len(taken) < count:
        taken += await consumer.receive(1_000)
    return taken


def test_a_message_is_given_up_well_before_a_sweep_may_take_it() -> None:
    assert relays.SEND_SECONDS + relays.PUBLISH_SECONDS <= 0.8 * transactions.HAND_OVER_SECONDS
