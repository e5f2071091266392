"""Dead letters for people and programs: others wrote them, so nothing in them may speak to the terminal."""

import io
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from rich.console import Console

from orchestrator.cli import letters
from orchestrator.storage.dead_letters import DeadLetter, DeadLetterSummary

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(file=io.StringIO(), width=200, highlight=False)
    monkeypatch.setattr(letters, "_console", console)
    return console


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def summary(**fields: Any) -> DeadLetterSummary:
    known: dict[str, Any] = {
        "id": 7, "received_at": NOW, "dead_lettered_at": None, "queue": "agent.a", "code": "no_luck",
        "message": "it was not to be", "type": "AgentTask", "message_id": "m", "run_id": UUID(int=1), "step_id": None,
        "size": 2,
    }  # fmt: skip
    return DeadLetterSummary(**known | fields)


def letter(body: bytes = b"{}", **fields: Any) -> DeadLetter:
    return DeadLetter(
        summary=summary(size=len(body), **fields), exchange="", routing_key="agent.a", correlation_id=None,
        reply_to="replies", headers={"a": {"$bytes": "/w=="}}, body=body,
    )  # fmt: skip


def test_the_list_has_a_line_for_each_and_says_how_many_more_there_are(console: Console) -> None:
    letters.letters_table([summary(id=12), summary(id=3, queue=None)], 5)
    lines = written(console).splitlines()
    assert lines[1].split()[:5] == ["12", "2026-01-02", "03:04:05", "agent.a", "AgentTask"]
    assert lines[1].rstrip().endswith("it was not to be [no_luck]")
    assert lines[2].split()[3] == "unknown"
    assert lines[3] == "… and 5 more (--limit shows more)"


def test_a_list_that_is_whole_says_nothing_of_more(console: Console) -> None:
    letters.letters_table([summary()], 0)
    assert "more" not in written(console)


def test_without_dead_letters_it_says_so(console: Console) -> None:
    letters.letters_table([], 0)
    assert written(console) == "no dead letters\n"


def test_long_reasons_are_cut_in_the_list_and_whole_on_the_page(console: Console) -> None:
    long = "word\n" * 1_000 + "end"
    letters.letters_table([summary(message=long)], 0)
    assert len(written(console)) < 1_000
    letters.print_letter(letter(message=long))
    assert "end" in written(console)


def test_a_body_that_is_text_is_shown_as_it_is(console: Console) -> None:
    letters.print_letter(letter('{"größe": [1]}'.encode()))
    shown = written(console)
    assert '{"größe": [1]}' in shown
    assert "16 bytes, utf-8" in shown
    assert '{"a": {"$bytes": "/w=="}}' in shown
    assert "correlation_id" not in shown, "what it has not is not told"


def test_a_body_that_is_no_text_is_shown_as_base64_and_says_so(console: Console) -> None:
    letters.print_letter(letter(b"\xff\xfe"))
    assert "2 bytes, base64\n//4=\n" in written(console)


def test_for_programs_the_encoding_of_the_body_is_named() -> None:
    text, binary = letters.described(letter(b"a\0b")), letters.described(letter(b"\xff"))
    assert (text["body_encoding"], text["body"]) == ("utf-8", "a\0b")
    assert (binary["body_encoding"], binary["body"]) == ("base64", "/w==")
    assert json.loads(json.dumps(text, default=str))["reply_to"] == "replies"


@pytest.mark.parametrize("evil", ["\x1b[2J", "\x9b2J", "\a", "\r", "\0", "\x7f"])
def test_nothing_in_a_dead_letter_is_obeyed_by_the_terminal(console: Console, evil: str) -> None:
    letters.letters_table([summary(message=evil, queue=evil, type=evil, code=evil)], 0)
    letters.print_letter(letter(evil.encode(), message=evil, message_id=evil))
    assert evil not in written(console)


def test_nothing_in_a_dead_letter_is_markup(console: Console) -> None:
    letters.letters_table([summary(message="[red]m[/red]", queue="[/bold]")], 0)
    letters.print_letter(letter(b"[1] [bold]b[/bold]"))
    shown = written(console)
    assert "[red]m[/red]" in shown
    assert "[/bold]" in shown
    assert "[1] [bold]b[/bold]" in shown
