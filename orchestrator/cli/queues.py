"""The agents' queues, as `forkjoin runs show` asks the broker for them: shortly, and not at all for embedded runs."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

from messaging.port import Broker, BrokerError, QueueDepth, QueueMissing
from messaging.topology import agent_queue
from orchestrator.bootstrap import make_broker
from orchestrator.cli.waiting import Queues, WaitingFor, waiting_for, wants_queue
from orchestrator.settings import Settings
from orchestrator.storage.queries import RunDetails

ASK_SECONDS: Final = 3.0  # for connecting and all answers; what is not answered by then was not asked


async def what_steps_wait_for(details: RunDetails, settings: Settings) -> Mapping[str, WaitingFor]:
    """Return what each unfinished step of a run waits for, by step id.

    The run of an embedded database has no broker that could be asked: its queues end with `forkjoin run`.
    """
    agents = sorted({step.agent_name for step in details.steps if step.agent_name is not None and wants_queue(step)})
    depths: dict[str, QueueDepth | None] = {}
    if agents and settings.database_url is not None:
        await _ask(settings, agents, depths)
    queues = Queues(depths, settings.unknown_agent_after)
    blocks = {step.step_id: step for step in details.steps if step.branches_total is not None}
    found = {step.step_id: waiting_for(step, blocks.get(step.parent_step_id or ""), queues) for step in details.steps}
    return {step_id: waiting for step_id, waiting in found.items() if waiting is not None}


async def _ask(settings: Settings, agents: Sequence[str], depths: dict[str, QueueDepth | None]) -> None:
    """Put into *depths* what the broker answers in time; what it does not answer stays away."""
    broker = make_broker(settings, "forkjoin runs show")
    try:
        async with asyncio.timeout(ASK_SECONDS):
            await broker.connect()
            for name in agents:
                depths[name] = await _depth(broker, name)
    except (BrokerError, TimeoutError):
        return  # the words for each step say that the broker was not asked
    finally:
        await broker.close()


async def _depth(broker: Broker, agent_name: str) -> QueueDepth | None:
    try:
        return await broker.check_queue(agent_queue(agent_name).name)
    except QueueMissing:
        return None
