"""TLS to RabbitMQ and Postgres, with a throw-away authority, and all that is refused."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from messaging.port import BrokerUnavailable, OutgoingMessage, PublishOutcome, Queue, QueueKind
from messaging.rabbitmq import RabbitmqBroker
from messaging.tls import TlsFiles
from orchestrator.errors import DatabaseUnavailable, WrongUse
from orchestrator.storage.connecting import connect, parse_url
from tests.acceptance.alone import block_of, echo
from tests.acceptance.cluster import Cluster
from tests.acceptance.tls_servers import TlsRabbitMQ, TlsServers
from tests.conftest import Eventually
from tests.services.sources import Unavailable


@pytest.fixture(scope="module")
def servers() -> Iterator[TlsServers]:
    try:
        servers = TlsServers()
    except Unavailable as reason:
        pytest.skip(f"starts a RabbitMQ and a Postgres with TLS of its own: {reason}")
    yield servers
    servers.remove()


async def refusal(url: str, tls: TlsFiles) -> str:
    """Return why a broker refuses us, or we refuse it, without waiting."""
    broker = RabbitmqBroker(url, name="refused", tls=tls)
    with pytest.raises(BrokerUnavailable) as refused:
        await asyncio.wait_for(broker.connect(), 30)
    await broker.close()
    return str(refused.value)


async def test_a_run_passes_through_services_that_reach_both_servers_over_tls(
    servers: TlsServers, tmp_path: Path
) -> None:
    document = tmp_path / "workflow.json"
    document.write_text(json.dumps(block_of(echo(a=1), echo(a=2))))
    environment = servers.environment
    cluster = Cluster(
        environment["FORKJOIN_AMQP_URL"], environment["FORKJOIN_DATABASE_URL"], tmp_path, also=environment
    )
    try:
        cluster.migrate()
        cluster.start_orchestrator()
        cluster.start_worker()
        done = cluster.forkjoin("submit", str(document), "--wait")
        listed = cluster.forkjoin("runs", "list", "--json")
    finally:
        cluster.stop()

    assert (done.returncode, json.loads(done.stdout)) == (0, {"b0": {"a": 1}, "b1": {"a": 2}}), done.stderr
    assert [run["status"] for run in json.loads(listed.stdout)] == ["COMPLETED"], listed.stderr


async def test_a_lost_connection_comes_back_over_tls(servers: TlsServers, eventually: Eventually) -> None:
    broker = RabbitmqBroker(servers.rabbitmq.url(), name="cut", tls=servers.trusted)
    await broker.connect()
    await broker.declare((), [Queue("agent.cut", QueueKind.QUORUM)])
    management = servers.rabbitmq.server.management
    await eventually(lambda: len(management.connections()) >= 2)

    management.close_connections("closed by a test")

    await eventually(lambda: broker.reconnects == 2)
    message = OutgoingMessage(exchange="", routing_key="agent.cut", type="Test", message_id="1", body=b"{}")
    assert await broker.publish([message]) == [PublishOutcome.CONFIRMED]
    await broker.close()


async def test_a_broker_of_an_authority_that_we_do_not_trust_is_refused(servers: TlsServers) -> None:
    told = await refusal(servers.rabbitmq.url(), TlsFiles(servers.stranger.certificate))
    assert "shows a certificate that is not to be trusted" in told
    assert "FORKJOIN_AMQP_CA_FILE" in told


async def test_without_an_authority_of_ours_those_of_the_system_count(servers: TlsServers) -> None:
    assert "shows a certificate that is not to be trusted" in await refusal(servers.rabbitmq.url(), TlsFiles())


async def test_a_broker_with_the_certificate_of_another_host_is_refused(servers: TlsServers) -> None:
    told = await refusal(servers.rabbitmq.url("127.0.0.1"), servers.trusted)
    assert "shows a certificate that is not to be trusted: IP address mismatch" in told


async def test_a_broker_does_not_take_a_certificate_of_a_stranger(servers: TlsServers) -> None:
    strange = TlsFiles(servers.authority.certificate, servers.strange.certificate, servers.strange.key)
    told = await refusal(servers.rabbitmq.url(), strange)
    assert "does not take our certificate" in told
    assert "FORKJOIN_AMQP_CERT_FILE" in told


async def test_a_broker_that_wants_a_certificate_refuses_us_without_one(servers: TlsServers) -> None:
    strict = TlsRabbitMQ(servers.authority, wants_ours=True)
    try:
        told = await refusal(strict.url(), servers.trusted)
        broker = RabbitmqBroker(
            strict.url(),
            name="known",
            tls=TlsFiles(servers.authority.certificate, servers.ours.certificate, servers.ours.key),
        )
        await broker.connect()
        await broker.close()
    finally:
        strict.server.remove()
    assert "does not take our certificate" in told


async def test_a_port_without_tls_is_told(amqp_url: str) -> None:
    told = await refusal(amqp_url.replace("amqp://", "amqps://"), TlsFiles())
    assert "does not speak TLS as we do" in told
    assert "5671" in told


async def test_a_certificate_whose_time_is_over_is_refused(servers: TlsServers) -> None:
    over = servers.authority.issue("localhost", file="over", not_after=datetime.now(UTC) - timedelta(days=1))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(over.certificate, over.key)
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        told = await refusal(f"amqps://guest:guest@localhost:{port}/", servers.trusted)
    finally:
        server.close()
    assert "certificate has expired" in told


async def test_a_service_that_is_refused_ends_with_1_and_says_why(servers: TlsServers, tmp_path: Path) -> None:
    environment = servers.environment | {"FORKJOIN_AMQP_CA_FILE": str(servers.stranger.certificate)}
    cluster = Cluster(
        environment["FORKJOIN_AMQP_URL"], environment["FORKJOIN_DATABASE_URL"], tmp_path, also=environment
    )
    worker = cluster.launch("agent_worker", "tests.acceptance.journal_agents:agents")
    try:
        assert worker.end() == 1
    finally:
        cluster.stop()
    assert "shows a certificate that is not to be trusted" in worker.log.read_text()


async def looked(url: str) -> None:
    await (await connect(parse_url(url))).close()


async def test_a_database_of_an_authority_that_we_do_not_trust_is_refused(servers: TlsServers) -> None:
    with pytest.raises(DatabaseUnavailable, match="shows a certificate that is not to be trusted"):
        await looked(servers.postgres.url(servers.ours, ca=servers.stranger.certificate))


async def test_a_database_with_the_certificate_of_another_host_is_refused(servers: TlsServers) -> None:
    with pytest.raises(DatabaseUnavailable, match="IP address mismatch"):
        await looked(servers.postgres.url(servers.ours, host="127.0.0.1"))


async def test_a_database_that_wants_a_certificate_refuses_us_without_one(servers: TlsServers, tmp_path: Path) -> None:
    cluster = Cluster("amqp://localhost", servers.postgres.url(None), tmp_path)
    done = cluster.forkjoin("runs", "list")
    assert done.returncode == 1
    assert "refused us" in done.stderr
    assert "Traceback" not in done.stderr


@asynccontextmanager
async def without_tls() -> AsyncIterator[int]:
    """Yield the port of a server that answers the question for TLS as Postgres does where it has none."""

    over = asyncio.Event()

    async def decline(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # SSLRequest
        writer.write(b"N")
        await reader.read()
        writer.close()
        await writer.wait_closed()
        over.set()

    server = await asyncio.start_server(decline, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
        await asyncio.wait_for(over.wait(), 30)
    finally:
        server.close()


async def test_a_database_without_tls_is_refused(servers: TlsServers) -> None:
    async with without_tls() as port:
        with pytest.raises(DatabaseUnavailable, match="has no TLS"):
            await looked(
                f"postgresql://postgres@localhost:{port}/x?sslmode=verify-full&sslrootcert={servers.authority.certificate}"
            )


@pytest.mark.parametrize(
    ("parameters", "told"),
    [("sslmode=always", "disable, allow, prefer"), ("sslmode=require&sslrootcert=/nowhere", "which is no file")],
)
async def test_what_the_url_says_wrongly_of_tls_is_told(parameters: str, told: str) -> None:
    with pytest.raises(WrongUse, match=told):
        await looked(f"postgresql://postgres@localhost:1/x?{parameters}")
