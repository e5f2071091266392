"""One trace over real processes, as a collector sees it; and services that go on without one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.alone import block_of, nap
from tests.acceptance.cluster import PATIENCE, Cluster, wait_until
from tests.services.collector import UNAVAILABLE, Collector, Span, collecting
from tests.services.processes import free_ports

ABOVE = "b7ad6b7169203331"
TRACE = "0af7651916cd43dd8448eb211c80319c"
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100"}


@pytest.fixture
def collector(cluster: Cluster) -> Iterator[Collector]:
    """A collector that all services of the cluster export to."""
    with collecting() as (collector, endpoint):
        cluster.also |= {"FORKJOIN_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **SOON}
        yield collector


def document(tmp_path: Path, branches: int = 4) -> str:
    path = tmp_path / "traced.json"
    path.write_text(json.dumps(block_of(*(nap(0.01) for _ in range(branches)))))
    return str(path)


def test_one_connected_trace_of_a_run_over_two_orchestrators_and_two_workers(
    cluster: Cluster, collector: Collector, tmp_path: Path
) -> None:
    orchestrators = [cluster.start_orchestrator() for _ in range(2)]
    workers = [cluster.start_worker("--concurrency", "1") for _ in range(2)]

    done = cluster.forkjoin(
        "submit", document(tmp_path, 30), "--wait", TRACEPARENT=f"00-{TRACE}-{ABOVE}-01", FORKJOIN_TRACING="false"
    )

    assert done.returncode == 0, done.stderr
    # 1 run, 1 block, and of each branch: itself, its attempt, and what its worker tells.
    wait_until(lambda: len(collector.spans) == 2 + 3 * 30, PATIENCE, lambda: f"there are {len(collector.spans)}")
    spans = {span.span_id: span for span in collector.spans}
    assert {span.trace_id for span in spans.values()} == {TRACE}
    [run] = [span for span in spans.values() if span.parent_id == ABOVE]
    assert run.name.startswith("run ")
    for span in spans.values():
        assert span is run or span.parent_id in spans
    processed = [span for span in spans.values() if span.service == "forkjoin-worker"]
    assert len(processed) == 30
    assert {path(span, spans) for span in processed} == {("process", "send", "branch", "block", "run")}
    assert {span.service for span in spans.values()} == {"forkjoin-orchestrator", "forkjoin-worker"}
    assert all(span.seconds >= 0 for span in spans.values())
    assert [service.stop() for service in (*orchestrators, *workers)] == [0] * 4


def path(span: Span, spans: dict[str, Span]) -> tuple[str, ...]:
    above = spans.get(span.parent_id)
    return (span.name.partition(" ")[0], *(path(above, spans) if above is not None else ()))


def test_what_waits_to_be_exported_is_exported_when_a_service_stops(
    cluster: Cluster, collector: Collector, tmp_path: Path
) -> None:
    cluster.also["OTEL_BSP_SCHEDULE_DELAY"] = "3600000"
    services = [cluster.start_orchestrator(), cluster.start_worker()]
    assert cluster.forkjoin("submit", document(tmp_path), "--wait").returncode == 0
    assert collector.spans == []
    assert [service.stop() for service in services] == [0, 0]
    assert len(collector.spans) == 2 + 3 * 4


def test_a_collector_that_refuses_costs_a_line_when_that_begins_and_one_when_it_ends(
    cluster: Cluster, collector: Collector, tmp_path: Path
) -> None:
    collector.answer = 400
    orchestrator = cluster.start_orchestrator()
    cluster.start_worker()
    for _ in range(3):
        refused = collector.refused
        assert cluster.forkjoin("submit", document(tmp_path), "--wait").returncode == 0
        wait_until(lambda before=refused: collector.refused >= before + 2, PATIENCE, lambda: "spans go nowhere")
    orchestrator.wait_for("spans_lost")
    collector.answer = 200
    assert cluster.forkjoin("submit", document(tmp_path), "--wait").returncode == 0
    orchestrator.wait_for("spans_exported")
    told = [line for line in orchestrator.actions() if line.get("action", "").startswith("spans_")]
    assert [line["action"] for line in told] == ["spans_lost", "spans_exported"]
    assert "400" in told[0]["reason"]
    assert "opentelemetry" not in {line.get("logger", "").partition(".")[0] for line in orchestrator.actions()}


@pytest.mark.parametrize("answers", [True, False])
def test_a_collector_that_is_away_delays_no_stop_for_long(
    cluster: Cluster, collector: Collector, tmp_path: Path, answers: bool
) -> None:
    collector.answer = UNAVAILABLE
    if not answers:
        cluster.also["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{free_ports(1)[0]}"
    services = [cluster.start_orchestrator(), cluster.start_worker()]
    assert cluster.forkjoin("submit", document(tmp_path), "--wait").returncode == 0
    assert [service.stop() for service in services] == [0, 0]


def test_forkjoin_run_exports_the_trace_of_its_run(collector: Collector, cluster: Cluster, tmp_path: Path) -> None:
    agents = "tests.acceptance.journal_agents:agents"
    done = cluster.forkjoin(
        "run",
        document(tmp_path),
        "--agents",
        agents,
        FORKJOIN_DATA_DIR=str(tmp_path / "data"),
        FORKJOIN_DATABASE_URL="",
    )
    assert done.returncode == 0, done.stderr
    assert len(collector.spans) == 2 + 3 * 4
    assert {span.service for span in collector.spans} == {"forkjoin-run"}


def test_services_that_export_no_spans_load_no_sdk() -> None:
    script = """
import sys, agent_worker.cli, orchestrator.bootstrap, orchestrator.cli
loaded = [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True)
