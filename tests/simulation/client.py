"""The client of the simulation: it asks for runs, sometimes twice, cancels some, and hears how they end."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID, uuid4

from tenacity import AsyncRetrying, retry_if_result, wait_fixed

from messaging import topology
from messaging.memory import MemoryBroker, MemoryServer
from messaging.port import Consumer, OutgoingMessage, PublishOutcome
from schemas.codec import decode, encode
from schemas.messages import CancelRun, Message, RunRequest, RunResult
from tests.property.cases import INPUT, Behaviour, Case, delegate, make_case
from tests.simulation.entropy import Dice

MISSING_AGENT: Final = "nobody"


@dataclass
class Submitted:
    """A run that the client asks for."""

    case: Case
    may_be_cancelled: bool
    run_id: UUID = field(default_factory=uuid4)
    results: list[RunResult] = field(default_factory=list)

    @property
    def document(self) -> dict[str, Any]:
        """The workflow; an agent that is missing has a name that no worker offers."""
        document = self.case.document
        steps = {step_id: self._called(step_id, step) for step_id, step in document["steps"].items()}
        for step in steps.values():
            if "workflow_id" in step:
                step["workflow_id"] = self._own(step["workflow_id"])
        return {**document, "steps": steps}

    @property
    def delegates(self) -> list[dict[str, Any]]:
        """The workflows of one step each to which steps are delegated; the step is called as that which starts it."""
        return [
            {"name": self._own(delegate(step_id)), "start_step": step_id, "steps": {step_id: self._works(step_id)}}
            for step_id in sorted(self.case.delegated)
        ]

    def _works(self, step_id: str) -> dict[str, Any]:
        mapping = {key: f"${{workflow.input.{key}}}" for key in self.case.steps[step_id].get("input_mapping", {})}
        return self._called(step_id, {"agent_name": "x", "input_mapping": mapping})

    def _called(self, step_id: str, step: Mapping[str, Any]) -> dict[str, Any]:
        is_missing = self.case.behaviour(step_id) is Behaviour.IS_MISSING and "agent_name" in step
        return {**step, "agent_name": MISSING_AGENT} if is_missing else dict(step)

    def _own(self, workflow_id: str) -> str:
        return f"{workflow_id} in {self.run_id}"


def _delegating(case: Case, dice: Dice) -> Case:
    """Let other workflows carry out some steps of some cases."""
    likely = dice.pick([0.0, 0.0, 0.3, 0.8])
    steps = [step_id for step_id, step in case.steps.items() if "agent_name" in step and dice.happens(likely)]
    return replace(case, delegated=frozenset(steps))


class SimulatedClient:
    """It is spared all faults but those of the broker."""

    def __init__(self, server: MemoryServer, dice: Dice) -> None:
        self.broker = MemoryBroker(server, name="client")
        self.runs = [
            Submitted(_delegating(make_case(dice), dice), dice.happens(0.1)) for _ in range(dice.pick([1, 1, 2]))
        ]
        self._dice = dice
        self._told = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []

    async def work(self) -> None:
        """Ask for all runs, and wait until each has ended."""
        await self.broker.connect()
        await self.broker.declare(topology.EXCHANGES, topology.QUEUES)
        replies = await self.broker.consume(topology.reply_queue("client"), prefetch=0)
        self._background.append(asyncio.create_task(self._listen(replies)))
        for run in self.runs:
            request = RunRequest(run_id=run.run_id, workflow=run.document, input=INPUT)
            for _ in range(self._dice.pick([1, 1, 1, 2])):
                await self._send(topology.RUNS_QUEUE.name, request, str(run.run_id))
            if run.may_be_cancelled:
                self._background.append(asyncio.create_task(self._cancel(run, self._dice.uniform(0, 10))))
        await self._told.wait()

    def leave(self) -> None:
        """Stop listening."""
        for task in self._background:
            task.cancel()

    async def _listen(self, replies: Consumer) -> None:
        by_id = {run.run_id: run for run in self.runs}
        while True:
            deliveries = await replies.receive(10)
            for delivery in deliveries:
                result = decode(RunResult, delivery.body)
                assert result.run_id is not None, "it was chosen here"
                by_id[result.run_id].results.append(result)
            await replies.ack(deliveries)
            if all(run.results for run in self.runs):
                self._told.set()

    async def _cancel(self, run: Submitted, delay: float) -> None:
        await asyncio.sleep(delay)
        await self._send(topology.COMMANDS_QUEUE.name, CancelRun(run_id=run.run_id, reason=None), None)

    async def _send(self, queue: str, message: Message, correlation_id: str | None) -> None:
        sent = OutgoingMessage(
            exchange=topology.DEFAULT_EXCHANGE,
            routing_key=queue,
            type=type(message).__name__,
            message_id=str(uuid4()),
            body=encode(message),
            correlation_id=correlation_id,
            reply_to=topology.reply_queue("client").name,
        )
        until_confirmed = AsyncRetrying(
            retry=retry_if_result(lambda outcomes: outcomes[0] is not PublishOutcome.CONFIRMED), wait=wait_fixed(0.5)
        )
        await until_confirmed(self.broker.publish, [sent])
