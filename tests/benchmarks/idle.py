"""What services cost that have nothing to do."""

import asyncio
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tests.benchmarks.measurement import Role
from tests.benchmarks.meter import Meter
from tests.benchmarks.systems.forkjoin import Forkjoin
from tests.services.postgres import Postgres

_TRANSACTIONS: Final = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1"


@dataclass(frozen=True)
class Idle:
    """What was used per second, while nothing was asked of anybody.

    Attributes:
        cores: Shares of one core: of the orchestrator, and of one worker.
        transactions: In the database, per second. Postgres counts those, not queries; a transaction of an idle
            orchestrator is one query, or a few.
    """

    seconds: float
    cores: Mapping[Role, float]
    transactions: float


async def measure_idle(system: Forkjoin, postgres: Postgres, seconds: float) -> Idle:
    """Watch a started system for so long."""
    processes = system.processes()
    meter = Meter(processes)
    loop = asyncio.get_running_loop()
    began, before = loop.time(), _transactions(system, postgres)
    meter.start()
    await asyncio.sleep(seconds)
    used = meter.stop()
    after, lasted = _transactions(system, postgres), loop.time() - began
    cores = {role: cpu / lasted / len(processes[role]) for role, cpu in used.cpu_seconds.items()}
    return Idle(lasted, cores, (after - before) / lasted)


def _transactions(system: Forkjoin, postgres: Postgres) -> int:
    name = urllib.parse.urlsplit(system.database_url).path.removeprefix("/")
    return int(postgres.execute(_TRANSACTIONS, name)[0][0])
