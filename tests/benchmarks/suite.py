"""One run of the benchmarks, from choosing the systems to its results."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from tests.benchmarks import bench_messaging
from tests.benchmarks.bench_messaging import Cost
from tests.benchmarks.idle import Idle, measure_idle
from tests.benchmarks.loads import QUICK_WARM_UP, WARM_UP, Group, Load, all_loads
from tests.benchmarks.machine import this_machine
from tests.benchmarks.measurement import Role
from tests.benchmarks.profiling import Profiler
from tests.benchmarks.results import Results
from tests.benchmarks.rounds import Rounds
from tests.benchmarks.servers import Servers
from tests.benchmarks.summary import summarise
from tests.benchmarks.systems.bare import Bare
from tests.benchmarks.systems.celery_chord import POSTGRES, REDIS, CeleryChord
from tests.benchmarks.systems.forkjoin import Forkjoin
from tests.benchmarks.systems.port import System
from tests.services.sources import Announce

STORED_RUNS: Final = 100_000


class Name(StrEnum):
    """The systems, as ``--only`` takes them."""

    BARE = "bare"
    FORKJOIN = "forkjoin"
    FORKJOIN_STORED = "forkjoin-stored"  # with many finished runs in its tables
    CELERY_POSTGRES = "celery-postgres"
    CELERY_REDIS = "celery-redis"


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        only: Systems; empty for all of them.
        loads: Names or groups of loads; empty for all of them.
        output: A directory that exists.
    """

    rounds: int
    only: tuple[Name, ...]
    loads: tuple[str, ...]
    quick: bool
    large: bool
    profile: bool
    output: Path

    def wants(self, system: Name) -> bool:
        """Whether the system is to be measured; the one with stored runs takes minutes to prepare."""
        return system in self.only if self.only else system is not Name.FORKJOIN_STORED or self.large

    def chosen_loads(self) -> list[Load]:
        """Return the loads to run, in their order."""
        loads = all_loads(quick=self.quick, large=self.large)
        return [load for load in loads if not self.loads or {load.name, load.group.value} & set(self.loads)]

    def wants_extra(self, group: Group) -> bool:
        """Whether to measure what is no load: single messages, and idleness."""
        if self.loads:
            return group in self.loads
        return not (group is Group.MESSAGES and (self.quick or self.only))

    @property
    def idle_seconds(self) -> float:
        """How long to watch idle services."""
        return 1.0 if self.quick else 10.0


class Suite:
    """Measures what the options say, on the servers."""

    def __init__(self, options: Options, servers: Servers, announce: Announce) -> None:
        self._options = options
        self._servers = servers
        self._announce = announce
        self._forkjoin = Forkjoin(servers)
        self._systems, self._left_out = self._choose()
        self._rounds = Rounds(self._systems, servers.processes(), announce)

    async def run(self) -> Results:
        """Measure everything; failures of systems are part of the results."""
        date = datetime.now(UTC).isoformat(timespec="seconds")
        messages = await self._measure_messages()
        loads = self._options.chosen_loads()
        try:
            await self._rounds.start(QUICK_WARM_UP if self._options.quick else WARM_UP)
            idle = await self._measure_idle()
            await self._measure_loads(loads)
        finally:
            await self._rounds.stop()
        samples, failures = self._rounds.samples, self._rounds.failures
        return Results(
            date,
            this_machine(),
            self._servers.origins,
            {system.name: system.settings for system in self._systems},
            self._left_out,
            self._options.rounds,
            Bare.name,
            samples,
            failures,
            summarise(loads, samples, failures, Bare.name),
            idle,
            messages,
            self._options.profile,
        )

    def _choose(self) -> tuple[list[System], dict[str, str]]:
        makers: dict[Name, Callable[[], System]] = {
            Name.BARE: lambda: Bare(self._servers.rabbitmq),
            Name.FORKJOIN: lambda: self._forkjoin,
            Name.FORKJOIN_STORED: lambda: Forkjoin(self._servers, stored_runs=STORED_RUNS),
            Name.CELERY_POSTGRES: lambda: CeleryChord(self._servers, POSTGRES),
            Name.CELERY_REDIS: lambda: CeleryChord(self._servers, REDIS),
        }
        wanted = {name: make for name, make in makers.items() if self._options.wants(name)}
        left_out = {}
        if self._servers.redis_url is None and wanted.pop(Name.CELERY_REDIS, None) is not None:
            left_out[Name.CELERY_REDIS.value] = "there is no Redis; install redis-server or set FORKJOIN_TEST_REDIS_URL"
        return [make() for make in wanted.values()], left_out

    async def _measure_messages(self) -> dict[str, tuple[Cost, Cost]]:
        if not self._options.wants_extra(Group.MESSAGES):
            return {}
        self._announce("single messages")
        url = self._servers.rabbitmq.new_vhost()
        try:
            async with asyncio.timeout(bench_messaging.SECONDS):
                return await bench_messaging.measure_adapters(url, 1000 if self._options.quick else 10_000)
        finally:
            self._servers.rabbitmq.drop_vhost(url)

    async def _measure_idle(self) -> Idle | None:
        if not (self._options.wants_extra(Group.IDLE) and self._forkjoin.processes()):
            return None
        self._announce(f"idle for {self._options.idle_seconds:g} s")
        return await measure_idle(self._forkjoin, self._servers.postgres, self._options.idle_seconds)

    async def _measure_loads(self, loads: list[Load]) -> None:
        profiler = self._attach_profiler() if self._options.profile else None
        try:
            for load in loads:
                self._announce(f"{load.name}: {load.title}")
                await self._rounds.measure(load, self._options.rounds)
        finally:
            if profiler is not None:
                for line in profiler.stop():
                    self._announce(line)

    def _attach_profiler(self) -> Profiler:
        profiler = Profiler(self._options.output)
        for role, pids in self._forkjoin.processes().items():
            profiler.attach("worker" if role is Role.WORKERS else role.value, pids[0])
        return profiler
