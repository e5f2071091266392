"""One orchestrator process: all loops, their start in order, and their end.

Any number of replicas work side by side. They share the queues, and Postgres decides between them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from messaging import topology
from messaging.health import Health, HealthBook
from messaging.port import Broker, Consumer, ConsumerClosed
from messaging.tracing.spans import SpanSink
from orchestrator.errors import RunLocked
from orchestrator.service.agent_gates import AgentGates
from orchestrator.service.commands import CommandReader
from orchestrator.service.dead_letters import DeadLetterIntake
from orchestrator.service.driver import Driver
from orchestrator.service.gatekeeper import Gatekeeper
from orchestrator.service.health import DatabaseWatch
from orchestrator.service.identities import Identities
from orchestrator.service.intake import Intake
from orchestrator.service.lookout import Lookout
from orchestrator.service.lost_tasks import LostTasks
from orchestrator.service.notices import GateNotice
from orchestrator.service.plans import PlanCache
from orchestrator.service.readers import ResultReader
from orchestrator.service.reconciler import Reconciler
from orchestrator.service.refusals import Refusals
from orchestrator.service.relay import Relay
from orchestrator.service.requests import RequestReader
from orchestrator.service.spans import RunSpans
from orchestrator.service.strays import Strays
from orchestrator.service.timers import Timers
from orchestrator.service.traces import RunTraces
from orchestrator.storage.database import is_lost_connection, is_transient
from orchestrator.storage.due import Due
from orchestrator.storage.port import Storage
from schemas.codec import decode
from schemas.errors import MessageRefused

log = structlog.get_logger(__name__)

NOTICES: Final = 1_000
END_SECONDS: Final = 5.0
INTERRUPTED_SECONDS: Final = 10.0  # for so long an interrupted loop counts as trouble; the pause before it goes on is 5


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
        drain_timeout: float = 30.0,
        identities: Identities | None = None,
        spans: SpanSink | None = None,
        book: HealthBook | None = None,
    ) -> None:
        """Wire the loops together; `start` starts them.

        Args:
            storage: Ready; a database is migrated (see `orchestrator.storage.schema`).
            broker: Connected.
            replica_id: Unique among all replicas; names this one in leases and logs.
            unknown_agent_after: Seconds for which a task that no queue takes is tried before its step fails.
            silent_after: Seconds without a sign of life after which a task that its queue does not hold is sent again.
            drain_timeout: Seconds for which `stop` finishes what is under way.
            identities: Who may report and ask for sub-workflows; None: whoever can publish there.
            spans: Where spans go; None: it exports none.
            book: Where its troubles are noted.
        """
        plans = PlanCache()
        self._broker = broker
        self._replica_id = replica_id
        self._drain_timeout = drain_timeout
        self._book = book if book is not None else HealthBook()
        traces = RunTraces(spans)
        self.driver = Driver(storage, replica_id, plans, DatabaseWatch(self._book), traces)
        self.gatekeeper = Gatekeeper(storage, broker, self.driver, replica_id)
        self.relay = Relay(storage, broker, self.driver, unknown_agent_after=unknown_agent_after)
        self.agent_gates = AgentGates(storage, self.relay, self.driver.database)
        self.timers = Timers(storage, self.driver)
        wakes = {
            Due.MESSAGES: self.relay.wake,
            Due.TIMES: self.timers.wake,
            Due.GATES: self.gatekeeper.wake,
            Due.AGENTS: self.agent_gates.wake,
        }
        self.lookout = Lookout(storage, replica_id, self.driver.database, wakes)
        self.reconciler = Reconciler(storage, broker, self.driver, silent_after=silent_after)
        self.strays = Strays(storage, self.driver, silent_after=silent_after)
        # A new gate's queue must be there before its tickets go out.
        self.driver.follow(self.gatekeeper.open_gates)
        self.driver.follow(self.relay.committed)
        self.driver.follow(self.agent_gates.committed)
        self.driver.follow(self.gatekeeper.tell_holders)
        if spans is not None:
            self.driver.follow(RunSpans(spans).committed)
        refusals = Refusals(broker)
        requests = RequestReader(storage, refusals, plans, traces, identities)
        self.intakes = (
            Intake(broker, topology.RUNS_QUEUE, self.driver, requests),
            Intake(broker, topology.RESULTS_QUEUE, self.driver, ResultReader(identities)),
            Intake(broker, topology.COMMANDS_QUEUE, self.driver, CommandReader(refusals, traces)),
        )
        self.lost_tasks = LostTasks(self.driver, silent_after=silent_after)
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
            "lookout": self.lookout.run,
            "relay": self.relay.run,
            "forget": self.relay.forget,
            "gatekeeper": self.gatekeeper.run,
            "agent gates": self.agent_gates.run,
            "timers": self.timers.run,
            "dead letters": self.dead_letters.run,
            "lost tasks": self.lost_tasks.run,
            "reconciler": self.reconciler.run,
            "strays": self.strays.run,
            "notices": self._take_notices,
            "health": partial(self._book.watch, self._broker),
            **{f"intake {number}": intake.run for number, intake in enumerate(self.intakes)},
        }
        self._tasks = [asyncio.create_task(self._keep_up(name, loop), name=name) for name, loop in loops.items()]
        log.info("The orchestrator is ready", action="orchestrator_ready", replica_id=self._replica_id)

    def health(self) -> Health:
        """Return what of this replica does not work right now."""
        self._book.look_at(self._broker)
        return self._book.health

    async def failed(self) -> None:
        """Wait until a loop ends by an error that does not pass, and raise it."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Stop in order: take no more, finish what is in its transaction, give everything back.

        What cannot be finished in time, because Postgres or the broker is out of reach, is left behind; nothing of it
        is lost. What was taken goes back to its queue, and what was committed and not sent lies in the outbox.
        """
        await asyncio.gather(*(intake.cancel() for intake in self.intakes), self.dead_letters.close())
        try:
            async with asyncio.timeout(self._drain_timeout):
                await self._finish()
        except TimeoutError:
            self._tell_what_is_left()
        finally:
            await self._end()
        log.info("The orchestrator has stopped", action="orchestrator_stopped", replica_id=self._replica_id)

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            # A transaction that is cancelled waits for a server that is frozen; it ends with the process at the latest.
            await asyncio.wait(self._tasks, timeout=END_SECONDS)
        await asyncio.gather(*(intake.close() for intake in self.intakes))
        if self._notices is not None:
            await self._notices.close()

    async def _finish(self) -> None:
        running = [task for task in self._tasks if task.get_name().startswith("intake")]
        await asyncio.gather(*running, return_exceptions=True)
        for duty in (self.gatekeeper.close, self.agent_gates.close, self.relay.drain):
            retrying = AsyncRetrying(
                retry=retry_if_exception(is_transient),
                wait=wait_random_exponential(multiplier=0.1, max=5),
                reraise=True,
            )
            await retrying(duty)

    def _tell_what_is_left(self) -> None:
        log.warning(
            "The drain timeout is over; what is left goes back to its queues, or lies in the outbox for other replicas",
            action="drain_timed_out",
            seconds=self._drain_timeout,
            inputs=sum(intake.in_hand for intake in self.intakes),
            messages=self.relay.waiting,
            gates=self.gatekeeper.held,
            reasons=[str(trouble) for trouble in self.health().troubles],
        )

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

    async def _keep_up(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop; an error that passes interrupts it only for a while."""

        def interrupted(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome is not None else None
            assert error is not None, "nothing else interrupts a loop"
            self._note_interruption(name, error)

        async for attempt in AsyncRetrying(
            retry=retry_if_exception(lambda error: is_transient(error) or isinstance(error, RunLocked)),
            wait=wait_random_exponential(multiplier=0.1, max=5),
            before_sleep=interrupted,
            reraise=True,
        ):
            with attempt:
                await loop()

    def _note_interruption(self, name: str, error: BaseException) -> None:
        if is_lost_connection(error):
            self.driver.database.failed(error)
            return
        log.warning("A loop was interrupted; it goes on", action="loop_interrupted", loop=name, error=str(error))
        part = f"loop {name}"
        self._book.trouble(part, f"interrupted ({error})")
        asyncio.get_running_loop().call_later(INTERRUPTED_SECONDS, self._book.well, part)
