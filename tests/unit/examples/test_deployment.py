"""What deploy/ names exists: commands, settings, files, images."""

import importlib
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from agent_worker.loading import load_registry
from agent_worker.settings import WorkerSettings
from orchestrator.settings import Settings
from tests.services import postgres, rabbitmq

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
COMPOSE = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

COMMANDS = [json.loads(command) for command in re.findall(r"^ +command: (\[.*\])$", COMPOSE, re.MULTILINE)]


def test_compose_migrates_serves_and_runs_workers() -> None:
    assert COMMANDS == [
        ["forkjoin", "migrate"],
        ["forkjoin", "serve"],
        ["forkjoin-worker", "examples.agents:agents"],
    ]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_each_command_exists(command: list[str], monkeypatch, capsys) -> None:
    module, _, function = PROJECT["project"]["scripts"][command[0]].partition(":")
    main = getattr(importlib.import_module(module), function)
    monkeypatch.setattr(sys, "argv", [*command, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    assert "Usage" in capsys.readouterr().out


def test_the_workers_registry_has_agents(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    assert "report" in load_registry(COMMANDS[2][1]).names


def test_each_setting_is_one_that_the_services_read() -> None:
    named = set(re.findall(r"\bFORKJOIN_([A-Z_]+)", COMPOSE + DOCKERFILE))
    assert "DATABASE_URL" in named
    known = {name.upper() for name in [*Settings.model_fields, *WorkerSettings.model_fields]}
    assert named <= known


def test_each_variable_of_compose_is_in_the_example_of_the_environment() -> None:
    example = (DEPLOY / "env.example").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE))
    assert used == set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE))


def test_the_image_holds_every_package_of_the_wheel() -> None:
    copied = {
        source for line in re.findall(r"^COPY (?!--)(.+) \S+$", DOCKERFILE, re.MULTILINE) for source in line.split()
    }
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) < copied
    assert all((ROOT / source).exists() for source in copied)
    kept = set(re.findall(r"^!(.+)$", (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8"), re.MULTILINE))
    assert copied == kept


def test_the_services_are_those_that_the_tests_run_against() -> None:
    images = set(re.findall(r"^    image: (\S+)$", COMPOSE, re.MULTILINE))
    assert images == {rabbitmq.IMAGE, postgres.IMAGE}
