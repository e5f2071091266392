"""`forkjoin rabbitmq`: what an operator sets up in the broker."""

import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Annotated, Final

import typer

from messaging.definitions import Role, User
from messaging.definitions import definitions as make_definitions
from orchestrator.cli.terminal import print_json, read_document, told
from orchestrator.errors import WrongUse
from schemas.display import quoted
from schemas.names import agent_name_problem

app = typer.Typer(no_args_is_help=True, help="Set RabbitMQ up: users with the least rights, and policies.")

DEFAULT_ORCHESTRATOR: Final = "forkjoin-orchestrator"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,99}")


@app.callback()
def _group() -> None:
    """Keep `definitions` a command of its own while it is the only one."""


@app.command()
def definitions(
    worker: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=AGENT,AGENT", help="A user for workers that serve these agents; may be repeated."),
    ] = None,
    orchestrator: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A user for orchestrators. Default: forkjoin-orchestrator.")
    ] = None,
    submitter: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A user that submits runs; may be repeated.")
    ] = None,
    operator: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One that may also cancel and retry runs; may be repeated.")
    ] = None,
    administrator: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One that may do everything; may be repeated.")
    ] = None,
    passwords: Annotated[
        Path | None, typer.Option(metavar="FILE", help='A JSON object: {"user": "password"}. Others cannot log in yet.')
    ] = None,
    vhost: Annotated[str, typer.Option(help="Made where it is missing.")] = "/",
    broker: Annotated[int, typer.Option("--broker", min=3, max=4, help="RabbitMQ's major version.")] = 4,
) -> None:
    """Print definitions: users, exchanges, queues and policies.

    Import them with `rabbitmqctl import_definitions FILE`, again after a change. Workers then run with
    FORKJOIN_WORKER_DECLARE=false: the queues of their agents are there.
    """
    with told():
        users = [
            *(User(_name(name), Role.ORCHESTRATOR) for name in orchestrator or [DEFAULT_ORCHESTRATOR]),
            *map(_worker, worker or ()),
            *(User(_name(name), Role.SUBMITTER) for name in submitter or ()),
            *(User(_name(name), Role.OPERATOR) for name in operator or ()),
            *(User(_name(name), Role.ADMINISTRATOR) for name in administrator or ()),
        ]
        _require_different([user.name for user in users])
        known = _passwords(passwords, {user.name for user in users})
        print_json(make_definitions(users, known, vhost=vhost, major_version=broker))


def _worker(given: str) -> User:
    name, _, listed = given.partition("=")
    agents = [agent.strip() for agent in listed.split(",") if agent.strip()]
    if not agents:
        raise WrongUse(f"--worker {given}: say which agents it serves, as in --worker {name or 'NAME'}=research,write")
    for agent in agents:
        if (problem := agent_name_problem(agent)) is not None:
            raise WrongUse(f"--worker {given}: {problem}")
    return User(_name(name), Role.WORKER, agents)


def _name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise WrongUse(f"{quoted(name)} is no name for a user: write letters, digits, and any of _ . @ -")
    return name


def _require_different(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise WrongUse(f"a user has one role, and these are given twice: {', '.join(twice)}")


def _passwords(file: Path | None, users: Set[str]) -> dict[str, str]:
    if file is None:
        return {}
    found = read_document(file)
    strangers = sorted(found.keys() - users)
    if strangers:
        raise WrongUse(f"{file} has a password for {', '.join(strangers)}, and no option names such a user")
    if not all(isinstance(password, str) and password for password in found.values()):
        raise WrongUse(f'{file}: a password is a text, as in {{"{min(users)}": "…"}}')
    return found
