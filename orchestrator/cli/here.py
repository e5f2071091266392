"""A run in this process: orchestrator, worker, broker and Postgres are all here, and end with it."""

import asyncio
import signal
from contextlib import AbstractAsyncContextManager

import typer

from orchestrator.cli.following import follow
from orchestrator.cli.terminal import stderr
from orchestrator.client import Client
from schemas.messages import RetryRun, RunRequest, RunResult


def run_here(service: AbstractAsyncContextManager[Client], asked: RunRequest | RetryRun) -> RunResult:
    """Run what is asked for, with its progress on stderr, and return how it ended.

    Args:
        service: What runs it, with a client for it (see `orchestrator.embedded.embedded_service`).
        asked: A run, or the retry of one.
    """

    async def work() -> RunResult:
        async with service as client:
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
