"""A run in this process ends with a signal: at the first one it is cancelled, at the second one given up."""

import asyncio
import os
import signal
from typing import Any
from uuid import UUID

import pytest
import typer

from orchestrator.cli import here
from orchestrator.client import Client
from schemas.messages import RetryRun, RunResult
from schemas.statuses import ResultStatus

ASKED = RetryRun(run_id=UUID(int=1), new_run_id=UUID(int=2))


class Endless(Client):
    """A client whose run does not end, unless it is told that it does."""

    def __init__(self) -> None:
        self.followed, self.ended, self.told = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.cancelled: list[UUID] = []

    async def cancel(self, run_id: UUID, reason: str | None) -> None:
        self.cancelled.append(run_id)
        self.told.set()


async def followed(client: Any, asked: RetryRun, console: Any) -> RunResult:
    client.followed.set()
    await client.ended.wait()
    return RunResult(run_id=asked.new_run_id, status=ResultStatus.CANCELLED, output=None, error=None)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Endless:
    monkeypatch.setattr(here, "follow", followed)
    return Endless()


async def interrupted(client: Endless) -> "asyncio.Task[RunResult]":
    """Return what follows the run, once it was interrupted for the first time."""
    following = asyncio.create_task(here._follow_or_cancel(client, ASKED))
    await client.followed.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await client.told.wait()
    return following


async def test_the_first_signal_cancels_the_run_whose_end_is_waited_for(client: Endless) -> None:
    following = await interrupted(client)
    assert (client.cancelled, following.done()) == ([UUID(int=2)], False)
    client.ended.set()
    assert (await following).status is ResultStatus.CANCELLED


async def test_the_second_signal_gives_it_up(client: Endless) -> None:
    following = await interrupted(client)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(typer.Abort):
        await following
