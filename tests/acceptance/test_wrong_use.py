"""Mistakes of people who type commands: exit code 2, one clear message, no traceback."""

import json
from pathlib import Path

import pytest

from tests.acceptance.alone import Alone, block_of, echo

GOOD = block_of(echo(a=1))


@pytest.fixture
def alone(tmp_path: Path) -> Alone:
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    (tmp_path / "broken.json").write_text('{"name": "x",,}')
    (tmp_path / "raising.py").write_text("1 / 0\n")
    return Alone(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run nope.json", "forkjoin: nope.json: cannot be read: No such file or directory"),
        ("run good.json --agents raising:agents", "from raising: ZeroDivisionError: division by zero"),
        ("submit broken.json", "forkjoin: broken.json: line 1, column 14: not JSON"),
        ("serve", "forkjoin: set FORKJOIN_DATABASE_URL, for example postgresql://"),
        ("runs show 42", "Invalid value for 'ID'"),
    ],
)
def test_a_mistake_is_told_with_what_would_be_right(alone: Alone, arguments: str, message: str) -> None:
    done = alone.forkjoin(*arguments.split(), cwd=alone.directory)

    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_workflow_that_names_agents_that_are_not_there_is_not_started(alone: Alone) -> None:
    workflow = alone.write(block_of(echo(a=1), {"agent_name": "editor"}))

    done = alone.forkjoin("run", workflow)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "forkjoin: the workflow names agents that the registry lacks: editor; it has: echo, fail, nap, read\n"
    )


def test_agents_beside_the_document_may_import_what_lies_beside_them(alone: Alone) -> None:
    (alone.directory / "words.py").write_text("WORD = 'hello'\n")
    (alone.directory / "agents.py").write_text(
        "from __future__ import annotations\nfrom pydantic import BaseModel\nfrom agent_worker import AgentRegistry\n"
        "from words import WORD\nagents = AgentRegistry()\nclass Given(BaseModel):\n    a: Inner\n"
        "class Inner(BaseModel):\n    b: int = 1\n"
        "@agents.agent('echo')\ndef greet(given: Given) -> dict:\n    return {WORD: given.a.b}\n"
    )
    workflow = alone.write(block_of(echo(a={"b": 2})))

    done = AloneWithoutAgents(alone.directory).forkjoin("run", workflow)

    assert (done.returncode, done.stdout) == (0, '{\n  "b0": {\n    "hello": 2\n  }\n}\n'), done.stderr


class AloneWithoutAgents(Alone):
    """Nobody says where the agents are."""

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in super().environment.items() if name != "FORKJOIN_AGENTS"}


def test_without_agents_beside_the_document_they_must_be_named(alone: Alone) -> None:
    done = AloneWithoutAgents(alone.directory).forkjoin("run", "good.json", cwd=alone.directory)

    assert done.returncode == 2
    assert done.stderr == (
        "forkjoin: say where the agents are: --agents MODULE:REGISTRY, or put an agents.py beside good.json\n"
    )
