"""What the HTTP endpoint of a replica tells: whether it takes part in the work, and what it has counted."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import structlog

from messaging.health import BROKER, HealthBook
from messaging.monitoring.condition import Condition, Phase, awaited
from messaging.monitoring.instruments import Instrument
from messaging.monitoring.service_meter import ServiceMeter
from messaging.port import Broker
from orchestrator.service.census_gauges import census_gauges
from orchestrator.service.health import DATABASE
from orchestrator.service.recent_answer import RecentAnswer
from orchestrator.service.replica import Replica
from orchestrator.service.replica_meter import ReplicaMeter
from orchestrator.storage.census import Census, take_census
from orchestrator.storage.database import Database, is_lost_connection
from orchestrator.storage.schema import schema_difference

log = structlog.get_logger(__name__)

SCHEMA: Final = "schema"

SCHEMA_SECONDS: Final = 2.0  # between looks at the schema, however often somebody asks
CENSUS_SECONDS: Final = 5.0  # between two counts of the database
CENSUS_REST: Final = 20.0
PATIENCE: Final = 3.0  # for Postgres, before somebody who asks is told that it does not answer


class ReplicaMonitor:
    """Answers for one replica; see `messaging.monitoring.monitored.Monitored`.

    Args:
        database: The replica's.
        broker: The replica's.
        reconnects: Returns how often connections to the broker were restored.
        stopping: Returns whether the process was told to stop.
    """

    def __init__(
        self, database: Database, broker: Broker, reconnects: Callable[[], int], stopping: Callable[[], bool]
    ) -> None:
        self.book = HealthBook()
        self.meter = ServiceMeter("orchestrator", self.book, reconnects, (BROKER, DATABASE, SCHEMA))
        self._broker = broker
        self._stopping = stopping
        self._since = datetime.now(UTC)
        self._replica: Replica | None = None
        self._replica_meter = ReplicaMeter()
        self._schema: RecentAnswer[str | None] = RecentAnswer(
            lambda: schema_difference(database), fresh_seconds=SCHEMA_SECONDS, patience=PATIENCE
        )
        self._census: RecentAnswer[Census] = RecentAnswer(
            lambda: take_census(database), fresh_seconds=CENSUS_SECONDS, patience=PATIENCE, rest=CENSUS_REST
        )

    def watch(self, replica: Replica) -> None:
        """Answer for *replica*, which has our book and works from now on."""
        replica.driver.follow(self._replica_meter.committed)
        self._replica = replica

    async def condition(self) -> Condition:
        """Return the condition that the replica is in, once Postgres has answered or not."""
        if self._stopping():
            return Condition(Phase.STOPPING, self.book.health.troubles)
        await self._look_at_database()
        if self._replica is None:
            broker = () if self._broker.connected else (awaited(BROKER, self._since),)
            return Condition(Phase.STARTING, (*broker, *self.book.health.troubles))
        return Condition(Phase.WORKING, self._replica.health().troubles)

    async def instruments(self) -> Sequence[Instrument]:
        """Return its numbers, and those of the database."""
        census = await self._counted()
        return [
            *self.meter.instruments(await self.condition()),
            *self._replica_meter.instruments(self._replica),
            *census_gauges(census, self._census.seconds),
        ]

    async def close(self) -> None:
        """Leave the database alone."""
        await self._schema.close()
        await self._census.close()

    async def _look_at_database(self) -> None:
        try:
            difference = await self._schema.get()
        except Exception as error:
            self._note_database(error)
            return
        if self._replica is None:
            self.book.well(DATABASE)  # later the replica's own loops say so
        if difference is None:
            self.book.well(SCHEMA)
        else:
            self.book.trouble(SCHEMA, difference)

    def _note_database(self, error: Exception) -> None:
        reason = str(error).partition("\n")[0] or type(error).__name__
        if not is_lost_connection(error):
            self.book.trouble(SCHEMA, f"cannot be read ({reason})")
        elif self._replica is None:
            self.book.trouble(DATABASE, f"not reached yet ({reason})")
        else:
            self._replica.driver.database.failed(error)

    async def _counted(self) -> Census | None:
        try:
            return await self._census.get()
        except Exception as error:
            log.debug("The database could not be counted", action="census_failed", error=str(error))
            return None
