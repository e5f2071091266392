"""`forkjoin doctor`: look at a deployment, and say what is wrong."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Final
from urllib.parse import unquote, urlsplit

import typer

from messaging.port import BrokerError
from messaging.rabbitmq import broker_of, user_of
from orchestrator.cli.terminal import FAILED, database_trouble, harmless, print_json, quiet_settings, stdout, told
from orchestrator.doctor.findings import Finding, Level, ok, problem
from orchestrator.errors import OrchestratorError
from orchestrator.settings import Settings

PATIENCE: Final = 15.0  # seconds for each of the servers
_STYLES: Final = {Level.OK: "green", Level.UNKNOWN: "dim", Level.WARNING: "yellow", Level.PROBLEM: "red"}


def doctor(
    management_url: Annotated[
        str | None, typer.Option("--management-url", metavar="URL", help="Default: FORKJOIN_MANAGEMENT_URL.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", metavar="", help="Warnings end with 1 too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Write JSON to stdout, for programs.")] = False,
) -> None:
    """Look at RabbitMQ and Postgres as an orchestrator sees them, and say what to do.

    It changes nothing, and ends with 1 where there is a problem. With RabbitMQ's management API it sees policies,
    alarms, queue arguments and permissions too. The user, that of FORKJOIN_AMQP_URL unless the URL names one, needs the
    tag monitoring for it, and to see permissions the tag administrator.
    """
    with told():
        settings = quiet_settings()
        findings = asyncio.run(_examine(settings, management_url or _secret(settings)))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            stdout.print(f"[{_STYLES[finding.level]}]{finding.level:8}[/] {harmless(finding.seen)}", soft_wrap=True)
            if finding.advice:
                stdout.print(f"         {harmless(finding.advice)}", style="dim", soft_wrap=True)
    bad = {Level.PROBLEM, Level.WARNING} if strict else {Level.PROBLEM}
    if any(finding.level in bad for finding in findings):
        raise typer.Exit(FAILED)


def _secret(settings: Settings) -> str | None:
    return None if settings.management_url is None else settings.management_url.get_secret_value()


async def _examine(settings: Settings, management_url: str | None) -> list[Finding]:
    from orchestrator.bootstrap import make_database
    from orchestrator.doctor.database import DatabaseFacts, ask_database, examine_database
    from orchestrator.storage.agents import list_agents

    database = make_database(settings)
    facts: DatabaseFacts | None = None
    agents: Sequence[str] = ()
    findings: list[Finding] = []
    try:
        async with asyncio.timeout(PATIENCE):
            facts = await ask_database(database)
            if facts.schema_difference is None:
                known = await list_agents(database, recent_steps=0)
                agents = [agent.agent_name for agent in known if agent.queued or agent.running]
    except Exception as error:
        trouble = str(error) if isinstance(error, OrchestratorError) else database_trouble(error)
        if trouble is None:
            raise
        findings.append(problem("database", trouble, "see FORKJOIN_DATABASE_URL, and whether Postgres runs"))
    else:
        findings += [ok("database", "Postgres is reached"), *examine_database(facts, settings.database_pool_size)]
    finally:
        await database.close()
    longest = None if facts is None or facts.content is None else facts.content.longest_timeout
    return [*findings, *await _look_at_broker(settings, management_url, agents, longest)]


async def _look_at_broker(
    settings: Settings, management_url: str | None, agents: Sequence[str], longest: float | None
) -> list[Finding]:
    from orchestrator.doctor.broker import Managed, ask_broker, ask_management, examine_broker
    from orchestrator.doctor.management import Management, ManagementUnavailable

    url = settings.amqp_url.get_secret_value()
    findings: list[Finding] = []
    managed: Managed | None = None
    if management_url is not None:
        user, password = user_of(url), unquote(urlsplit(url).password or "guest")
        management = Management.at(management_url, user, password)
        vhost = unquote(urlsplit(url).path.removeprefix("/")) or "/"
        try:
            managed = await asyncio.to_thread(ask_management, management, vhost, user)
        except ManagementUnavailable as error:
            findings.append(problem("management", str(error), "see --management-url; the plugin rabbitmq_management"))
    broker = broker_of(settings, "forkjoin doctor")
    try:
        async with asyncio.timeout(PATIENCE):
            await broker.connect()
            facts = await ask_broker(broker, agents, managed)
    except (BrokerError, TimeoutError) as error:
        why = str(error) or f"RabbitMQ did not answer within {PATIENCE:g} s"
        return [*findings, problem("broker", why, "see FORKJOIN_AMQP_URL, and whether RabbitMQ runs")]
    finally:
        await broker.close()
    examined = examine_broker(facts, longest, settings.max_message_bytes)
    return [*findings, ok("broker", "RabbitMQ is reached"), *examined]
