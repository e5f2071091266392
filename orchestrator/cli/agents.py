"""`forkjoin agents`: list."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from messaging.port import QueueDepth
from messaging.topology import agent_queue
from orchestrator.cli.databases import any_database
from orchestrator.cli.terminal import print_json, quiet_settings, told
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.cli.queues import Answers
    from orchestrator.storage.agents import AgentActivity

app = typer.Typer(
    help="Look at agents: their queues, their open attempts, and the workers that are busy with them.",
    no_args_is_help=True,
)

Json = Annotated[bool, typer.Option("--json", metavar="", help="Write JSON to stdout, for programs.")]


@app.command("list")
def list_known(as_json: Json = False) -> None:
    """List agents: those with open attempts, and those of the runs that were requested in the last 24 hours.

    queue      no queue: no worker has ever offered it, or somebody deleted it
    ready      tasks that wait in the queue
    consumers  workers that take tasks from it
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
        "queued": agent.queued,
        "running": agent.running,
        "pending": agent.pending,
        "workers": [asdict(worker) for worker in agent.workers],
    }
