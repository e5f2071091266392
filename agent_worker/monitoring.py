"""What the HTTP endpoint of a worker tells: whether it takes tasks, and what it has counted."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from agent_worker.attempt_meter import AttemptMeter
from agent_worker.worker import Worker
from messaging.health import BROKER, HealthBook
from messaging.monitoring.condition import Condition, Phase, awaited
from messaging.monitoring.instruments import Description, Gauge, Instrument
from messaging.monitoring.service_meter import ServiceMeter
from messaging.port import Broker

_RUNNING = Description("forkjoin_worker_running", "Attempts that run here now.", ("agent",))
_CONCURRENCY = Description("forkjoin_worker_concurrency", "Attempts that may run here at once.", ("agent",))


class WorkerMonitor:
    """Answers for one worker; see `messaging.monitoring.monitored.Monitored`.

    Args:
        broker: The worker's.
        reconnects: Returns how often connections to it were restored.
        concurrency: Attempts of each agent that may run at once.
    """

    def __init__(self, broker: Broker, reconnects: Callable[[], int], concurrency: int) -> None:
        self.book = HealthBook()
        self._since = datetime.now(UTC)
        self._broker = broker
        self.meter = ServiceMeter("worker", self.book, reconnects)
        self.attempts = AttemptMeter()
        self._concurrency = concurrency
        self._worker: Worker | None = None

    def watch(self, worker: Worker) -> None:
        """Answer for *worker*, which has our book and tells our meter of attempts."""
        self._worker = worker

    async def condition(self) -> Condition:
        """Return the condition that the worker is in."""
        worker = self._worker
        if worker is not None and worker.stopping:
            return Condition(Phase.STOPPING, self.book.health.troubles)
        if worker is None or not worker.ready:
            troubles = () if self._broker.connected else (awaited(BROKER, self._since),)
            return Condition(Phase.STARTING, troubles)
        return Condition(Phase.WORKING, worker.health().troubles)

    async def instruments(self) -> Sequence[Instrument]:
        """Return its numbers."""
        running = self._worker.running if self._worker is not None else {}
        return [
            *self.meter.instruments(await self.condition()),
            *self.attempts.instruments(),
            Gauge(_RUNNING, {(agent,): number for agent, number in running.items()}),
            Gauge(_CONCURRENCY, {(agent,): self._concurrency for agent in running}),
        ]
