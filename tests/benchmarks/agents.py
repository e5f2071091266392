"""The agents of the benchmarks: what is measured is everything but their work."""

import asyncio
import time
from typing import Any

from agent_worker import AgentRegistry

agents = AgentRegistry()


@agents.agent("echo")
async def echo(input: dict[str, Any]) -> dict[str, Any]:
    return {"n": input["n"], "text": input["text"]}


@agents.agent("nap")
async def nap(input: dict[str, Any]) -> dict[str, Any]:
    start = time.monotonic()  # one clock for all processes of a machine
    await asyncio.sleep(input["seconds"])
    return {"n": input["n"], "start": start, "end": time.monotonic()}
