"""No output shows a password: not the logs at their most talkative, nor commands, errors, probes or metrics."""

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.acceptance.alone import block_of, nap
from tests.acceptance.cluster import Cluster, Service
from tests.acceptance.test_monitoring import ANY_PORT, becomes, port_of
from tests.services.http import ask
from tests.services.postgres import Postgres
from tests.services.rabbitmq import RabbitMQ

CANARY = "canary-5f2d81"
TALKATIVE = {"FORKJOIN_LOG_LEVEL": "DEBUG", "PYTHONASYNCIODEBUG": "1", **ANY_PORT}


@pytest.fixture
def secretive(rabbitmq: RabbitMQ, postgres: Postgres, cluster: Cluster) -> Iterator[Cluster]:
    """A cluster whose users at both servers have the canary for a password."""
    management = rabbitmq.management
    if management is None:
        pytest.skip(f"needs RabbitMQ's management API; {rabbitmq.origin} has none")
    vhost, user = urlsplit(cluster.amqp_url).path.lstrip("/"), f"secretive-{cluster.directory.name}"
    management.call("PUT", f"/users/{user}", {"password": CANARY, "tags": ""})
    management.call("PUT", f"/permissions/{vhost}/{user}", {"configure": ".*", "write": ".*", "read": ".*"})
    amqp, database = urlsplit(cluster.amqp_url), urlsplit(cluster.database_url)
    cluster.amqp_url = amqp._replace(netloc=f"{user}:{CANARY}@{amqp.hostname}:{amqp.port}").geturl()
    name = f"secretive_{cluster.directory.name}".replace("-", "_").lower()
    asyncio.run(execute(cluster.database_url, f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{CANARY}'"))
    before, cluster.database_url = (
        cluster.database_url,
        database._replace(netloc=f"{name}:{CANARY}@{database.hostname}:{database.port}").geturl(),
    )
    yield cluster
    cluster.stop()
    management.call("DELETE", f"/users/{user}")
    asyncio.run(execute(before, f"DROP ROLE {name}"))


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def test_services_and_commands_show_no_password(
    secretive: Cluster, rabbitmq: RabbitMQ, postgres: Postgres, tmp_path: Path
) -> None:
    cluster, seen = secretive, Seen()
    console = {"FORKJOIN_LOG_FORMAT": "console"}
    services = [
        cluster.launch("orchestrator", "serve", **TALKATIVE),
        cluster.launch("agent_worker", "tests.acceptance.journal_agents:agents", **TALKATIVE),
    ]
    others = [
        cluster.launch("orchestrator", "serve", **TALKATIVE, **console),
        cluster.launch("agent_worker", "tests.acceptance.journal_agents:agents", **TALKATIVE, **console),
    ]
    ports = [port_of(service) for service in services]
    for port in ports:
        becomes(port, 200, "ok")
    document = tmp_path / "naps.json"
    document.write_text(json.dumps(block_of(*(nap(0.01) for _ in range(5)), max_parallelism=2)))
    seen.add(cluster.forkjoin("submit", str(document), "--wait", **TALKATIVE))
    for command in ("runs list", "agents list", "workflows list", "dead-letters list", "migrate", "--help"):
        seen.add(cluster.forkjoin(*command.split(), FORKJOIN_LOG_LEVEL="DEBUG"))

    assert postgres.terminate_backends(cluster.database_url) > 0
    user = urlsplit(cluster.amqp_url).username
    management = rabbitmq.management
    assert management is not None
    management.call("DELETE", f"/connections/username/{user}", headers={"X-Reason": "closed by a test"})
    asyncio.run(execute(cluster.database_url, "ALTER TABLE alembic_version RENAME TO elsewhere"))
    becomes(ports[0], 503, "degraded", "schema")
    for port in ports:
        seen.text += "".join(ask(port, path).text for path in ("/livez", "/readyz", "/metrics"))
    asyncio.run(execute(cluster.database_url, "ALTER TABLE elsewhere RENAME TO alembic_version"))
    becomes(ports[0], 200, "ok")
    becomes(ports[1], 200, "ok")
    seen.add(cluster.forkjoin("submit", str(document), "--wait"))
    assert [service.stop() for service in services + others] == [0] * 4

    seen.text += "".join(service.log.read_text() for service in services + others)
    assert "broker_connection_lost" in seen.text
    assert "health_changed" in seen.text
    assert CANARY not in seen.text


WRONG = [
    ("FORKJOIN_AMQP_URL", f"amqp://guest:{CANARY}@127.0.0.1:{{amqp}}/"),
    ("FORKJOIN_AMQP_URL", f"amqp://guest:{CANARY}@127.0.0.1:not-a-port/"),
    ("FORKJOIN_AMQP_URL", f"amqp://guest:{CANARY}@[::1/"),
    ("FORKJOIN_AMQP_URL", f"amqp://guest:{CANARY}/x@127.0.0.1/"),
    ("FORKJOIN_AMQP_URL", f"http://guest:{CANARY}@127.0.0.1/"),
    ("FORKJOIN_AMQP_URL", f"amqp:/guest:{CANARY}@/"),
    ("FORKJOIN_DATABASE_URL", f"postgresql://nobody:{CANARY}@127.0.0.1:{{postgres}}/nowhere"),
    ("FORKJOIN_DATABASE_URL", f"postgresql://nobody:{CANARY}@127.0.0.1:not-a-port/x"),
    ("FORKJOIN_DATABASE_URL", f"postgresql://nobody:{CANARY}@[::1/x"),
    ("FORKJOIN_DATABASE_URL", f"mysql://nobody:{CANARY}@127.0.0.1/x"),
    ("FORKJOIN_DATABASE_URL", f"{CANARY}"),
    ("FORKJOIN_DATABASE_POOL_SIZE", CANARY),
    ("FORKJOIN_HTTP_PORT", CANARY),
]


@pytest.mark.parametrize(("variable", "value"), WRONG, ids=[f"{name[9:]}-{n}" for n, (name, _) in enumerate(WRONG)])
def test_what_refuses_wrong_settings_does_not_show_them(cluster: Cluster, variable: str, value: str) -> None:
    ports = {"amqp": urlsplit(cluster.amqp_url).port, "postgres": urlsplit(cluster.database_url).port}
    given = {"FORKJOIN_LOG_LEVEL": "DEBUG", variable: value.format(**ports)}
    refusals: list[Service] = [cluster.launch("orchestrator", "serve", **given)]
    if variable not in {"FORKJOIN_DATABASE_URL", "FORKJOIN_DATABASE_POOL_SIZE"}:
        refusals.append(cluster.launch("agent_worker", "examples.agents:agents", **given))
    for service in refusals:
        assert service.end() in {1, 2}, service.log.read_text()
        shown = service.log.read_text()
        assert CANARY not in shown
        assert "Traceback" not in shown


class Seen:
    """All output of commands."""

    def __init__(self) -> None:
        self.text = ""

    def add(self, done: "subprocess.CompletedProcess[str]") -> None:
        assert done.returncode == 0, done.stderr
        self.text += done.stdout + done.stderr
