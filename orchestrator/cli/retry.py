"""`forkjoin runs retry`: publish a RetryRun, and perhaps wait for the result of the new run."""

import asyncio
from typing import Annotated
from uuid import UUID, uuid4

import typer

from messaging.rabbitmq import RabbitmqBroker
from orchestrator.cli.following import follow
from orchestrator.cli.outcome import tell
from orchestrator.cli.terminal import print_json, quiet_settings, stderr, told
from orchestrator.client import Client
from orchestrator.settings import Settings
from schemas.messages import RetryRun, RunResult


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
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Write JSON to stdout, for programs.")] = False,
) -> None:
    """Ask the orchestrators on FORKJOIN_AMQP_URL to do again what a run has not completed, and print the new run's id.

    The new run takes over the outputs of completed steps, and of a block its completed branches; what failed or was
    cancelled runs again. With --wait the exit code tells how the new run ended.

    Without --wait nobody hears of a refusal, as of a run that is not over: such a command becomes a dead letter.
    """
    with told():
        command = RetryRun(run_id=run_id, new_run_id=new_run_id or uuid4())
        result = asyncio.run(_retry(quiet_settings(), command, wait=wait))
    if result is not None:
        tell(result, as_json=as_json)
    elif as_json:
        print_json({"run_id": str(command.new_run_id)})
    else:
        typer.echo(str(command.new_run_id))


async def _retry(settings: Settings, command: RetryRun, *, wait: bool) -> RunResult | None:
    broker = RabbitmqBroker(settings.amqp_url.get_secret_value(), name="forkjoin runs")
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
