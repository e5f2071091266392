"""Commands about documents: validate a workflow, print a schema, register a workflow."""

import asyncio
from pathlib import Path
from typing import Annotated, Final

import typer

from orchestrator.cli.databases import named_database
from orchestrator.cli.terminal import WRONG_USE, print_json, read_document, told
from orchestrator.errors import WrongUse
from orchestrator.settings import Settings
from schemas.channels import async_api
from schemas.export import SCHEMAS
from schemas.validation import parse_workflow, validate_workflow

_DOCUMENTS: Final = {**SCHEMAS, "AsyncAPI": async_api}

workflows = typer.Typer(
    help="Register workflows, so that a RunRequest may name one by its workflow_id.", no_args_is_help=True
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A workflow document (JSON).")]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Write JSON to stdout, for programs.")]


def validate(file: File, as_json: Json = False) -> None:
    """Check a workflow document, and tell of all its problems at once, each with its place.

    Exit code 0: it is valid. 2: it is not.
    """
    with told():
        document = read_document(file)
        problems = validate_workflow(document)
        if as_json:
            found = [
                {"place": p.place, "code": p.code, "message": p.message, "suggestion": p.suggestion} for p in problems
            ]
            print_json({"valid": not problems, "problems": found})
        elif problems:
            parse_workflow(document)
        else:
            typer.echo(f"{file}: valid")
    if problems:
        raise typer.Exit(WRONG_USE)


def schema(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Without it: the names that there are.")] = None,
) -> None:
    """Print a JSON Schema of the contract, or its AsyncAPI document."""
    with told():
        if name is None:
            typer.echo("\n".join(_DOCUMENTS))
            return
        if name not in _DOCUMENTS:
            raise WrongUse(f'there is no schema "{name}"; there are: {", ".join(_DOCUMENTS)}')
        print_json(_DOCUMENTS[name]())


@workflows.command("register")
def register(file: File) -> None:
    """Register a workflow under its workflow_id and version; runs that are active keep what they started with."""
    with told():
        from orchestrator.storage.definitions import register_workflow

        document = read_document(file)
        workflow = parse_workflow(document)

        async def store() -> None:
            async with named_database(Settings.load()) as database:
                await register_workflow(database, workflow, document)

        asyncio.run(store())
        typer.echo(f"registered {workflow.workflow_id} version {workflow.version}")


@workflows.command("list")
def list_registered(as_json: Json = False) -> None:
    """List the registered workflows, the newest of each first."""
    with told():
        from orchestrator.storage.definitions import RegisteredWorkflow, list_workflows

        async def load() -> list[RegisteredWorkflow]:
            async with named_database(Settings.load()) as database:
                return list(await list_workflows(database))

        found = asyncio.run(load())
        if as_json:
            print_json(
                [
                    {"workflow_id": w.workflow_id, "version": w.version, "registered_at": w.registered_at.isoformat()}
                    for w in found
                ]
            )
            return
        for workflow in found:
            typer.echo(f"{workflow.workflow_id}\t{workflow.version}\t{workflow.registered_at:%Y-%m-%d %H:%M:%S}")
