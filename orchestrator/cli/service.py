"""Commands for the service itself: serve and migrate."""

import asyncio
from typing import Annotated

import typer

from messaging.telemetry import LogFormat, LogLevel, configure_logging
from orchestrator.cli.terminal import told
from orchestrator.settings import Settings


def serve(
    log_level: Annotated[LogLevel | None, typer.Option(case_sensitive=False, help="Default: INFO.")] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help="Default: console on a terminal, else json.")] = None,
) -> None:
    """Run an orchestrator replica, until SIGTERM or Ctrl-C.

    Start as many as you like: they share the work, and take over from each other. It needs FORKJOIN_AMQP_URL and
    FORKJOIN_DATABASE_URL, and a database that `forkjoin migrate` has prepared. It waits for both to be reachable.
    """
    with told():
        from orchestrator import bootstrap

        settings = Settings.load(log_level=log_level, log_format=log_format)
        configure_logging(settings.log_level, settings.log_format)
        asyncio.run(bootstrap.serve(settings))


def migrate() -> None:
    """Bring the database at FORKJOIN_DATABASE_URL to the schema of this version.

    Safe to repeat, and to run from several places at once. A schema that is newer than this version is left alone.
    """
    with told():
        from orchestrator.bootstrap import make_database
        from orchestrator.storage import schema

        async def upgrade() -> tuple[str | None, str]:
            database = make_database(Settings.load())
            try:
                return await schema.migrate(database.engine)
            finally:
                await database.close()

        before, after = asyncio.run(upgrade())
        typer.echo(
            f"the schema is at {after}" if before == after else f"migrated from {before or 'nothing'} to {after}"
        )
