"""`forkjoin dead-letters`: list, show, replay, drop."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from orchestrator.cli.databases import any_database, named_database
from orchestrator.cli.retention import read_age
from orchestrator.cli.terminal import WRONG_USE, print_json, quiet_settings, told
from orchestrator.errors import WrongUse
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.storage.database import Database
    from orchestrator.storage.dead_letters import DeadLetterSummary, Extent, Selection

T = TypeVar("T")
Take = Callable[["Database", Sequence[int]], Awaitable[frozenset[int]]]
Open = Callable[[Settings], AbstractAsyncContextManager["Database"]]

app = typer.Typer(
    help="Look at messages that could not be processed, and send them again or drop them.", no_args_is_help=True
)

Number = Annotated[int, typer.Argument(metavar="ID", min=1, help="The dead letter's id, as `list` shows it.")]
Numbers = Annotated[
    list[int] | None, typer.Argument(metavar="[ID]...", min=1, help="The dead letters' ids, as `list` shows them.")
]
All = Annotated[bool, typer.Option("--all", metavar="", help="All that are there now and match.")]
Queue = Annotated[str | None, typer.Option(metavar="NAME", help="Only those that came from this queue.")]
Reason = Annotated[str | None, typer.Option(metavar="CODE", help="Only those with this reason.")]
Age = Annotated[
    str | None, typer.Option("--older-than", metavar="AGE", help="Only those kept for longer: 90m, 12h, 30d or 8w.")
]
Yes = Annotated[bool, typer.Option("--yes", metavar="", help="Do not ask, with --all.")]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Write JSON to stdout, for programs.")]


@app.command("list")
def list_letters(
    queue: Queue = None,
    reason: Reason = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="The newest so many.")] = 20,
    as_json: Json = False,
) -> None:
    """List the newest dead letters, and say how many more there are."""
    with told():
        from orchestrator.cli.letters import letters_table
        from orchestrator.storage.dead_letters import Selection

        found, total = _query(lambda database: _listed(database, Selection(queue, reason), limit))
        more = max(total - len(found), 0)
        if as_json:
            print_json({"dead_letters": [asdict(letter) for letter in found], "more": more})
        else:
            letters_table(found, more)


@app.command("show")
def show(number: Number, as_json: Json = False) -> None:
    """Show a dead letter: where it came from, why it is here, its headers and its body."""
    with told():
        from orchestrator.cli.letters import described, print_letter
        from orchestrator.storage.dead_letters import get_dead_letter

        letter = _query(lambda database: get_dead_letter(database, number))
        if as_json:
            print_json(described(letter))
        else:
            print_letter(letter)


@app.command("replay")
def replay(
    numbers: Numbers = None,
    everything: All = False,
    queue: Queue = None,
    reason: Reason = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Send dead letters again, each to the queue that it came from; the orchestrators do it within seconds.

    A message that fails again is a dead letter again. Exit code 2: at least one ID could not be replayed.
    """
    with told():
        from orchestrator.storage import dead_letters

        chosen = _Choice(numbers, everything, dead_letters.Selection(queue, reason), yes=yes)
        # The embedded Postgres has no orchestrator that would send them.
        _take("replayed", chosen, dead_letters.replay, named_database, as_json=as_json)


@app.command("drop")
def drop(
    numbers: Numbers = None,
    everything: All = False,
    queue: Queue = None,
    reason: Reason = None,
    older_than: Age = None,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Delete dead letters for good. Exit code 2: at least one ID is not there."""
    with told():
        from orchestrator.storage import dead_letters

        age = None if older_than is None else read_age(older_than)
        selection = dead_letters.Selection(queue, reason, age)
        chosen = _Choice(numbers, everything, selection, yes=yes)
        _take("dropped", chosen, dead_letters.drop, any_database, as_json=as_json)


class _Choice:
    """Which dead letters a command is about."""

    def __init__(self, numbers: Sequence[int] | None, everything: bool, selection: "Selection", *, yes: bool) -> None:
        self.numbers = list(dict.fromkeys(numbers or ()))
        self.everything = everything
        self.selection = selection
        self.yes = yes
        if bool(self.numbers) == everything:
            raise WrongUse("name dead letters by their ids, or say --all; `forkjoin dead-letters list` shows the ids")
        if self.numbers and selection != type(selection)():
            raise WrongUse("--queue, --reason and --older-than choose among --all; with ids leave them out")
        if everything and not yes and not sys.stdin.isatty():
            raise WrongUse("--all without a terminal to ask on: add --yes")


def _take(done: str, chosen: _Choice, take: Take, open_database: Open, *, as_json: bool) -> None:
    async def work() -> tuple[list[int], list[int]]:
        async with open_database(quiet_settings()) as database:
            if chosen.everything:
                return await _take_all(database, chosen, take, done), []
            taken = await take(database, chosen.numbers)
            return sorted(taken), [number for number in chosen.numbers if number not in taken]

    taken, missing = asyncio.run(work())
    if as_json:
        print_json({done: taken, "missing": missing})
    else:
        typer.echo(f"{done} {len(taken)} dead letter{'' if len(taken) == 1 else 's'}")
    for number in missing:
        typer.echo(f"forkjoin: dead letter {number} was not {done}: {_why_not(done)}", err=True)
    if missing:
        raise typer.Exit(WRONG_USE)


async def _take_all(database: "Database", chosen: _Choice, take: Take, done: str) -> list[int]:
    from orchestrator.storage.dead_letters import measure, page

    extent = await measure(database, chosen.selection)
    number = extent.addressed if done == "replayed" else extent.number
    if extent.number > number:
        typer.echo(f"{extent.number - number} are left: nothing says which queue they came from", err=True)
    if number and not chosen.yes:
        _ask(number, done)
    taken: list[int] = []
    after = 0
    while ids := await page(database, chosen.selection, extent, after):
        taken += sorted(await take(database, ids))
        after = ids[-1]
    return taken


def _ask(number: int, done: str) -> None:
    verb = {"replayed": "Replay", "dropped": "Drop"}[done]
    if not typer.confirm(f"{verb} {number} dead letter{'' if number == 1 else 's'}?", err=True):
        raise WrongUse(f"nothing was {done}")


def _why_not(done: str) -> str:
    gone = "it is not there; perhaps somebody else has replayed or dropped it"
    return f"{gone}, or nothing says which queue it came from" if done == "replayed" else gone


async def _listed(
    database: "Database", selection: "Selection", limit: int
) -> "tuple[Sequence[DeadLetterSummary], int]":
    from orchestrator.storage.dead_letters import list_dead_letters, measure

    found = await list_dead_letters(database, selection, limit)
    extent: Extent = await measure(database, selection)
    return found, extent.number


def _query(question: "Callable[[Database], Awaitable[T]]") -> T:
    async def ask() -> T:
        async with any_database(quiet_settings()) as database:
            return await question(database)

    return asyncio.run(ask())
