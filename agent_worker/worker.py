"""A worker process: its agents' consumers, its reporter, and the order in which they start and stop."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

import structlog

from agent_worker.cancelled_work import Cancelled
from agent_worker.consumer import AgentConsumer
from agent_worker.desk import Desk, Observer
from agent_worker.errors import NoAgents
from agent_worker.listener import Listener
from agent_worker.options import WorkerOptions
from agent_worker.registry import AgentRegistry
from agent_worker.tracing import AttemptTracing
from messaging.health import Health, HealthBook
from messaging.port import Broker, ConsumerClosed, Queue, QueueMissing
from messaging.topology import DEAD_LETTERS_EXCHANGE, EXCHANGES, RESULTS_EXCHANGE, TASKS_EXCHANGE, agent_queue

_EXCHANGES: Final = tuple(
    exchange for exchange in EXCHANGES if exchange.name in {TASKS_EXCHANGE, RESULTS_EXCHANGE, DEAD_LETTERS_EXCHANGE}
)

log = structlog.get_logger(__name__)


class Worker:
    """Runs the agents of a registry on the tasks that a broker delivers.

    Either `run_until_stopped`, or `start` and later `drain` or `close`. The broker belongs to the caller, who closes it
    afterwards.

    Args:
        broker: Where the tasks are; connected by `start` if it is not yet.
        registry: Its agents at the time of `start` are served.
        options: How to work.
        book: Where its troubles are noted.
        observer: Told of each attempt that ends.
        tracing: Whose spans attempts are; by default those of the process, if somebody has set up an SDK by now.
    """

    def __init__(
        self,
        broker: Broker,
        registry: AgentRegistry,
        options: WorkerOptions | None = None,
        *,
        book: HealthBook | None = None,
        observer: Observer | None = None,
        tracing: AttemptTracing | None = None,
    ) -> None:
        self._broker = broker
        self._registry = registry
        self._options = options if options is not None else WorkerOptions()
        self._desk = Desk(broker, registry, self._options, observer, tracing)
        self._listener = Listener(broker, self._desk.colleagues, self._cancel)
        self._book = book if book is not None else HealthBook()
        self._consumers: list[AgentConsumer] = []
        self._ready = False
        self._loops: list[asyncio.Task[None]] = []
        self._receiving: list[asyncio.Task[None]] = []  # those of the loops that take tasks
        self._bugs: list[BaseException] = []
        self._broken = asyncio.Event()
        self._closing = False
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    def stop(self) -> None:
        """Ask `run_until_stopped` to drain and return; ask again to make it give up what runs and return at once."""
        (self._hurry if self._stop.is_set() else self._stop).set()

    async def run_until_stopped(self) -> None:
        """Start, work until `stop`, drain and close.

        Raises:
            NoAgents: There is nothing to serve.
            BrokerError: The queues cannot be had.
        """
        try:
            if await _unless(self._stop, self.start()):
                await _unless(self._stop, self._until_broken())
                await _unless(self._hurry, self.drain())
        finally:
            await self.close()

    def health(self) -> Health:
        """Return what of this worker does not work right now."""
        self._book.look_at(self._broker)
        return self._book.health

    @property
    def ready(self) -> bool:
        """Whether it consumes the queues of all its agents."""
        return self._ready

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    @property
    def running(self) -> dict[str, int]:
        """How many attempts of each agent run."""
        return dict(zip(self._registry.names, [consumer.running for consumer in self._consumers], strict=False))

    async def start(self) -> None:
        """Declare or check the queues, and consume them.

        Raises:
            NoAgents: There is nothing to serve.
            TopologyMismatch: A queue exists with other properties.
            QueueMissing: A queue does not exist, and the options forbid to declare it.
        """
        if not self._registry.names:
            raise NoAgents('the registry has no agents; register one with `@agents.agent("name")`')
        if not self._broker.connected:
            await self._broker.connect()
        queues = [agent_queue(name) for name in self._registry.names]
        await (self._declare(queues) if self._options.declare else self._check(queues))
        self._run(self._book.watch(self._broker))
        self._run(self._desk.reporter.run())
        await self._listener.start(self._registry.names)
        self._run(self._listener.run())
        for queue in queues:
            await self._consume(queue)
        self._ready = True
        log.info(
            "The worker is ready",
            action="worker_ready",
            agents=list(self._registry.names),
            concurrency=self._options.concurrency,
            worker_id=self._options.worker_id,
        )

    async def drain(self) -> None:
        """Take no more tasks, give back those that have not started, finish the others, and close.

        What is not finished within the drain timeout is given back.
        """
        log.info("The worker takes no more tasks and finishes what runs", action="worker_draining")
        for loop in self._receiving:
            loop.cancel()
        draining = asyncio.gather(*(_drain(consumer) for consumer in self._consumers))
        try:
            await asyncio.wait_for(draining, self._options.drain_timeout)
        except TimeoutError:
            log.warning(
                "The drain timeout is over; unfinished tasks go back to their queues",
                action="drain_timed_out",
                seconds=self._options.drain_timeout,
            )
        await self.close()

    async def close(self) -> None:
        """Give everything unsettled back, cancel what runs, and stop."""
        self._closing = True
        await self._listener.close()  # first: what is given back now must not seem to run here
        await asyncio.gather(*(consumer.close() for consumer in self._consumers))
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops)
        self._desk.close()

    async def _declare(self, queues: list[Queue]) -> None:
        await self._broker.declare(_EXCHANGES, queues)

    async def _check(self, queues: list[Queue]) -> None:
        missing = []
        for queue in queues:
            try:
                await self._broker.check_queue(queue.name)
            except QueueMissing:
                missing.append(queue.name)
        if missing:
            raise QueueMissing(
                f"missing: {', '.join(missing)}; declare them, or let the worker do it (FORKJOIN_WORKER_DECLARE=true)"
            )

    async def _consume(self, queue: Queue) -> None:
        concurrency = self._options.concurrency
        source = await self._broker.consume(queue, prefetch=concurrency)
        consumer = AgentConsumer(source, self._desk, concurrency=concurrency, on_bug=self._note_bug)
        self._consumers.append(consumer)
        self._receiving.append(self._run(consumer.run()))

    def _cancel(self, cancelled: Cancelled) -> None:
        self._desk.cancelled.add(cancelled)  # tasks of it may come later
        for consumer in self._consumers:
            consumer.cancel(cancelled)

    def _run(self, duty: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        loop = asyncio.create_task(duty)
        self._loops.append(loop)
        loop.add_done_callback(self._note_end)
        return loop

    def _note_end(self, loop: asyncio.Task[None]) -> None:
        if loop.cancelled() or (error := loop.exception()) is None:
            return
        if not (self._closing and isinstance(error, ConsumerClosed)):
            self._note_bug(error)

    def _note_bug(self, error: BaseException) -> None:
        self._bugs.append(error)
        self._broken.set()

    async def _until_broken(self) -> None:
        await self._broken.wait()
        raise self._bugs[0]


async def _drain(consumer: AgentConsumer) -> None:
    await consumer.give_back_waiting()
    await consumer.drained()
    await consumer.close()


async def _unless(event: asyncio.Event, duty: Coroutine[Any, Any, None]) -> bool:
    """Do the duty, but drop it as soon as *event* is set; return whether it was done."""
    doing, waiting = asyncio.ensure_future(duty), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((doing, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        if not doing.done():
            doing.cancel()
            await asyncio.wait((doing,))
    if doing.cancelled():
        return False
    doing.result()
    return True
