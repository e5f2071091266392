"""The agents' queues, as commands ask the broker for them: shortly, and not at all for embedded runs."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from messaging.port import Broker, BrokerError, QueueDepth, QueueMissing
from messaging.topology import agent_queue
from orchestrator.bootstrap import make_broker
from orchestrator.cli.waiting import Queues, WaitingFor, waiting_for, wants_queue
from orchestrator.settings import Settings
from orchestrator.storage.queries import RunDetails

ASK_SECONDS: Final = 3.0  # for connecting and all answers; what is not answered by then was not asked


@dataclass(frozen=True, slots=True)
class Answers:
    """What the broker said of agents' queues."""

    depths: Mapping[str, QueueDepth | None]  # by the agent's name; None: there is no such queue
    silence: str | None  # why the other agents' queues are not among them, if there are others


async def what_steps_wait_for(details: RunDetails, settings: Settings) -> Mapping[str, WaitingFor]:
    """Return what each unfinished step of a run waits for, by step id."""
    agents = sorted({step.agent_name for step in details.steps if step.agent_name is not None and wants_queue(step)})
    answers = await ask_for_queues(agents, settings, "forkjoin runs show")
    queues = Queues(answers.depths, settings.unknown_agent_after)
    blocks = {step.step_id: step for step in details.steps if step.branches_total is not None}
    found = {step.step_id: waiting_for(step, blocks.get(step.parent_step_id or ""), queues) for step in details.steps}
    return {step_id: waiting for step_id, waiting in found.items() if waiting is not None}


async def ask_for_queues(agents: Sequence[str], settings: Settings, name: str) -> Answers:
    """Return what the broker says in time of the agents' queues.

    The runs of an embedded database have no broker that could be asked: their queues end with `forkjoin run`.

    Args:
        agents: Their names; the broker is left alone where there are none.
        settings: Which broker.
        name: Of the command, for RabbitMQ's management pages.
    """
    depths: dict[str, QueueDepth | None] = {}
    if not agents:
        return Answers(depths, None)
    if settings.database_url is None:
        return Answers(depths, "those of `forkjoin run` end with it")
    broker = make_broker(settings, name)
    try:
        async with asyncio.timeout(ASK_SECONDS):
            await broker.connect()
            for agent_name in agents:
                depths[agent_name] = await _depth(broker, agent_name)
    except TimeoutError:
        return Answers(depths, f"RabbitMQ at FORKJOIN_AMQP_URL has not answered within {ASK_SECONDS:g} seconds")
    except BrokerError as error:
        return Answers(depths, str(error))
    finally:
        await broker.close()
    return Answers(depths, None)


async def _depth(broker: Broker, agent_name: str) -> QueueDepth | None:
    try:
        return await broker.check_queue(agent_queue(agent_name).name)
    except QueueMissing:
        return None
