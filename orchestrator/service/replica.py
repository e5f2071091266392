"""One orchestrator process: all loops, their start in order, and their end.

Any number of replicas work side by side. They share the queues, and Postgres decides between them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from messaging import topology
from messaging.port import Broker, Consumer, ConsumerClosed
from orchestrator.errors import RunLocked
from orchestrator.service.dead_letters import DeadLetterIntake
from orchestrator.service.driver import Driver
from orchestrator.service.gatekeeper import Gatekeeper
from orchestrator.service.intake import Intake
from orchestrator.service.lost_tasks import LostTasks
from orchestrator.service.notices import GateNotice
from orchestrator.service.plans import PlanCache
from orchestrator.service.readers import CommandReader, ResultReader
from orchestrator.service.reconciler import Reconciler
from orchestrator.service.relay import Relay
from orchestrator.service.requests import RequestReader
from orchestrator.service.timers import Timers
from orchestrator.storage.database import is_transient
from orchestrator.storage.port import Storage
from schemas.codec import decode
from schemas.errors import MessageRefused

log = structlog.get_logger(__name__)

NOTICES: Final = 1_000


class Replica:
    """The orchestrator as one process runs it."""

    def __init__(
        self,
        storage: Storage,
        broker: Broker,
        replica_id: str,
        *,
        unknown_agent_after: float = 60.0,
        silent_after: float = 30.0,
    ) -> None:
        """Wire the loops together; `start` starts them.

        Args:
            storage: Ready; a database is migrated (see `orchestrator.storage.schema`).
            broker: Connected.
            replica_id: Unique among all replicas; names this one in leases and logs.
            unknown_agent_after: Seconds for which a task that no queue takes is tried before its step fails.
            silent_after: Seconds without a sign of life after which a task that its queue does not hold is sent again.
        """
        plans = PlanCache()
        self._broker = broker
        self._replica_id = replica_id
        self.driver = Driver(storage, replica_id, plans)
        self.gatekeeper = Gatekeeper(storage, broker, self.driver, replica_id)
        self.relay = Relay(storage, broker, self.driver, unknown_agent_after=unknown_agent_after)
        self.timers = Timers(storage, self.driver)
        self.reconciler = Reconciler(storage, broker, self.driver, silent_after=silent_after)
        # A new gate's queue must be there before its tickets go out.
        self.driver.follow(self.gatekeeper.open_gates)
        self.driver.follow(self.relay.committed)
        self.driver.follow(self.gatekeeper.tell_holders)
        self.intakes = (
            Intake(broker, topology.RUNS_QUEUE, self.driver, RequestReader(storage, broker, plans)),
            Intake(broker, topology.RESULTS_QUEUE, self.driver, ResultReader()),
            Intake(broker, topology.COMMANDS_QUEUE, self.driver, CommandReader()),
        )
        self.lost_tasks = LostTasks(self.driver)
        self.dead_letters = DeadLetterIntake(storage, broker, self.lost_tasks)
        self._notices: Consumer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Declare the topology, begin to consume, and start all loops."""
        await self._broker.declare(topology.EXCHANGES, topology.QUEUES)
        self._notices = await self._broker.consume(topology.replica_queue(self._replica_id), prefetch=NOTICES)
        for intake in self.intakes:
            await intake.start()
        await self.dead_letters.start()
        loops: dict[str, Callable[[], Awaitable[None]]] = {
            "relay": self.relay.run,
            "forget": self.relay.forget,
            "gatekeeper": self.gatekeeper.run,
            "timers": self.timers.run,
            "dead letters": self.dead_letters.run,
            "lost tasks": self.lost_tasks.run,
            "reconciler": self.reconciler.run,
            "notices": self._take_notices,
            **{f"intake {number}": intake.run for number, intake in enumerate(self.intakes)},
        }
        self._tasks = [asyncio.create_task(_keep_up(name, loop), name=name) for name, loop in loops.items()]
        log.info("The orchestrator is ready", action="orchestrator_ready", replica_id=self._replica_id)

    async def failed(self) -> None:
        """Wait until a loop ends by an error that does not pass, and raise it."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Stop in order: take no more, finish what is in its transaction, give everything back."""
        for intake in self.intakes:
            await intake.close()
        await self.dead_letters.close()
        if self._notices is not None:
            await self._notices.close()
        running = [task for task in self._tasks if task.get_name().startswith("intake")]
        await asyncio.gather(*running, return_exceptions=True)
        await self.gatekeeper.close()
        await self.relay.drain()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        log.info("The orchestrator has stopped", action="orchestrator_stopped", replica_id=self._replica_id)

    async def _take_notices(self) -> None:
        assert self._notices is not None
        while True:
            try:
                deliveries = await self._notices.receive(NOTICES)
            except ConsumerClosed:
                return
            for delivery in deliveries:
                try:
                    await self.gatekeeper.take_notice(decode(GateNotice, delivery.body))
                except MessageRefused as refused:
                    log.warning("A notice cannot be read", action="notice_refused", reason=str(refused))
            await self._notices.ack(deliveries)


async def _keep_up(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop; an error that passes interrupts it only for a while."""

    def interrupted(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        log.warning("A loop was interrupted; it goes on", action="loop_interrupted", loop=name, error=str(error))

    async for attempt in AsyncRetrying(
        retry=retry_if_exception(lambda error: is_transient(error) or isinstance(error, RunLocked)),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        before_sleep=interrupted,
        reraise=True,
    ):
        with attempt:
            await loop()
