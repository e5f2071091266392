"""`python -m tests.benchmarks` for real, with loads so small that its figures mean nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.cluster import ROOT
from tests.services.postgres import Postgres
from tests.services.rabbitmq import RabbitMQ

SECONDS = 600.0  # it takes about ten


@pytest.fixture
def environment(rabbitmq: RabbitMQ, postgres: Postgres) -> dict[str, str]:
    """The servers of the tests, so that the benchmarks start none."""
    management = {} if rabbitmq.management is None else {"FORKJOIN_TEST_MANAGEMENT_URL": rabbitmq.management.base}
    servers = {"FORKJOIN_TEST_AMQP_URL": rabbitmq.url, "FORKJOIN_TEST_DATABASE_URL": postgres.url}
    return {**os.environ, **management, **servers}


def benchmarks(*options: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.benchmarks", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)


def test_the_benchmarks_measure_both_systems_under_each_load_and_write_what_they_found(
    environment: dict[str, str], tmp_path: Path
) -> None:
    systems = ("--only", "forkjoin", "--only", "bare")
    done = benchmarks("--quick", *systems, "--output", str(tmp_path), environment=environment)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())
    assert results["failures"] == []
    assert [(row["load"], row["system"]) for row in results["rows"]] == [
        *((load, system) for load in _SHARED[:2] for system in ("bare aio-pika", "forkjoin")),
        ("loop-20", "forkjoin"),
        *((load, system) for load in _SHARED[2:] for system in ("bare aio-pika", "forkjoin")),
        ("limited-20-by-4", "forkjoin"),
        ("refill-20-by-4", "forkjoin"),
    ]
    assert all(row["ratio"] > 0 for row in results["rows"] if row["load"] in _SHARED)
    assert _timed(results) == {"latency-5x4": 10, "refill-20-by-4": 16}
    assert results["idle"]["cores"].keys() == {"orchestrator", "workers"}
    assert {file.name for file in tmp_path.iterdir()} == {"results.json", "throughput.svg", "latency.svg"}
    assert "1 run, of 50 branches" in done.stdout


def test_a_load_that_does_not_exist_is_refused_before_anything_starts(tmp_path: Path) -> None:
    done = benchmarks("--load", "blokc", "--output", str(tmp_path / "none"), environment=dict(os.environ))
    assert done.returncode == 2
    assert "no load is named blokc" in done.stderr
    assert not (tmp_path / "none").exists()


_SHARED = ("block-10", "block-50", "runs-5x4", "latency-5x4")


def _timed(results: dict[str, Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for sample in results["samples"]:
        if sample["times"]:
            counts[sample["load"]] = counts.get(sample["load"], 0) + len(sample["times"])
    return counts
