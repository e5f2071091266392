"""Commands about documents: validate a workflow, print a schema, register, list and show workflows."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from orchestrator.cli.databases import named_database
from orchestrator.cli.terminal import WRONG_USE, harmless, print_json, read_document, stderr, told
from orchestrator.errors import WrongUse
from orchestrator.settings import Settings
from schemas.channels import async_api
from schemas.export import SCHEMAS
from schemas.validation import parse_workflow, validate_workflow

if TYPE_CHECKING:
    from orchestrator.storage.definitions import RegisteredWorkflow

_DOCUMENTS: Final = {**SCHEMAS, "AsyncAPI": async_api}

workflows = typer.Typer(
    help="Register workflows, so that a RunRequest may name one by its workflow_id, and look at them.",
    no_args_is_help=True,
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
        from orchestrator.cli.tables import workflows_table
        from orchestrator.storage.definitions import list_workflows

        async def load() -> "Sequence[RegisteredWorkflow]":
            async with named_database(Settings.load()) as database:
                return await list_workflows(database)

        found = asyncio.run(load())
        if as_json:
            print_json([_described(workflow) for workflow in found])
        else:
            workflows_table(found)


@workflows.command("show")
def show_registered(
    workflow_id: Annotated[str, typer.Argument(metavar="ID", help="The workflow's id, as `list` shows it.")],
    version: Annotated[
        str | None, typer.Option("--version", metavar="V", help="Of this version. Default: the newest.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", metavar="", help="Write version and time to stdout too, around the document.")
    ] = False,
) -> None:
    """Print the document of a registered workflow, the newest under its id: that which a run of it takes now.

    The document goes to stdout as JSON, its version and the time of its registration to stderr.
    """
    with told():
        from orchestrator.storage.definitions import get_workflow

        async def load() -> "tuple[RegisteredWorkflow, dict[str, Any]]":
            async with named_database(Settings.load()) as database:
                return await get_workflow(database, workflow_id, version)

        found, document = asyncio.run(load())
        if as_json:
            print_json({**_described(found), "document": document})
            return
        name = harmless(f"{found.workflow_id} version {found.version}")
        stderr.print(f"{name}, registered {found.registered_at:%Y-%m-%d %H:%M:%S} UTC", style="dim", soft_wrap=True)
        print_json(document)


def _described(workflow: "RegisteredWorkflow") -> dict[str, str]:
    return {
        "workflow_id": workflow.workflow_id,
        "version": workflow.version,
        "registered_at": workflow.registered_at.isoformat(),
    }
