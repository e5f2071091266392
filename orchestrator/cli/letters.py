"""Dead letters as a table, as a page and as JSON.

Everything in a dead letter was written by somebody else, so what a terminal would obey is escaped.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from orchestrator.cli.terminal import harmless
from orchestrator.storage.dead_letters import DeadLetter, DeadLetterSummary
from schemas.display import cut

LONGEST_REASON: Final = 200  # characters of a message within a table

_console: Final = Console(highlight=False)
if not _console.is_terminal:
    _console.width = 10_000  # a file or another program has no margin at which words should be cut


def letters_table(letters: Sequence[DeadLetterSummary], more: int) -> None:
    """Print a line for each dead letter, and how many there are beside them."""
    if not letters:
        _console.print("no dead letters")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("id", no_wrap=True, justify="right")
    for title in ("received (UTC)", "queue", "type", "reason"):
        table.add_column(title, overflow="fold")
    for letter in letters:
        table.add_row(
            str(letter.id),
            f"{letter.received_at:%Y-%m-%d %H:%M:%S}",
            harmless(letter.queue or "unknown"),
            harmless(letter.type or ""),
            f"{harmless(_one_line(letter.message))} \\[{harmless(letter.code)}]",
        )
    _console.print(table)
    if more:
        _console.print(f"… and {more} more (--limit shows more)")


def print_letter(letter: DeadLetter) -> None:
    """Print all that is known of a dead letter."""
    for name, value in _properties(letter).items():
        if value is not None:
            _console.print(f"[bold]{name}[/bold]  {harmless(str(value))}", soft_wrap=True)
    _console.print("[bold]headers[/bold]  " + harmless(json.dumps(letter.headers, ensure_ascii=False)), soft_wrap=True)
    encoding, body = _body(letter.body)
    _console.print(f"[bold]body[/bold]  {letter.summary.size:,} bytes, {encoding}", soft_wrap=True)
    _console.print(harmless(body), soft_wrap=True)


def described(letter: DeadLetter) -> dict[str, Any]:
    """Return all that is known of a dead letter, for programs."""
    encoding, body = _body(letter.body)
    return {**_properties(letter), "headers": letter.headers, "body_encoding": encoding, "body": body}


def _properties(letter: DeadLetter) -> dict[str, Any]:
    names = ("exchange", "routing_key", "correlation_id", "reply_to")
    return {**asdict(letter.summary), **{name: getattr(letter, name) for name in names}}


def _body(body: bytes) -> tuple[str, str]:
    """Return how a body is written, and the body: as it is where it is text."""
    try:
        return "utf-8", body.decode()
    except UnicodeDecodeError:
        return "base64", base64.b64encode(body).decode()


def _one_line(text: str) -> str:
    return cut(" ".join(text.split()), LONGEST_REASON)
