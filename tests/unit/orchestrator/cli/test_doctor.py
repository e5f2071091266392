"""How `forkjoin doctor` ends, and what it prints."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.doctor.findings import Finding, ok, problem, unknown, warning

Invoke = Callable[..., Any]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs the command where it finds what is given."""

    def invoke(findings: list[Finding], *options: str) -> Any:
        async def examine(*_: Any) -> list[Finding]:
            return findings

        monkeypatch.setattr("orchestrator.cli.doctor._examine", examine)
        return CliRunner().invoke(app, ["doctor", *options])

    return invoke


FINE = [ok("a", "is well"), unknown("b", "is not told", "look yourself")]
MEDIOCRE = [*FINE, warning("c", "is not so well", "mend it some day")]
BAD = [*MEDIOCRE, problem("d", "is broken", "mend it")]


@pytest.mark.parametrize(
    ("findings", "options", "code"),
    [
        ([], [], 0),
        (FINE, [], 0),
        (FINE, ["--strict"], 0),
        (MEDIOCRE, [], 0),
        (MEDIOCRE, ["--strict"], 1),
        (BAD, [], 1),
        (BAD, ["--strict"], 1),
    ],
)
def test_problems_end_with_1_and_warnings_only_where_that_is_asked_for(
    invoke: Invoke, findings: list[Finding], options: list[str], code: int
) -> None:
    assert invoke(findings, *options).exit_code == code
    assert invoke(findings, "--json", *options).exit_code == code


def test_each_finding_is_told_with_what_to_do(invoke: Invoke) -> None:
    told = invoke(BAD).stdout
    for text in ("is well", "is not told", "look yourself", "is not so well", "mend it some day", "is broken"):
        assert text in told
    assert [finding["level"] for finding in json.loads(invoke(BAD, "--json").stdout)] == [
        "ok", "unknown", "warning", "problem",
    ]  # fmt: skip
