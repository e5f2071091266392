"""`forkjoin runs prune`: forget runs that ended long ago."""

import asyncio
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer

from orchestrator.cli.databases import any_database
from orchestrator.cli.terminal import print_json, quiet_settings, told
from orchestrator.errors import WrongUse
from schemas.statuses import RunStatus

if TYPE_CHECKING:
    from orchestrator.settings import Settings
    from orchestrator.storage.retention import Old

_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGE: Final = re.compile(r"([0-9]{1,5})([mhdw])")


def prune(
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Runs that ended longer ago: 90m, 12h, 30d or 8w.")
    ],
    status: Annotated[RunStatus | None, typer.Option(case_sensitive=False, help="Only runs of this status.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Only say how many there are, and forget none.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Write JSON to stdout, for programs.")] = False,
) -> None:
    """Forget runs that ended long ago, with all their steps, a few thousand rows at a time; others go on meanwhile.

    A request with the run_id of a run that is forgotten is a new run.
    """
    with told():
        from orchestrator.storage.retention import Old

        old = Old(read_age(older_than), status)
        runs = asyncio.run(_prune(quiet_settings(), old, dry_run=dry_run))
        if as_json:
            print_json({"runs": runs, "dry_run": dry_run})
        elif dry_run:
            typer.echo(f"{runs} runs ended longer than {older_than} ago")
        else:
            typer.echo(f"forgot {runs} runs")


def read_age(text: str) -> timedelta:
    """Return the time that *text* names.

    Raises:
        WrongUse: It names none.
    """
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise WrongUse(f'--older-than is a number with m, h, d or w, such as 30d, and not "{text}"')
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


async def _prune(settings: "Settings", old: "Old", *, dry_run: bool) -> int:
    from orchestrator.storage import retention

    async with any_database(settings) as database:
        if dry_run:
            return await retention.count_old(database, old)
        return sum([gone async for gone in retention.prune(database, old)])
