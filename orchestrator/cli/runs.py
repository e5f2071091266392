"""`forkjoin runs`: list, show, watch, cancel, retry, prune."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from uuid import UUID

import typer

from messaging.rabbitmq import broker_of
from orchestrator.cli.databases import any_database, named_database
from orchestrator.cli.following import show_until_end
from orchestrator.cli.progress import progress
from orchestrator.cli.requests import read_labels
from orchestrator.cli.retention import prune
from orchestrator.cli.retry import retry
from orchestrator.cli.terminal import FAILED, print_json, quiet_settings, stderr, told
from orchestrator.client import Client
from orchestrator.errors import WrongUse
from orchestrator.settings import Settings
from schemas.messages import ErrorInfo
from schemas.statuses import RunStatus

if TYPE_CHECKING:
    from orchestrator.cli.waiting import WaitingFor
    from orchestrator.storage.database import Database
    from orchestrator.storage.queries import RunDetails

T = TypeVar("T")

app = typer.Typer(
    help="Look at runs, cancel and retry them. Without FORKJOIN_DATABASE_URL: those that `forkjoin run` kept here.",
    no_args_is_help=True,
)

app.command("prune")(prune)

RunId = Annotated[UUID, typer.Argument(metavar="ID", help="The run's id.")]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Write JSON to stdout, for programs.")]


@app.command("list")
def list_runs(
    status: Annotated[RunStatus | None, typer.Option(case_sensitive=False, help="Only runs of this status.")] = None,
    workflow: Annotated[str | None, typer.Option(metavar="ID", help="Only runs of this workflow.")] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="KEY=VALUE", help="Only runs with this label; repeated: with all of them."),
    ] = None,
    children: Annotated[
        bool, typer.Option("--children", metavar="", help="Also runs of sub-workflows, with the run each belongs to.")
    ] = False,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=10_000, help="The newest so many.")] = 20,
    as_json: Json = False,
) -> None:
    """List the newest runs."""
    with told():
        from orchestrator.cli.tables import runs_table
        from orchestrator.storage import queries

        selection = queries.Selection(status, workflow, read_labels(label), children)
        found = _query(lambda database: queries.list_runs(database, selection, limit=limit))
        if as_json:
            print_json([asdict(run) for run in found])
        else:
            runs_table(found)


@app.command("show")
def show(
    run_id: RunId,
    all_branches: Annotated[
        bool, typer.Option("--all", metavar="", help="Every branch, also of large blocks.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a run: the tree of its steps with status, duration, worker and error, and what unfinished steps wait for.

    Exit code 0, whatever became of the run.
    """
    with told():
        from orchestrator.cli.queues import what_steps_wait_for
        from orchestrator.cli.tables import run_tree
        from orchestrator.storage import queries

        settings = quiet_settings()
        details = _query(lambda database: queries.get_run(database, run_id), settings)
        waiting = asyncio.run(what_steps_wait_for(details, settings))
        if as_json:
            print_json(_described(details, waiting))
        else:
            run_tree(details, waiting, all_branches=all_branches)


@app.command("watch")
def watch(run_id: RunId) -> None:
    """Show a run's progress live, until it has ended. Exit code 0: COMPLETED; 1: FAILED or CANCELLED."""
    with told():
        settings = quiet_settings()
        if settings.database_url is None:
            raise WrongUse("set FORKJOIN_DATABASE_URL and FORKJOIN_AMQP_URL: a run of `forkjoin run` shows itself")
        status = asyncio.run(_watch(settings, run_id))
    if status is not RunStatus.COMPLETED:
        raise typer.Exit(FAILED)


@app.command("cancel")
def cancel(
    run_id: RunId,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Kept in the run's error.")] = None,
) -> None:
    """Ask the orchestrators on FORKJOIN_AMQP_URL to stop a run. Without effect on a run that has ended."""
    with told():
        asyncio.run(_with_client(quiet_settings(), lambda client: client.cancel(run_id, reason)))
        typer.echo(f"asked for the cancellation of run {run_id}; `forkjoin runs show {run_id}` shows what came of it")


app.command("retry")(retry)


async def _watch(settings: Settings, run_id: UUID) -> RunStatus:
    from orchestrator.cli.tables import events_of
    from orchestrator.storage import queries

    async with named_database(settings) as database, _client(settings) as client, client.events(run_id) as events:
        # Listening comes first, so that nothing is missed between this look and the first event.
        details = await queries.get_run(database, run_id)
        with progress(stderr) as show:
            show(events_of(details))
            if not details.summary.status.is_final:
                await show_until_end(events, show)
        status = (await queries.get_run(database, run_id)).summary.status
        typer.echo(f"run {run_id} {status}", err=True)
        return status


def _query(question: "Callable[[Database], Awaitable[T]]", settings: Settings | None = None) -> T:
    async def ask() -> T:
        async with any_database(settings or quiet_settings()) as database:
            return await question(database)

    return asyncio.run(ask())


@asynccontextmanager
async def _client(settings: Settings) -> AsyncIterator[Client]:
    broker = broker_of(settings, "forkjoin runs")
    await broker.connect()
    try:
        yield Client(broker)
    finally:
        await broker.close()


async def _with_client(settings: Settings, ask: Callable[[Client], Awaitable[None]]) -> None:
    async with _client(settings) as client:
        await ask(client)


def _described(details: "RunDetails", waiting: "Mapping[str, WaitingFor]") -> dict[str, Any]:
    return {
        **asdict(details.summary),
        "input": details.input,
        "output": details.output,
        "error": _plain(details.error),
        "steps": [
            {
                **asdict(step),
                "error": _plain(step.error),
                "earlier_attempts": [
                    {**asdict(earlier), "error": _plain(earlier.error)} for earlier in step.earlier_attempts
                ],
                "waiting_for": asdict(waiting[step.step_id]) if step.step_id in waiting else None,
            }
            for step in details.steps
        ],
    }


def _plain(error: ErrorInfo | None) -> dict[str, Any] | None:
    return error.model_dump(exclude_none=True) if error is not None else None
