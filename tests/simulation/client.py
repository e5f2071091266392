"""The client of the simulation: it asks for runs, sometimes twice, cancels some, and hears how they end.

Most of those that failed or were cancelled it retries.
"""

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID, uuid4

from tenacity import AsyncRetrying, retry_if_result, wait_fixed

from messaging import topology
from messaging.memory import MemoryBroker, MemoryServer
from messaging.port import Consumer, OutgoingMessage, PublishOutcome
from schemas.codec import decode, encode
from schemas.messages import CancelRun, Message, RetryRun, RunRequest, RunResult
from schemas.statuses import ResultStatus
from tests.property.cases import INPUT, Behaviour, Case, delegate, make_case
from tests.simulation.entropy import Dice

MISSING_AGENT: Final = "nobody"


@dataclass
class Submitted:
    """A run that the client asks for."""

    case: Case
    may_be_cancelled: bool
    run_id: UUID = field(default_factory=uuid4)
    retry_of: UUID | None = None
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

    def behaviour_of(self, step_id: str, attempt: int) -> Behaviour:
        """Return what the agent of a step does; in a run that is retried all goes well."""
        return self.case.behaviour_of(step_id, attempt) if self.retry_of is None else Behaviour.COMPLETES

    def expected(self, kept: Collection[str]) -> Case:
        """Return what is expected of a run, which has taken over the steps *kept* from an earlier one."""
        if self.retry_of is None:
            return self.case
        missing = (step for step, behaviour in self.case.behaviours.items() if behaviour is Behaviour.IS_MISSING)
        return self.case.once_more({*kept, *missing})


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

    def behaviour_of(self, run_id: UUID, step_id: str, attempt: int) -> Behaviour:
        """Return what the agent of a step does with an attempt."""
        return next(run.behaviour_of(step_id, attempt) for run in self.runs if run.run_id == run_id)

    def leave(self) -> None:
        """Stop listening."""
        for task in self._background:
            task.cancel()

    async def _listen(self, replies: Consumer) -> None:
        while True:
            deliveries = await replies.receive(10)
            for delivery in deliveries:
                result = decode(RunResult, delivery.body)
                [run] = (run for run in self.runs if run.run_id == result.run_id)
                run.results.append(result)
                if len(run.results) == 1 and run.retry_of is None and result.status is not ResultStatus.COMPLETED:
                    self._retry_perhaps(run)
            await replies.ack(deliveries)
            if all(run.results for run in self.runs):
                self._told.set()

    def _retry_perhaps(self, run: Submitted) -> None:
        if self._dice.happens(0.7) and not _is_hasty(run.case):
            again = Submitted(run.case, may_be_cancelled=self._dice.happens(0.1), retry_of=run.run_id)
            self.runs.append(again)
            self._background.append(asyncio.create_task(self._retry(run, again)))

    async def _retry(self, run: Submitted, again: Submitted) -> None:
        command = RetryRun(run_id=run.run_id, new_run_id=again.run_id)
        for _ in range(self._dice.pick([1, 1, 2])):
            await self._send(topology.COMMANDS_QUEUE.name, command, str(again.run_id))
        if again.may_be_cancelled:
            await self._cancel(again, self._dice.uniform(0, 10))

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


def _is_hasty(case: Case) -> bool:
    """Whether what took too long may do so again: a sub-workflow, or a branch, has but its time, faults included."""
    hanging = {step_id for step_id in case.steps if case.behaviour(step_id) is Behaviour.HANGS}
    return not hanging.isdisjoint(case.delegated) or any("timeout_seconds" not in case.steps[name] for name in hanging)
