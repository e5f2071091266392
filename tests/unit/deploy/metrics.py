"""Every metric that a service shows, with its labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent_worker.monitoring import WorkerMonitor
from agent_worker.registry import AgentRegistry
from agent_worker.worker import Worker
from messaging.memory import MemoryBroker
from messaging.monitoring.instruments import Count, Gauge, Instrument, Spread
from orchestrator.monitoring import ReplicaMonitor
from orchestrator.service.census_gauges import census_gauges
from orchestrator.service.replica import Replica
from orchestrator.storage.census import Census, GateTotals, OutboxTotals
from orchestrator.storage.database import Database

EMPTY = Census(
    runs={},
    branches={},
    attempts={},
    gates=GateTotals(gates=0, slots=0, used=0, waiting=0),
    outbox=OutboxTotals(messages=0, due=0, unroutable=0, oldest_seconds=0),
    dead_letters={},
    complete=True,
)

_KINDS = {Gauge: "gauge", Count: "counter", Spread: "histogram"}


@dataclass(frozen=True)
class Metric:
    """One name of /metrics, as it stands in the README of deploy/monitoring."""

    name: str
    kind: str
    services: str  # O: the orchestrator, W: the worker
    labels: tuple[str, ...]
    help: str

    @property
    def series(self) -> set[str]:
        """The names under which queries ask for it."""
        match self.kind:
            case "counter":
                return {f"{self.name}_total"}
            case "histogram":
                return {f"{self.name}_{part}" for part in ("bucket", "sum", "count")}
            case _:
                return {self.name}


async def all_metrics() -> dict[str, Metric]:
    """Return what replica and worker show, by name."""
    found: dict[str, Metric] = {}
    for service, instruments in (("O", await _of_a_replica()), ("W", await _of_a_worker())):
        for one in instruments:
            description = one.description
            before = found.get(description.name)
            services = f"{before.services} {service}" if before is not None else service
            kind = _KINDS[type(one)]
            found[description.name] = Metric(description.name, kind, services, description.labels, description.help)
    return found


async def _of_a_replica() -> Sequence[Instrument]:
    broker, nowhere = MemoryBroker(), Database("postgresql://nobody@127.0.0.1:1/nowhere")
    monitor = ReplicaMonitor(nowhere, broker, int, lambda: False)
    storage: Any = None  # nothing is asked of it before the replica starts
    monitor.watch(Replica(storage, broker, "replica", book=monitor.book))
    try:
        without_database = [one for one in await monitor.instruments() if "census" not in one.description.name]
    finally:
        await monitor.close()
        await nowhere.close()
    return [*without_database, *census_gauges(EMPTY, 0)]


async def _of_a_worker() -> Sequence[Instrument]:
    broker = MemoryBroker()
    monitor = WorkerMonitor(broker, int, concurrency=1)
    monitor.watch(Worker(broker, AgentRegistry(), book=monitor.book, observer=monitor.attempts.ended))
    return await monitor.instruments()
