import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from agent_worker.cli import app
from agent_worker.settings import WorkerSettings

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in an empty directory, on a wide terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for name, _ in WorkerSettings.variables():
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: CliRunner().invoke(app, arguments, env={"COLUMNS": "200", "NO_COLOR": "1"})


def words(text: str) -> str:
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


def test_help_teaches_how_to_write_an_agent_and_names_every_variable(run: Run) -> None:
    result = run("--help")
    assert result.exit_code == 0
    told = words(result.output)
    assert '@agents.agent("research")' in told
    assert "SIGTERM" in told
    assert "MODULE:REGISTRY" in told
    for name, description in WorkerSettings.variables():
        assert f"{name} {description}" in told


def test_a_wrong_setting_ends_with_code_2_and_says_which(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKJOIN_AMQP_URL", "http://me:hush@host/")
    result = run("my_agents:agents")
    assert result.exit_code == 2
    assert "forkjoin-worker: FORKJOIN_AMQP_URL is wrong: not a URL of RabbitMQ" in words(result.output)
    assert "hush" not in result.output


@pytest.mark.parametrize("arguments", [(), ("a:b", "--concurrency", "0"), ("a:b", "--log-format", "xml"), ("a", "b")])
def test_wrong_arguments_end_with_code_2(run: Run, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage: forkjoin-worker" in words(result.output) or "Usage:" in words(result.output)


def test_a_registry_that_is_not_there_ends_with_code_2(run: Run) -> None:
    result = run("no_such_module:agents")
    assert result.exit_code == 2
    assert 'forkjoin-worker: there is no module "no_such_module"' in words(result.output)


def test_an_agent_that_cannot_be_one_ends_with_code_2_and_its_place(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad_agents.py").write_text(
        "from agent_worker import AgentRegistry\n"
        "agents = AgentRegistry()\n"
        "@agents.agent('research')\n"
        "def research(topic, depth): ...\n"
    )
    result = run("bad_agents:agents")
    assert result.exit_code == 2
    assert 'bad_agents.research cannot be the agent "research": nothing would fill' in words(result.output)
