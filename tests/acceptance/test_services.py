"""`forkjoin serve` and `forkjoin-worker` as an operator meets them: start, what they refuse, how they stop."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.acceptance.alone import LONG_SECONDS, block_of, nap
from tests.acceptance.cluster import NEWER_SCHEMA, PATIENCE, Cluster, Service, wait_until
from tests.acceptance.journal import read_journal
from tests.contract.proxy import Proxy
from tests.services.processes import free_ports

BRANCHES = 40


def refusal(service: Service) -> str:
    """Wait until the service has ended with exit code 1, and return the last line of its log."""
    assert service.end() == 1, service.log.read_text()
    log = service.log.read_text()
    assert "Traceback" not in log
    return log.splitlines()[-1]


def test_an_orchestrator_refuses_a_database_without_a_schema(bare: Cluster) -> None:
    told = refusal(bare.launch("orchestrator", "serve"))
    assert told.startswith("forkjoin: the database has no forkjoin schema")
    assert told.endswith("run `forkjoin migrate` first")


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_schema_of_a_newer_version_is_left_alone(cluster: Cluster, command: str) -> None:
    asyncio.run(execute(cluster.database_url, NEWER_SCHEMA))

    told = refusal(cluster.launch("orchestrator", command))

    assert told.startswith("forkjoin: the database schema is at 9999, which this version of forkjoin does not know")
    assert told.endswith("it was migrated by a newer version; upgrade forkjoin")


def test_migrate_may_be_repeated(bare: Cluster) -> None:
    first, second = bare.forkjoin("migrate"), bare.forkjoin("migrate")
    assert first.stdout.startswith("migrated from nothing to ")
    assert second.stdout.startswith("the schema is at ")


@pytest.mark.parametrize("command", ["serve", "runs list"])
def test_a_postgres_that_refuses_us_ends_a_command_with_a_message(bare: Cluster, command: str) -> None:
    nowhere = urlsplit(bare.database_url)._replace(path="/no_such_database").geturl()

    told = refusal(bare.launch("orchestrator", *command.split(), FORKJOIN_DATABASE_URL=nowhere))

    assert told == 'forkjoin: Postgres at FORKJOIN_DATABASE_URL refused us: database "no_such_database" does not exist'


@pytest.mark.parametrize(
    ("package", "argument"), [("orchestrator", "serve"), ("agent_worker", "examples.agents:agents")]
)
def test_a_broker_that_refuses_our_password_ends_a_service_with_a_message(
    cluster: Cluster, package: str, argument: str
) -> None:
    parts = urlsplit(cluster.amqp_url)
    wrong = parts._replace(netloc=f"guest:sesame@{parts.hostname}:{parts.port}").geturl()

    service = cluster.launch(package, argument, FORKJOIN_AMQP_URL=wrong)
    refusal(service)

    assert "refused the user name or the password" in service.log.read_text()
    assert "sesame" not in service.log.read_text()


def test_services_wait_for_a_broker_that_is_not_there_yet_and_then_work(cluster: Cluster, tmp_path: Path) -> None:
    [port] = free_ports(1)
    parts = urlsplit(cluster.amqp_url)
    behind = parts._replace(netloc=f"guest:guest@127.0.0.1:{port}").geturl()
    orchestrator = cluster.launch("orchestrator", "serve", FORKJOIN_AMQP_URL=behind)
    worker = cluster.launch("agent_worker", "tests.acceptance.journal_agents:agents", FORKJOIN_AMQP_URL=behind)
    for service in (orchestrator, worker):
        service.wait_for("broker_unreachable")
    assert not any(line.get("action") == "orchestrator_ready" for line in orchestrator.actions())

    with forwarding(port, parts.hostname or "", parts.port or 0):
        orchestrator.wait_for("orchestrator_ready")
        worker.wait_for("worker_ready")
        done = cluster.forkjoin("submit", napping(tmp_path, 3, 0.01), "--wait")
        assert done.returncode == 0, done.stderr
        assert (worker.stop(), orchestrator.stop()) == (0, 0)


@contextmanager
def forwarding(port: int, to_host: str, to_port: int) -> Iterator[None]:
    """Let a port lead to another address, from another thread."""
    loop = asyncio.new_event_loop()
    proxy = Proxy(to_host, to_port)
    proxy.port = port
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(proxy.start(), loop).result(PATIENCE)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(proxy.stop(), loop).result(PATIENCE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_idle_services_stop_at_once_with_0(cluster: Cluster) -> None:
    orchestrator, worker = cluster.start_orchestrator(), cluster.start_worker()

    assert (worker.stop(), orchestrator.stop()) == (0, 0)

    assert orchestrator.actions()[-1]["action"] == "orchestrator_stopped"
    assert worker.actions()[-1]["action"] == "worker_stopped"


def test_a_run_outlives_the_replica_and_the_worker_that_are_stopped_in_the_middle_of_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    holder, other = cluster.start_orchestrator(), cluster.start_orchestrator()
    leaver, stayer = cluster.start_worker("--concurrency", "2"), cluster.start_worker("--concurrency", "2")
    waiting = cluster.launch("orchestrator", "submit", napping(tmp_path, BRANCHES, 0.1, limit=4), "--wait", "--json")
    wait_until(lambda: begun(cluster), PATIENCE, lambda: waiting.log.read_text())

    codes = (holder.stop(), leaver.stop())
    executions_then = len(read_journal(cluster.journal))

    assert codes == (0, 0)
    assert executions_then < BRANCHES, "the run was still under way"
    assert waiting.end() == 0, waiting.log.read_text()
    executed = [execution.step_id for execution in read_journal(cluster.journal)]
    assert sorted(executed) == sorted(f"b{n}" for n in range(BRANCHES)), "each branch was executed once"
    assert (other.stop(), stayer.stop()) == (0, 0)


def test_a_cancelled_run_makes_room_for_the_next_one_at_its_worker(cluster: Cluster, tmp_path: Path) -> None:
    orchestrator, worker = cluster.start_orchestrator(), cluster.start_worker("--concurrency", "1")
    run_id = cluster.forkjoin("submit", napping(tmp_path, BRANCHES, LONG_SECONDS)).stdout.strip()
    waiting = cluster.launch("orchestrator", "runs", "watch", run_id)
    wait_until(lambda: " RUNNING    block / " in waiting.log.read_text(), PATIENCE, waiting.log.read_text)

    cancelled = cluster.forkjoin("runs", "cancel", run_id)

    assert cancelled.returncode == 0, cancelled.stderr
    worker.wait_for("attempt_cancelled")
    done = cluster.forkjoin("submit", napping(tmp_path, 2, 0.01), "--wait")
    assert done.returncode == 0, done.stderr
    assert sorted(execution.step_id for execution in read_journal(cluster.journal)) == ["b0", "b1"]
    actions = [line.get("action") for line in worker.actions()]
    assert (actions.count("attempt_cancelled"), actions.count("task_dropped")) == (1, BRANCHES - 1)
    assert waiting.end() == 1, waiting.log.read_text()
    assert (worker.stop(), orchestrator.stop()) == (0, 0)


def begun(cluster: Cluster) -> bool:
    return cluster.journal.exists() and len(read_journal(cluster.journal)) >= 4


def napping(directory: Path, branches: int, seconds: float, limit: int | None = None) -> str:
    more = {} if limit is None else {"max_parallelism": limit}
    path = directory / "napping.json"
    path.write_text(json.dumps(block_of(*(nap(seconds) for _ in range(branches)), **more)))
    return str(path)


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
