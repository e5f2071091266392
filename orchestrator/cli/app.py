"""The commands, and what they share: help, exit codes, and how errors are told.

Only the contract, the messaging and the command line itself are imported here; a command imports the rest when it
runs. So `validate`, `submit` and `schema` work where the orchestrator's database packages are not installed.
"""

import typer
from rich.markup import escape

from orchestrator.cli import agents, dead_letters, doctor, documents, rabbitmq, run, runs, service, submit
from orchestrator.settings import Settings

_HELP = """Run workflows of agents in parallel, on RabbitMQ and Postgres.

Try it here, with nothing else running:

    forkjoin run WORKFLOW.json --input '{"topic": "queues"}'

In production, each of these any number of times:

    forkjoin migrate && forkjoin serve      the orchestrator
    forkjoin-worker my_agents:agents        the workers
    forkjoin submit WORKFLOW.json --wait    a client

Exit codes: 0 done, and the run completed; 1 the run failed, or a service refused us; 2 wrong use.
"""

_EPILOG = "Environment variables:\n\n" + "\n".join(
    f"[bold]{name}[/bold]\n    {escape(what)}" for name, what in Settings.variables()
)

app = typer.Typer(
    help=_HELP,
    epilog=_EPILOG,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command("run")(run.run)
app.command("submit")(submit.submit)
app.command("validate")(documents.validate)
app.command("schema")(documents.schema)
app.command("serve")(service.serve)
app.command("migrate")(service.migrate)
app.command("doctor")(doctor.doctor)
app.add_typer(runs.app, name="runs")
app.add_typer(agents.app, name="agents")
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(documents.workflows, name="workflows")
app.add_typer(rabbitmq.app, name="rabbitmq")


def main() -> None:
    """Run the command."""
    app(prog_name="forkjoin")
