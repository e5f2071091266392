"""Mistakes of people who type commands: exit code 2 and one clear message. No service is asked for any of them."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.cli import run as run_command
from orchestrator.cli import submit as submit_command
from schemas.messages import MESSAGES

Forkjoin = Callable[..., Any]

GOOD = {"name": "good", "start_step": "a", "steps": {"a": {"agent_name": "echo"}}}
INVALID = {
    "name": "invalid",
    "start_step": "blok",
    "steps": {
        "block": {"type": "parallel", "parallel_steps": ["a", "b"], "max_parallelism": 0},
        "a": {"agent_nam": "echo"},
        "b": {"agent_name": "echo", "input_mapping": {"x": "${a.output}"}},
    },
}


@pytest.fixture
def forkjoin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forkjoin]:
    """Run a command in a directory with a few documents and registries."""
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    (tmp_path / "invalid.json").write_text(json.dumps(INVALID))
    (tmp_path / "broken.json").write_text('{"name": "x",,}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "raising.py").write_text("1 / 0\n")
    (tmp_path / "empty_registry.py").write_text("from agent_worker import AgentRegistry\nagents = AgentRegistry()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for command in (run_command, submit_command):
        monkeypatch.setattr(command, "configure_logging", lambda *_: logging.getLogger())
    for name in ("AMQP_URL", "DATABASE_URL", "AGENTS", "DATA_DIR", "LOG_LEVEL"):
        monkeypatch.delenv(f"FORKJOIN_{name}", raising=False)
    yield lambda *arguments: CliRunner().invoke(app, arguments)
    sys.modules.pop("empty_registry", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run nope.json", "forkjoin: nope.json: cannot be read: No such file or directory"),
        ("run broken.json", "forkjoin: broken.json: line 1, column 14: not JSON"),
        ("run list.json", "forkjoin: list.json: a workflow document is a JSON object"),
        ("run good.json --input {", "forkjoin: --input: line 1, column 2: not JSON"),
        ("run good.json --input @nope", "forkjoin: --input @nope: cannot be read: No such file or directory"),
        ("run good.json --agents nope:agents", 'forkjoin: there is no module "nope" in '),
        ("run good.json --agents empty_registry", '"empty_registry" does not name a registry: give MODULE:REGISTRY'),
        ("run good.json --agents empty_registry:nope", '"nope" does not exist in the module "empty_registry"'),
        ("run good.json --agents empty_registry:agents", 'the registry "empty_registry:agents" has no agents'),
        ("run good.json --agents raising:agents", "imported from raising: ZeroDivisionError: division by zero"),
        ("submit broken.json", "forkjoin: broken.json: line 1, column 14: not JSON"),
        ("submit good.json --label team", 'forkjoin: --label team: write KEY=VALUE, for example "team='),
        ("runs list --label team=a --label team=b", "forkjoin: --label team=b: team is a already; a label has"),
        (f"run good.json --label team={'x' * 501}", "forkjoin: labels.team: the string has 501 characters; the"),
        ("submit", "forkjoin: give a FILE, or --workflow ID for one that `forkjoin workflows list` shows"),
        ("submit --version 1.0", "forkjoin: give a FILE, or --workflow ID"),
        ("submit nope.json --workflow good", "forkjoin: give either nope.json or --workflow good: a run is of one"),
        ("submit nope.json --version 1.0", "forkjoin: --version chooses among registered workflows, with --workflow;"),
        (f"submit --workflow {'x' * 201}", "will not do: a name has 1 to 200 characters"),
        ("run good.json --label team", 'forkjoin: --label team: write KEY=VALUE, for example "team='),
        ("runs list --label team=\udcff", "a label is UTF-8, without NUL"),
        ("runs list --label =search", 'forkjoin: --label =search: write KEY=VALUE, for example "team='),
        ("schema Workflo", 'forkjoin: there is no schema "Workflo"; there are: Workflow, '),
        ("migrate", "forkjoin: set FORKJOIN_DATABASE_URL, for example postgresql://"),
        ("serve", "forkjoin: set FORKJOIN_DATABASE_URL, for example postgresql://"),
        ("runs list", "forkjoin: there are no runs: FORKJOIN_DATABASE_URL is not set, and `forkjoin run` has"),
        ("agents list", "forkjoin: there are no runs: FORKJOIN_DATABASE_URL is not set, and `forkjoin run` has"),
        ("agents limit nap", "forkjoin: say --concurrency N or --rate N/s, or both; none takes a limit away"),
        ("agents limit nap --concurrency -1", "forkjoin: --concurrency -1: write a number from 0 (which pauses"),
        ("agents limit nap --rate 10", "forkjoin: --rate 10: write a number per second, minute or hour, as in 10/s,"),
        ("agents limit nap --rate 0/s", "forkjoin: --rate 0/s: a rate is above 0 and at most 1000000/s; --concurrency"),
        ("agents limit na*p --rate 1/s", 'forkjoin: "na*p": an agent name has 1 to 100 letters, digits,'),
        ("agents limit nap --rate 1/s", "forkjoin: there are no runs: FORKJOIN_DATABASE_URL is not set, and"),
        ("runs watch 9f0f5a5e-5f0c-4f5b-9d5e-0c1c2f3b7a10", "set FORKJOIN_DATABASE_URL and FORKJOIN_AMQP_URL"),
        ("workflows list", "forkjoin: set FORKJOIN_DATABASE_URL"),
        ("workflows show good", "forkjoin: set FORKJOIN_DATABASE_URL"),
        ("dead-letters list", "FORKJOIN_DATABASE_URL is not set"),
        ("dead-letters replay 1", "forkjoin: set FORKJOIN_DATABASE_URL"),
        ("dead-letters replay", "forkjoin: name dead letters by their ids, or say --all"),
        ("dead-letters drop 1 --all", "forkjoin: name dead letters by their ids, or say --all"),
        ("dead-letters drop 1 --reason x", "forkjoin: --queue, --reason and --older-than choose among --all"),
        ("dead-letters replay --all", "forkjoin: --all without a terminal to ask on: add --yes"),
        ("rabbitmq definitions --worker w", "--worker w: say which agents it serves, as in --worker w=research"),
        ("rabbitmq definitions --worker w=a*", "forkjoin: --worker w=a*: an agent name has 1 to 100 letters"),
        ("rabbitmq definitions --submitter a:b", 'forkjoin: "a:b" is no name for a user: write letters, digits, and'),
        ("rabbitmq definitions --submitter x --operator x", "a user has one role, and these are given twice: x"),
        ("rabbitmq definitions --passwords good.json", "good.json has a password for name, start_step, steps, and no"),
        ("runs show 42", "Invalid value for 'ID'"),
        ("rum good.json", "No such command 'rum'"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_what_would_be_right(forkjoin: Forkjoin, arguments: str, message: str) -> None:
    done = forkjoin(*arguments.split())

    assert (done.exit_code, done.stdout) == (2, "")
    assert message in done.stderr


@pytest.mark.parametrize("command", ["run", "validate", "submit"])
def test_all_problems_of_a_workflow_are_told_at_once(forkjoin: Forkjoin, command: str) -> None:
    done = forkjoin(command, "invalid.json")

    assert (done.exit_code, done.stdout) == (2, "")
    *problems, last = done.stderr.splitlines()
    assert sorted(problem.split(":")[0] for problem in problems) == [
        "start_step", "steps.a.agent_nam", "steps.b.input_mapping.x", "steps.block.max_parallelism"
    ]  # fmt: skip
    assert 'start_step: there is no step "blok" (did you mean "block"?) [unknown_step]' in problems
    assert last == "forkjoin: the workflow has 4 problems"


def test_problems_and_their_absence_are_told_to_programs(forkjoin: Forkjoin) -> None:
    invalid = forkjoin("validate", "invalid.json", "--json")
    good = forkjoin("validate", "good.json", "--json")

    found = json.loads(invalid.stdout)
    assert (invalid.exit_code, found["valid"], len(found["problems"])) == (2, False, 4)
    assert set(found["problems"][0]) == {"place", "code", "message", "suggestion"}
    assert (good.exit_code, json.loads(good.stdout)) == (0, {"valid": True, "problems": []})


def test_each_schema_that_is_listed_can_be_printed(forkjoin: Forkjoin) -> None:
    names = forkjoin("schema").stdout.split()

    assert names[0] == "Workflow"
    assert {model.__name__ for model in MESSAGES} | {"AsyncAPI"} <= set(names)
    assert json.loads(forkjoin("schema", "RunRequest").stdout)["title"] == "RunRequest"
    assert json.loads(forkjoin("schema", "AsyncAPI").stdout)["asyncapi"] == "3.0.0"


def test_wrong_settings_are_told_by_name_and_without_their_values(
    forkjoin: Forkjoin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORKJOIN_AMQP_URL", "http://me:sesame@host/")

    done = forkjoin("submit", "good.json")

    assert done.exit_code == 2
    assert done.stderr.startswith("forkjoin: FORKJOIN_AMQP_URL is wrong: not a URL of RabbitMQ")
    assert "sesame" not in done.stderr
