"""`forkjoin runs retry`: publish a RetryRun, and perhaps wait for the result of the new run; or retry a run here."""

import asyncio
from pathlib import Path
from typing import Annotated, Final
from uuid import UUID, uuid4

import typer

from messaging.rabbitmq import broker_of
from messaging.telemetry import LogLevel, configure_logging
from orchestrator.cli.following import follow
from orchestrator.cli.here import run_here
from orchestrator.cli.outcome import tell
from orchestrator.cli.terminal import print_json, quiet, stderr, told
from orchestrator.client import Client
from orchestrator.errors import WrongUse
from orchestrator.settings import Settings
from schemas.messages import RetryRun, RunResult

CONCURRENCY: Final = 10  # attempts of each agent at once, where the run is kept here


def retry(
    run_id: Annotated[UUID, typer.Argument(metavar="ID", help="A run that is FAILED or CANCELLED; it stays so.")],
    new_run_id: Annotated[
        UUID | None,
        typer.Option(
            "--run-id", metavar="UUID", help="Of the new run. Choose it to repeat the command safely: it is one run."
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", metavar="", help="Show progress; print the output at the end.")
    ] = False,
    agents: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:REGISTRY", help="Of a run that is kept here. Default: `agents` in the agents.py here."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Write JSON to stdout, for programs.")] = False,
) -> None:
    """Ask the orchestrators on FORKJOIN_AMQP_URL to do again what a run has not completed, and print the new run's id.

    Without FORKJOIN_AMQP_URL: retry a run that `forkjoin run` kept here, in this process, and print its output.

    The new run takes over the outputs of completed steps, and of a block its completed branches; what failed or was
    cancelled runs again. With --wait the exit code tells how the new run ended.

    Without --wait nobody hears of a refusal, as of a run that is not over: such a command becomes a dead letter.
    """
    with told(extra="embedded"):
        command = RetryRun(run_id=run_id, new_run_id=new_run_id or uuid4())
        settings = Settings.load(agents=agents)
        configure_logging(quiet(settings, LogLevel.ERROR), settings.log_format)
        result: RunResult | None
        if _is_kept_here(settings):
            result = _retry_here(settings, command)
        else:
            result = asyncio.run(_retry(settings, command, wait=wait))
    if result is not None:
        tell(result, as_json=as_json)
    elif as_json:
        print_json({"run_id": str(command.new_run_id)})
    else:
        typer.echo(str(command.new_run_id))


def _is_kept_here(settings: Settings) -> bool:
    """Whether nobody has said where orchestrators are, and `forkjoin run` has kept runs here."""
    is_said = settings.database_url is not None or "amqp_url" in settings.model_fields_set
    return not is_said and (settings.data_dir / "postgres").is_dir()


def _retry_here(settings: Settings, command: RetryRun) -> RunResult:
    from orchestrator.embedded import embedded_service, find_agents

    beside = Path("agents.py")
    if settings.agents is None and not beside.is_file():
        raise WrongUse("say where the agents are: --agents MODULE:REGISTRY, or retry the run beside their agents.py")
    agents = find_agents(settings.agents, beside)
    return run_here(embedded_service(settings, agents, CONCURRENCY), command)


async def _retry(settings: Settings, command: RetryRun, *, wait: bool) -> RunResult | None:
    broker = broker_of(settings, "forkjoin runs")
    await broker.connect()
    try:
        client = Client(broker)
        if wait:
            stderr.print(f"run {command.new_run_id}", style="dim")
            return await follow(client, command, stderr)
        await client.retry(command)
        return None
    finally:
        await broker.close()
