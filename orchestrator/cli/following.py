"""Following a run: its events as progress, until its result is there."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from rich.console import Console

from orchestrator.cli.progress import Show, progress
from orchestrator.client import Client
from schemas.messages import RetryRun, RunEvent, RunRequest, RunResult


async def follow(client: Client, request: RunRequest | RetryRun, console: Console) -> RunResult:
    """Ask for a run, show its progress on *console*, and return its result."""
    run_id = request.run_id if isinstance(request, RunRequest) else request.new_run_id
    assert run_id is not None, "a request that is followed names its run"
    async with client.events(run_id) as events:
        with progress(console) as show:
            showing = asyncio.create_task(show_until_end(events, show))
            try:
                result = await client.run(request)
                await asyncio.wait((showing,), timeout=1.0)  # the last events may come just after the result
                return result
            finally:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)


async def show_until_end(events: AsyncIterator[Sequence[RunEvent]], show: Show) -> None:
    """Show events until the run itself has ended."""
    async for batch in events:
        show(batch)
        if any(event.step_id is None and event.status.is_final for message in batch for event in message.events):
            return
