"""A run in this process: orchestrator, worker, broker and Postgres are all here, and end with it."""

import asyncio
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from orchestrator.cli.following import follow
from orchestrator.cli.terminal import stderr
from orchestrator.client import Client
from orchestrator.settings import Settings
from schemas.messages import RetryRun, RunRequest, RunResult
from schemas.workflow import Workflow

if TYPE_CHECKING:
    from agent_worker import AgentRegistry


def run_here(
    settings: Settings,
    agents: "AgentRegistry",
    asked: RunRequest | RetryRun,
    concurrency: int,
    registered: Sequence[tuple[Workflow, Mapping[str, Any]]] = (),
) -> RunResult:
    """Run what is asked for, with its progress on stderr, and return how it ended.

    Args:
        settings: Where the data directory is.
        agents: What the worker offers.
        asked: A run, or the retry of one.
        concurrency: Attempts of each agent at once.
        registered: Workflows with their documents, to be registered first.
    """
    from orchestrator.embedded import embedded_service

    async def work() -> RunResult:
        async with embedded_service(settings, agents, concurrency, registered) as client:
            return await _follow_or_cancel(client, asked)

    return asyncio.run(work())


async def _follow_or_cancel(client: Client, asked: RunRequest | RetryRun) -> RunResult:
    """Follow the run; on SIGINT or SIGTERM cancel it, and follow it to that end; at the second one give up."""
    run_id = asked.run_id if isinstance(asked, RunRequest) else asked.new_run_id
    assert run_id is not None, "the command chose one"
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
    stderr.print(f"run {run_id}", style="dim")
    following = asyncio.create_task(follow(client, asked, stderr))
    await _until(following, interrupted)
    if not following.done():
        interrupted.clear()
        await client.cancel(run_id, "interrupted")
        await _until(following, interrupted)
    if not following.done():
        following.cancel()
        raise typer.Abort
    return following.result()


async def _until(following: "asyncio.Task[RunResult]", interrupted: asyncio.Event) -> None:
    """Wait until the run has ended, or somebody interrupts."""
    interruption = asyncio.create_task(interrupted.wait())
    await asyncio.wait((following, interruption), return_when=asyncio.FIRST_COMPLETED)
    interruption.cancel()
