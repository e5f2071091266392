"""The way of every input: BEGIN, lock the runs, decide, write rows and outbox, COMMIT, then do what is left to do."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from messaging.crash_points import reach
from orchestrator.engine.decision import Verdict
from orchestrator.engine.inputs import (
    AttemptOverdue,
    BranchArrived,
    ExternalInput,
    RetryDue,
    SlotsFree,
    TaskMissing,
    TaskReported,
    TaskUndeliverable,
)
from orchestrator.service.batch import Answer, Batch, Committed
from orchestrator.service.health import DatabaseWatch
from orchestrator.service.ids import RandomIds
from orchestrator.service.plans import PlanCache
from orchestrator.service.traces import RunTraces
from orchestrator.storage.database import is_lost_connection, is_transient
from orchestrator.storage.port import Storage
from orchestrator.storage.unit_of_work import unit_of_work
from schemas.statuses import StepStatus

log = structlog.get_logger(__name__)

MAX_TRIES: Final = 10  # of a transaction that the server itself keeps undoing, for instance by deadlocks

# Late and repeated messages. A gate's own questions are not among them: most of those change nothing.
_WITHOUT_EFFECT: Final = frozenset({Verdict.STALE, Verdict.REJECTED})

Follower = Callable[[Committed], Awaitable[None]]


class Driver:
    """Drives runs forward. Safe to use from several tasks; each call is a transaction of its own."""

    def __init__(
        self,
        storage: Storage,
        replica_id: str,
        plans: PlanCache,
        database: DatabaseWatch | None = None,
        traces: RunTraces | None = None,
    ) -> None:
        self.database = database if database is not None else DatabaseWatch()
        self._storage = storage
        self._replica_id = replica_id
        self._plans = plans
        self._traces = traces if traces is not None else RunTraces()
        self._new_id = RandomIds()
        self._followers: list[Follower] = []
        self.verdicts: Counter[tuple[Verdict, str]] = Counter()

    def follow(self, follower: Follower) -> None:
        """Have *follower* called after each commit, in the order of registration."""
        self._followers.append(follower)

    async def drive(self, inputs: Sequence[ExternalInput]) -> list[Answer]:
        """Apply *inputs* in one transaction and return the answer to each.

        What that leaves to decide is applied in further ones. Should this process end in between, the holder of the
        gate finds the free slots.

        A transaction is tried again after errors that pass: for ever while Postgres is out of reach, a few times
        otherwise. Applying the same inputs twice is harmless, so an ambiguous COMMIT is too.

        Raises:
            RunLocked: Somebody keeps one of the runs locked; none of the inputs was applied.
            Exception: One of the inputs cannot be applied; none of them was.
        """
        committed = await self._apply(inputs)
        answers = committed.answers
        while committed.left:
            committed = await self._apply(committed.left)
        return answers

    async def _apply(self, inputs: Sequence[ExternalInput]) -> Committed:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(is_transient),
            wait=wait_random_exponential(multiplier=0.05, max=5),
            stop=_tried_enough,
            reraise=True,
        ):
            with attempt:
                committed = await self._once(inputs)
        self._report(inputs, committed)
        for follower in self._followers:
            await follower(committed)
        return committed

    async def _once(self, inputs: Sequence[ExternalInput]) -> Committed:
        begun = asyncio.get_running_loop().time()
        with self.database.using():
            async with unit_of_work(self._storage, self._replica_id) as uow:
                committed = await Batch(uow, self._plans, self._new_id, random.random, self._traces).run(inputs)
        committed.begun, committed.seconds = begun, asyncio.get_running_loop().time() - begun
        reach("transaction.committed", inputs)
        committed.messages, committed.left_in_outbox = uow.handed_over, uow.left_in_outbox
        return committed

    def _report(self, inputs: Sequence[ExternalInput], committed: Committed) -> None:
        self.verdicts.update((answer.verdict, answer.code) for answer in committed.answers)
        for event, answer in zip(inputs, committed.answers, strict=True):
            if answer.verdict in _WITHOUT_EFFECT and not isinstance(event, BranchArrived | SlotsFree):
                log.info(
                    "An input had no effect",
                    action="input_without_effect",
                    input=type(event).__name__,
                    verdict=answer.verdict.value,
                    code=answer.code,
                    **_ids(event),
                )
        for step in committed.ended_steps:
            if step.status is not StepStatus.FAILED:
                continue
            assert step.error is not None
            log.warning(
                "A step failed",
                action="step_failed",
                run_id=str(step.run_id),
                step_id=step.step_id,
                parent_step_id=step.parent_step_id,
                agent_name=step.agent_name,
                attempt=step.attempt,
                task_id=str(step.task_id) if step.task_id is not None else None,
                worker_id=step.worker_id,
                code=step.error.code,
                error=step.error.message,
            )


def _ids(event: ExternalInput) -> dict[str, str]:
    """Return what a line about an input carries: its run, and its step and task as far as it names them."""
    match event:
        case TaskReported(report):
            return {"run_id": str(event.run_id), "task_id": str(report.task_id), "worker_id": report.worker_id}
        case AttemptOverdue() | TaskUndeliverable() | TaskMissing():
            return {"run_id": str(event.run_id), "step_id": event.step_id, "task_id": str(event.task_id)}
        case RetryDue():
            return {"run_id": str(event.run_id), "step_id": event.step_id}
        case _:
            return {"run_id": str(event.run_id)}


def _tried_enough(state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome is not None else None
    return error is not None and not is_lost_connection(error) and state.attempt_number >= MAX_TRIES
