"""The HTTP ports of real processes: probes while they start, work, fail and stop, and numbers that add up."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.acceptance.alone import block_of, nap
from tests.acceptance.cluster import NEWER_SCHEMA, PATIENCE, ROOT, Cluster, Service, wait_until
from tests.acceptance.test_services import forwarding
from tests.services.http import Answer, ask
from tests.services.processes import free_ports

ANY_PORT = {"FORKJOIN_HTTP_PORT": "0"}


def port_of(service: Service) -> int:
    """Wait until the service listens, and return where."""
    service.wait_for("http_listening")
    [line] = [line for line in service.actions() if line.get("action") == "http_listening"]
    assert isinstance(line["port"], int)
    return line["port"]


def told(port: int) -> tuple[int, str, list[str]]:
    answer = ask(port, "/readyz")
    return answer.status, answer.json["status"], sorted(trouble["part"] for trouble in answer.json["troubles"])


def becomes(port: int, status: int, what: str, *parts: str) -> None:
    wait_until(lambda: told(port) == (status, what, sorted(parts)), PATIENCE, lambda: f"it says {told(port)}")


def total(answer: Answer, name: str) -> float:
    return sum(value for labels, value in answer.samples.items() if labels[0] == name)


def naps(directory: Path, branches: int, seconds: float = 0.01) -> str:
    path = directory / "naps.json"
    path.write_text(json.dumps(block_of(*(nap(seconds) for _ in range(branches)), max_parallelism=5)))
    return str(path)


def test_probes_and_numbers_of_a_cluster_that_works(cluster: Cluster, tmp_path: Path) -> None:
    orchestrator = cluster.launch("orchestrator", "serve", **ANY_PORT)
    worker = cluster.launch("agent_worker", "tests.acceptance.journal_agents:agents", **ANY_PORT)
    ports = [port_of(orchestrator), port_of(worker)]
    for port in ports:
        becomes(port, 200, "ok")
        assert ask(port, "/livez").status == 200
    done = cluster.forkjoin("submit", naps(tmp_path, 30), "--wait")
    assert done.returncode == 0, done.stderr

    ours, theirs = (ask(port, "/metrics") for port in ports)

    assert ours.samples["forkjoin_run_seconds_count", "COMPLETED"] == 1
    assert ours.samples["forkjoin_steps_ended_total", "branch", "COMPLETED"] == 30
    assert total(ours, "forkjoin_queue_seconds_count") == 30
    assert total(theirs, "forkjoin_worker_attempts_total") == 30
    assert theirs.samples["forkjoin_delivery_batch_size_sum", "agent.nap"] == 30
    wait_until(
        lambda: ask(ports[0], "/metrics").samples["forkjoin_event_loop_lag_seconds_count",] > 0,
        PATIENCE,
        lambda: "no lag was measured",
    )
    assert (worker.stop(), orchestrator.stop()) == (0, 0)


def test_services_say_what_they_wait_for_and_what_they_have_lost(cluster: Cluster) -> None:
    amqp_port, database_port = free_ports(2)
    amqp, database = urlsplit(cluster.amqp_url), urlsplit(cluster.database_url)
    behind = {
        **ANY_PORT,
        "FORKJOIN_AMQP_URL": amqp._replace(netloc=f"guest:guest@127.0.0.1:{amqp_port}").geturl(),
        "FORKJOIN_DATABASE_URL": database._replace(
            netloc=f"{database.netloc.rpartition('@')[0]}@127.0.0.1:{database_port}"
        ).geturl(),
    }
    orchestrator = cluster.launch("orchestrator", "serve", **behind)
    worker = cluster.launch("agent_worker", "tests.acceptance.journal_agents:agents", **behind)
    ours, theirs = port_of(orchestrator), port_of(worker)
    becomes(ours, 503, "starting", "broker", "database")
    becomes(theirs, 503, "starting", "broker")
    assert (ask(ours, "/livez").status, ask(theirs, "/livez").status) == (200, 200)
    assert ask(ours, "/metrics").samples["forkjoin_census_up",] == 0

    with forwarding(database_port, database.hostname or "", database.port or 5432):
        becomes(ours, 503, "starting", "broker")
        with forwarding(amqp_port, amqp.hostname or "", amqp.port or 5672):
            becomes(ours, 200, "ok")
            becomes(theirs, 200, "ok")
        becomes(ours, 503, "degraded", "broker")
        becomes(theirs, 503, "degraded", "broker")
        with forwarding(amqp_port, amqp.hostname or "", amqp.port or 5672):
            becomes(ours, 200, "ok")
            becomes(theirs, 200, "ok")
    becomes(ours, 503, "degraded", "broker", "database")
    assert (ask(ours, "/livez").status, ask(theirs, "/livez").status) == (200, 200)


def test_a_schema_that_a_newer_version_has_migrated_makes_a_running_replica_unready(cluster: Cluster) -> None:
    port = port_of(cluster.launch("orchestrator", "serve", **ANY_PORT))
    becomes(port, 200, "ok")
    asyncio.run(execute(cluster.database_url, NEWER_SCHEMA))
    becomes(port, 503, "degraded", "schema")
    [trouble] = ask(port, "/readyz").json["troubles"]
    assert "at 9999, which this version of forkjoin does not know" in trouble["reason"]


def test_a_worker_that_drains_says_so_and_finishes_what_runs(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_orchestrator()
    worker = cluster.launch("agent_worker", "tests.acceptance.journal_agents:agents", **ANY_PORT)
    port = port_of(worker)
    becomes(port, 200, "ok")
    waiting = cluster.launch("orchestrator", "submit", naps(tmp_path, 1, seconds=2), "--wait")
    wait_until(lambda: ask(port, "/metrics").samples.get(("forkjoin_worker_running", "nap")) == 1, PATIENCE, str)
    worker.process.send_signal(signal.SIGTERM)
    becomes(port, 503, "draining")
    assert ask(port, "/livez").status == 200
    assert worker.end() == 0
    assert waiting.end() == 0, waiting.log.read_text()


def test_a_process_whose_loop_is_stuck_does_not_say_that_it_lives(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start_orchestrator()
    worker = cluster.launch("agent_worker", "tests.acceptance.stuck_agents:agents", **ANY_PORT)
    port, go_on = port_of(worker), tmp_path / "go-on"
    becomes(port, 200, "ok")
    document = tmp_path / "stuck.json"
    step = {"agent_name": "stuck", "input_mapping": {"until": str(go_on)}}
    document.write_text(json.dumps({"name": "stuck", "start_step": "one", "steps": {"one": step}}))
    waiting = cluster.launch("orchestrator", "submit", str(document), "--wait")
    wait_until(lambda: is_silent(port), PATIENCE, lambda: "it answers")
    go_on.touch()
    assert waiting.end() == 0, waiting.log.read_text()
    assert ask(port, "/livez").status == 200


def is_silent(port: int) -> bool:
    try:
        ask(port, "/livez", seconds=0.5)
    except TimeoutError:
        return True
    return False


def test_a_frozen_process_does_not_say_that_it_lives(cluster: Cluster) -> None:
    orchestrator = cluster.launch("orchestrator", "serve", **ANY_PORT)
    port = port_of(orchestrator)
    orchestrator.process.send_signal(signal.SIGSTOP)
    assert is_silent(port)
    orchestrator.process.send_signal(signal.SIGCONT)
    assert ask(port, "/livez").status == 200


def test_without_a_port_nobody_listens(cluster: Cluster) -> None:
    for service in (cluster.start_orchestrator(), cluster.start_worker()):
        listening = subprocess.run(
            [sys.executable, "-c", LISTENING, str(service.process.pid)], capture_output=True, text=True, check=True
        )
        assert listening.stdout.strip() == "[]"
        assert not any(line.get("action") == "http_listening" for line in service.actions())


LISTENING = """
import sys, psutil
print([c.laddr for c in psutil.Process(int(sys.argv[1])).net_connections("inet") if c.status == psutil.CONN_LISTEN])
"""


@pytest.mark.parametrize(
    ("package", "argument", "name"),
    [("orchestrator", "serve", "forkjoin"), ("agent_worker", "examples.agents:agents", "forkjoin-worker")],
)
def test_a_port_that_is_taken_ends_a_service_with_2_and_says_which(
    cluster: Cluster, package: str, argument: str, name: str
) -> None:
    holder = port_of(cluster.launch("orchestrator", "serve", **ANY_PORT))
    service = cluster.launch(package, argument, FORKJOIN_HTTP_PORT=str(holder))
    assert service.end() == 2, service.log.read_text()
    last = service.log.read_text().splitlines()[-1]
    assert last.startswith(f"{name}: FORKJOIN_HTTP_PORT: cannot listen at 127.0.0.1, port {holder}: ")


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_the_health_command_of_the_images_ends_with_0_while_all_is_well(cluster: Cluster, path: str) -> None:
    port = port_of(cluster.launch("orchestrator", "serve", **ANY_PORT))
    becomes(port, 200, "ok")
    done = probe(path, FORKJOIN_HTTP_PORT=str(port))
    assert (done.returncode, done.stderr) == (0, "")
    assert '"status":"ok"' in done.stdout or done.stdout == "ok\n"


def test_the_health_command_ends_with_1_and_says_what_is_wrong(cluster: Cluster) -> None:
    port = port_of(cluster.launch("orchestrator", "serve", **ANY_PORT))
    becomes(port, 200, "ok")
    asyncio.run(execute(cluster.database_url, NEWER_SCHEMA))
    becomes(port, 503, "degraded", "schema")
    degraded = probe("/readyz", FORKJOIN_HTTP_PORT=str(port))
    alive = probe("/livez", FORKJOIN_HTTP_PORT=str(port))
    nobody = probe("/livez", FORKJOIN_HTTP_PORT=str(free_ports(1)[0]))
    unset = probe("/livez")
    assert (degraded.returncode, alive.returncode, nobody.returncode, unset.returncode) == (1, 0, 1, 2)
    assert "9999" in degraded.stdout
    assert "refused" in nobody.stderr
    assert "set FORKJOIN_HTTP_PORT" in unset.stderr


def probe(path: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FORKJOIN_")}
    return subprocess.run(
        [sys.executable, "-m", "messaging.monitoring.probe", path],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
