"""`forkjoin run`: a workflow from start to end in this process."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from messaging.telemetry import LogLevel, configure_logging
from orchestrator.cli.here import run_here
from orchestrator.cli.outcome import tell
from orchestrator.cli.requests import make_request
from orchestrator.cli.terminal import quiet, read_document, told
from orchestrator.settings import Settings
from schemas.messages import RunRequest, RunResult
from schemas.validation import parse_workflow
from schemas.workflow import Workflow


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A workflow document (JSON).")],
    input_text: Annotated[
        str | None, typer.Option("--input", metavar="JSON|@FILE", help="The run's input. Default: null.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="Kept with the run; may be repeated.")
    ] = None,
    agents: Annotated[
        str | None,
        typer.Option(metavar="MODULE:REGISTRY", help="Default: `agents` in the agents.py beside FILE."),
    ] = None,
    others: Annotated[
        list[Path] | None,
        typer.Option(
            "--with", metavar="FILE", help="Register this workflow first, for steps that start it; may be repeated."
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(metavar="N", min=1, max=10_000, help="Attempts of each agent at once.")
    ] = 10,
    data_dir: Annotated[
        Path | None, typer.Option(metavar="DIRECTORY", help="Where the runs are kept. Default: .forkjoin")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Write run id, status, output and error to stdout.")
    ] = False,
) -> None:
    """Run a workflow here, with nothing else running: orchestrator, worker, broker and Postgres in one command.

    Progress goes to stderr, the run's output to stdout as JSON. The run is kept: `forkjoin runs show` shows it later.
    """
    with told(extra="embedded"):
        settings = Settings.load(data_dir=data_dir, agents=agents)
        configure_logging(quiet(settings, LogLevel.ERROR), settings.log_format)
        document = read_document(file)
        workflows = [(parse_workflow(one), one) for one in (document, *map(read_document, others or ()))]
        request = make_request(input_text, label, workflow=document)
        result = _run_embedded(settings, workflows, request, file, concurrency)
    tell(result, as_json=as_json)


def _run_embedded(
    settings: Settings,
    workflows: Sequence[tuple[Workflow, dict[str, Any]]],
    request: RunRequest,
    file: Path,
    concurrency: int,
) -> RunResult:
    """Run the first of *workflows*; the others, which it may start, are registered."""
    from orchestrator.embedded import check_agents, embedded_service, find_agents

    agents = find_agents(settings.agents, file)
    for workflow, _ in workflows:
        check_agents(workflow, agents)
    return run_here(embedded_service(settings, agents, concurrency, workflows[1:]), request)
