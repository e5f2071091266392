"""`--help` teaches: every command says what it does, every option what it is for."""

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.settings import Settings

COMMANDS = [
    "run", "submit", "validate", "schema", "serve", "migrate",
    "runs list", "runs show", "runs watch", "runs cancel", "runs retry", "runs prune", "agents list", "agents limit",
    "workflows register", "workflows list", "workflows show",
    "dead-letters list", "dead-letters show", "dead-letters replay", "dead-letters drop", "rabbitmq definitions",
    "doctor",
]  # fmt: skip


def shown(*arguments: str) -> str:
    done = CliRunner().invoke(app, [*arguments, "--help"], terminal_width=120)
    assert done.exit_code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


def test_every_command_is_looked_at_here() -> None:
    found = []
    for name, command in get_command(app).commands.items():
        below = getattr(command, "commands", None)
        found += [name] if below is None else [f"{name} {each}" for each in below]
    assert sorted(found) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_is_for(command: str) -> None:
    found = get_command(app)
    for name in command.split():
        found = found.commands[name]
    assert len(found.help or "") > 20
    assert [parameter.name for parameter in found.params if not parameter.help] == []


def test_no_switch_claims_to_take_a_value() -> None:
    for command in COMMANDS:
        switches = [line for line in shown(*command.split()).splitlines() if "<bool>" in line and "--help" not in line]
        assert switches == []


def test_every_environment_variable_is_named() -> None:
    told = shown()
    assert [name for name, _ in Settings.variables() if name not in told] == []
