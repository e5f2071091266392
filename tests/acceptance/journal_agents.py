"""Agents for tests: each execution is appended to the file FORKJOIN_TEST_JOURNAL, in one atomic write."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from agent_worker import AgentContext, AgentRegistry

agents = AgentRegistry()


@agents.agent("nap")
async def nap(task: dict[str, Any], context: AgentContext) -> dict[str, Any]:
    """Take as long as the input says, and return what it says."""
    start = time.monotonic()
    await asyncio.sleep(task["seconds"])
    _write_down(context, start)
    return {"n": task["n"]}


@agents.agent("echo")
async def echo(task: dict[str, Any]) -> dict[str, Any]:
    """Return the input."""
    return task


@agents.agent("fail")
def fail(task: dict[str, Any]) -> None:
    """Raise with the message that the input gives."""
    raise ValueError(task["message"])


@agents.agent("read")
def read(task: dict[str, Any], context: AgentContext) -> dict[str, Any]:
    """Return what is in the file that the input names; fail as long as there is none."""
    start = time.monotonic()
    _write_down(context, start)
    return {"text": Path(task["path"]).read_text()}


def _write_down(context: AgentContext, start: float) -> None:
    line = {
        "run_id": str(context.run_id),
        "step_id": context.step_id,
        "attempt": context.attempt,
        "pid": os.getpid(),
        "start": start,
        "end": time.monotonic(),
    }
    journal = os.open(os.environ["FORKJOIN_TEST_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(journal, (json.dumps(line) + "\n").encode())
    finally:
        os.close(journal)
