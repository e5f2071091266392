"""`forkjoin agents`: list, limit."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from messaging.port import QueueDepth
from messaging.topology import agent_queue
from orchestrator.cli.databases import any_database
from orchestrator.cli.limits import limit_words, read_concurrency, read_rate
from orchestrator.cli.terminal import print_json, quiet_settings, told
from orchestrator.engine.agent_limit import AgentLimit
from orchestrator.errors import WrongUse
from orchestrator.settings import Settings
from schemas.display import quoted
from schemas.names import agent_name_problem
from schemas.suggestions import nearest

if TYPE_CHECKING:
    from orchestrator.cli.queues import Answers
    from orchestrator.storage.agents import AgentActivity

app = typer.Typer(
    help="Look at agents: their queues, their open attempts, and the workers that are busy with them; limit them.",
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", metavar="", help="Write JSON to stdout, for programs.")]


@app.command("list")
def list_known(as_json: Json = False) -> None:
    """List agents: those with open attempts or a limit, and those of runs that were requested in the last 24 hours.

    queue      no queue: no worker has ever offered it, or somebody deleted it
    ready      tasks that wait in the queue
    consumers  workers that take tasks from it
    limit      attempts at once and starts per time, where somebody has set them
    waiting    attempts that wait for that limit
    QUEUED     attempts whose tasks are with RabbitMQ
    RUNNING    attempts that a worker has reported
    PENDING    attempts that wait for a slot of their block, or for their time
    workers    the busiest ones, each with the number of attempts that it runs

    Where RabbitMQ does not answer, the rest is shown, and stderr says why.
    """
    with told():
        from orchestrator.cli.tables import agents_table

        agents, answers = asyncio.run(_look(quiet_settings()))
        if as_json:
            print_json([_described(agent, answers.depths) for agent in agents])
        elif agents:
            agents_table(agents, answers.depths)
        if not agents:
            typer.echo("no agents: no attempt is open, and no run of the last 24 hours had any", err=True)
        if answers.silence is not None:
            shown = "not all queues are shown" if answers.depths else "queues are not shown"
            typer.echo(f"forkjoin: {shown}: {answers.silence}", err=True)


@app.command("limit")
def limit(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The agent's name.")],
    concurrency: Annotated[
        str | None, typer.Option(metavar="N", help="Attempts at once; 0 pauses the agent, none takes the limit away.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="N/s", help="Starts per second (N/m: minute, N/h: hour); none takes it away.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Limit an agent over all runs, blocks and workers.

    It holds at once. What is under way already counts, and goes on. What is not said here stays as it was.
    """
    with told():
        changes = _changes(concurrency, rate)
        if (problem := agent_name_problem(name)) is not None:
            raise WrongUse(f"{quoted(name)}: {problem}")
        now, known = asyncio.run(_limit(quiet_settings(), name, changes))
        if as_json:
            print_json({"agent_name": name, **now._asdict()})
        else:
            typer.echo(f"{name}: {limit_words(now) or 'no limit'}")
        if name not in known:
            meant = nearest(name, sorted(known))
            hint = f"; did you mean {quoted(meant)}?" if meant is not None else ""
            typer.echo(f"forkjoin: no attempt of {quoted(name)} is open, and no recent run had any{hint}", err=True)


def _changes(concurrency: str | None, rate: str | None) -> Callable[[AgentLimit], AgentLimit]:
    if concurrency is None and rate is None:
        raise WrongUse("say --concurrency N or --rate N/s, or both; none takes a limit away")

    def changed(before: AgentLimit) -> AgentLimit:
        return AgentLimit(
            read_concurrency(concurrency) if concurrency is not None else before.max_concurrency,
            read_rate(rate) if rate is not None else before.rate_per_second,
        )

    changed(AgentLimit())  # what cannot be read is told before anybody is asked
    return changed


async def _limit(
    settings: Settings, name: str, change: Callable[[AgentLimit], AgentLimit]
) -> tuple[AgentLimit, frozenset[str]]:
    """Change a limit; return what it is now, and the agents that were known before."""
    from orchestrator.storage.agent_limits import change_limit
    from orchestrator.storage.agents import list_agents

    async with any_database(settings) as database:
        known = frozenset(agent.agent_name for agent in await list_agents(database))
        return await change_limit(database, name, change), known


async def _look(settings: Settings) -> "tuple[Sequence[AgentActivity], Answers]":
    from orchestrator.cli.queues import ask_for_queues
    from orchestrator.storage.agents import list_agents

    async with any_database(settings) as database:
        agents = await list_agents(database)
    return agents, await ask_for_queues([agent.agent_name for agent in agents], settings, "forkjoin agents list")


def _described(agent: "AgentActivity", depths: Mapping[str, QueueDepth | None]) -> dict[str, Any]:
    depth = depths.get(agent.agent_name)
    return {
        "agent_name": agent.agent_name,
        "queue": agent_queue(agent.agent_name).name,
        "queue_exists": depth is not None if agent.agent_name in depths else None,
        "tasks_ready": depth.ready if depth is not None else None,
        "consumers": depth.consumers if depth is not None else None,
        "limit": agent.limit._asdict() if agent.limit is not None else None,
        "waiting": agent.waiting,
        "queued": agent.queued,
        "running": agent.running,
        "pending": agent.pending,
        "workers": [asdict(worker) for worker in agent.workers],
    }
