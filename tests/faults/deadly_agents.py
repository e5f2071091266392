"""Agents that end their process, take long, or wait to be let go; each start and end is appended to the journal."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

from agent_worker import AgentContext, AgentRegistry

agents = AgentRegistry()

JOURNAL = Path(os.environ["FORKJOIN_TEST_JOURNAL"])
RELEASE = JOURNAL.with_name("release")  # once this file is there, those who wait go on


@agents.agent("mortal")
async def mortal(task: dict[str, Any], context: AgentContext) -> dict[str, Any]:
    """Do what the input says: ``exit`` or ``kill`` this process, or take some seconds."""
    _note(context, "start")
    match task.get("end"):
        case "exit":
            os._exit(7)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(task.get("seconds", 0))
    _note(context, "end")
    return {"step": context.step_id}


@agents.agent("waiting")
async def waiting(task: dict[str, Any], context: AgentContext) -> dict[str, Any]:
    """Wait until the test lets everybody go."""
    _note(context, "start")
    while not RELEASE.exists():  # noqa: ASYNC110 (other processes cannot set an event)
        await asyncio.sleep(0.02)
    _note(context, "end")
    return {"step": context.step_id}


@agents.agent("hanging")
def hanging(task: dict[str, Any], context: AgentContext) -> None:
    """Never return, and do not look at `context.over` either."""
    _note(context, "start")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    signal.sigwait([signal.SIGUSR1])


def _note(context: AgentContext, what: str) -> None:
    line = {"what": what, "step": context.step_id, "worker": context.worker_id, "pid": os.getpid()}
    journal = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(journal, (json.dumps(line) + "\n").encode())
    finally:
        os.close(journal)
