"""The composition root: from settings to running parts. The commands and the tests wire things here and only here."""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential

from messaging.monitoring.metered_broker import MeteredBroker
from messaging.monitoring.monitored import open_endpoint
from messaging.port import Broker
from messaging.rabbitmq import RabbitmqBroker, broker_of, user_of
from messaging.tracing.opening import open_tracing
from messaging.tracing.spans import SpanSink
from orchestrator.errors import WrongUse
from orchestrator.monitoring import ReplicaMonitor
from orchestrator.service.identities import Identities
from orchestrator.service.replica import Replica
from orchestrator.settings import Settings
from orchestrator.storage.database import Database, is_lost_connection
from orchestrator.storage.postgres import PostgresStorage
from orchestrator.storage.schema import check_schema

log = structlog.get_logger(__name__)

CLOSE_SECONDS: Final = 5.0
GARBAGE_THRESHOLDS: Final = (20_000, 50, 100)
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def make_database(settings: Settings, *, steady_plans: bool = False) -> Database:
    """Return the database that the settings name; *steady_plans* as `Database` has it.

    Raises:
        WrongUse: They name none.
    """
    if settings.database_url is None:
        raise WrongUse(
            "set FORKJOIN_DATABASE_URL, for example postgresql://user:password@localhost:5432/forkjoin "
            "(only `forkjoin run` and `forkjoin runs` work without it, on the embedded Postgres)"
        )
    url = settings.database_url.get_secret_value()
    return Database(url, pool_size=settings.database_pool_size, steady_plans=steady_plans)


def make_broker(settings: Settings, name: str) -> RabbitmqBroker:
    """Return a client of the RabbitMQ that the settings name; *name* shows in its management pages."""
    return broker_of(settings, name, max_message_bytes=settings.max_message_bytes)


def identities_of(settings: Settings) -> Identities | None:
    """Return who may report, where the settings say so."""
    if settings.worker_users is None:
        return None
    return Identities(settings.worker_users, user_of(settings.amqp_url.get_secret_value()))


@asynccontextmanager
async def running_replica(
    settings: Settings,
    database: Database,
    broker: Broker,
    monitor: ReplicaMonitor | None = None,
    spans: SpanSink | None = None,
) -> AsyncIterator[Replica]:
    """Yield a replica that works, and that *monitor* answers for; stop it in order at the end."""
    storage = PostgresStorage(database)
    await storage.warm_up()
    replica = Replica(
        storage,
        broker if monitor is None else MeteredBroker(broker, monitor.meter.broker),
        settings.replica_id,
        unknown_agent_after=settings.unknown_agent_after,
        silent_after=settings.silent_after,
        drain_timeout=settings.drain_timeout,
        identities=identities_of(settings),
        spans=spans,
        book=monitor.book if monitor is not None else None,
    )
    await replica.start()
    if monitor is not None:
        monitor.watch(replica)
    try:
        yield replica
    finally:
        await replica.stop()


async def serve(settings: Settings) -> None:
    """Run one replica until a signal says to stop.

    Raises:
        SchemaMismatch: The database schema is not the one that this code needs.
        BrokerUnavailable: RabbitMQ refuses us, for instance for wrong credentials.
        TopologyMismatch: A queue or exchange exists with other properties.
        SettingsInvalid: A port is set at which nobody can listen, or packages for what is set are missing.
    """
    _collect_garbage_seldom()
    structlog.contextvars.bind_contextvars(replica_id=settings.replica_id)
    stop = _stop_on_signals()
    database = make_database(settings, steady_plans=True)
    broker = make_broker(settings, settings.replica_id)
    try:
        async with (
            open_tracing(settings, "forkjoin-orchestrator", settings.replica_id) as spans,
            _monitored(settings, database, broker, stop) as monitor,
        ):
            if not await _first(asyncio.ensure_future(_all(wait_for_schema(database), broker.connect())), stop):
                return
            async with running_replica(settings, database, broker, monitor, spans) as replica:
                await _first(asyncio.ensure_future(replica.failed()), stop)
    finally:
        await broker.close()
        await _close(database)


@asynccontextmanager
async def _monitored(
    settings: Settings, database: Database, broker: RabbitmqBroker, stop: asyncio.Event
) -> AsyncIterator[ReplicaMonitor | None]:
    """Where a port is set, open it, and yield what answers there."""
    if settings.http_port is None:
        yield None
        return
    monitor = ReplicaMonitor(database, broker, lambda: broker.reconnects, stop.is_set)
    async with open_endpoint(settings, settings.http_port, monitor, monitor.meter.loop_lag):
        try:
            yield monitor
        finally:
            await monitor.close()


async def wait_for_schema(database: Database) -> None:
    """Wait until Postgres can be reached, then make sure that its schema is the right one. Raises SchemaMismatch."""

    def unreachable(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if state.attempt_number == 1:
            log.warning("Postgres cannot be reached; waiting for it", action="database_awaited", error=str(error))

    async for attempt in AsyncRetrying(
        retry=retry_if_exception(is_lost_connection),
        wait=wait_exponential(multiplier=0.2, max=5),
        before_sleep=unreachable,
        reraise=True,
    ):
        with attempt:
            await check_schema(database.engine)


def _collect_garbage_seldom() -> None:
    """Let Python search for reference cycles less often; here it finds hardly any.

    Each search of the oldest objects visits all that is loaded, compiled plans too: a fifth of the time of a large
    block. What was imported stays for ever, so it need never be visited.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)


async def _close(database: Database) -> None:
    """Close the pool, which waits for its connections; those whose server does not answer end with the process."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await database.close()


def _stop_on_signals() -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets; the second ends the process at once."""
    stop = asyncio.Event()

    def stopped() -> None:
        if stop.is_set():
            # Nothing is lost: what is not committed is delivered again, what is committed lies in the outbox.
            os._exit(1)
        log.info("Stopping: finishing what is under way", action="orchestrator_stopping")
        stop.set()

    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stopped)
    return stop


async def _all(*duties: Coroutine[Any, Any, None]) -> None:
    """Do all duties at once; when one fails, end the others before its error is raised."""
    tasks = [asyncio.create_task(duty) for duty in duties]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _first(work: "asyncio.Future[Any]", stop: asyncio.Event) -> bool:
    """Wait for *work* or *stop*; return whether the work was done, and raise what it raised."""
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if work.done():
        work.result()
        return True
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    return False
