"""`forkjoin submit`: publish a RunRequest, and perhaps wait for its result."""

import asyncio
import os
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from messaging.rabbitmq import broker_of
from messaging.telemetry import configure_logging
from orchestrator.cli.following import follow
from orchestrator.cli.outcome import tell
from orchestrator.cli.requests import make_request
from orchestrator.cli.terminal import print_json, quiet, read_document, stderr, told
from orchestrator.client import Client
from orchestrator.errors import WrongUse
from orchestrator.settings import Settings
from schemas.messages import RunRequest, RunResult
from schemas.validation import parse_workflow


def submit(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A workflow document (JSON).")] = None,
    workflow: Annotated[
        str | None, typer.Option("--workflow", metavar="ID", help="Instead of FILE: a registered workflow.")
    ] = None,
    version: Annotated[
        str | None, typer.Option("--version", metavar="V", help="Of the registered workflow. Default: the newest.")
    ] = None,
    input_text: Annotated[
        str | None, typer.Option("--input", metavar="JSON|@FILE", help="The run's input. Default: null.")
    ] = None,
    run_id: Annotated[
        UUID | None,
        typer.Option(
            metavar="UUID", help="Choose it to repeat the command safely: the same id and content is the same run."
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Kept with the run; may be repeated.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", metavar="", help="Show progress; print the output at the end.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Write JSON to stdout, for programs.")] = False,
) -> None:
    """Submit a run to the orchestrators on FORKJOIN_AMQP_URL, and print its id.

    Any AMQP client can do the same; see the README.
    A TRACEPARENT in the environment goes with the request. With --wait the exit code tells how the run ended.

    Without --wait nobody hears of a --workflow that is not registered: such a request becomes a dead letter.
    """
    with told():
        settings = Settings.load()
        configure_logging(quiet(settings), settings.log_format)
        request = make_request(input_text, label, run_id=run_id, **_workflow(file, workflow, version))
        result = asyncio.run(_submit(settings, request, wait=wait))
    if result is not None:
        tell(result, as_json=as_json)
    elif as_json:
        print_json({"run_id": str(request.run_id)})
    else:
        typer.echo(str(request.run_id))


async def _submit(settings: Settings, request: RunRequest, *, wait: bool) -> RunResult | None:
    broker = broker_of(settings, "forkjoin submit")
    await broker.connect()
    try:
        client = Client(broker, os.environ.get("TRACEPARENT"))
        if wait:
            stderr.print(f"run {request.run_id}", style="dim")
            return await follow(client, request, stderr)
        await client.submit(request)
        return None
    finally:
        await broker.close()


def _workflow(file: Path | None, workflow_id: str | None, version: str | None) -> dict[str, Any]:
    """Return the fields of a request that say which workflow is meant. Raises WrongUse and WorkflowInvalid."""
    if file is None and workflow_id is None:
        raise WrongUse("give a FILE, or --workflow ID for one that `forkjoin workflows list` shows")
    if file is not None and workflow_id is not None:
        raise WrongUse(f"give either {file} or --workflow {workflow_id}: a run is of one workflow")
    if file is None:
        return {"workflow_id": workflow_id, "workflow_version": version}
    if version is not None:
        raise WrongUse("--version chooses among registered workflows, with --workflow; a FILE says its own version")
    document = read_document(file)
    parse_workflow(document)
    return {"workflow": document}
