"""Let systems do loads in turn: system by system within a round, so that a ratio is of figures from the same minute."""

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import Final

from tests.benchmarks.loads import Load
from tests.benchmarks.measurement import Failure, Role, Sample
from tests.benchmarks.meter import Meter
from tests.benchmarks.systems.port import System
from tests.services.sources import Announce

SLOW_SECONDS: Final = 15.0  # what takes longer is not repeated


class Rounds:
    """All systems under one load after the other.

    Args:
        systems: In the order in which they take their turns.
        server_processes: Of the servers that all of them share, where they can be seen.
        announce: Shows a line to whoever runs the benchmarks.
        pause: Seconds after each load, in which a system finishes what it does after its last result.

    Attributes:
        samples: What succeeded.
        failures: What did not.
    """

    def __init__(
        self,
        systems: Sequence[System],
        server_processes: Mapping[Role, Sequence[int]],
        announce: Announce,
        *,
        pause: float = 0.5,
    ) -> None:
        self.samples: list[Sample] = []
        self.failures: list[Failure] = []
        self._systems = systems
        self._announce = announce
        self._server_processes = server_processes
        self._pause = pause
        self._broken: dict[str, str] = {}  # systems that do not start, and why

    async def start(self, warm_up: Load) -> None:
        """Start all systems and let each do the *warm_up*, which is not measured."""
        for system in self._systems:
            self._announce(f"starting {system.name}")
            await self._start(system)
            if system.name not in self._broken:
                result = await self._attempt(system, warm_up, 0)
                if isinstance(result, Failure):
                    self._announce(f"  {system.name} did not warm up: {result.reason}")

    async def measure(self, load: Load, rounds: int) -> None:
        """Let each system do *load* in each of the *rounds*; one that fails or is slow does so no more."""
        left = [system for system in self._systems if system.takes(load)]
        for number in range(1, rounds + 1):
            for system in list(left):
                result = await self._attempt(system, load, number)
                self._keep(result)
                if isinstance(result, Failure) or result.wall_seconds > SLOW_SECONDS:
                    left.remove(system)

    async def stop(self) -> None:
        """Stop all systems."""
        for system in self._systems:
            await system.stop()

    def _keep(self, result: Sample | Failure) -> None:
        if isinstance(result, Failure):
            self.failures.append(result)
            self._announce(f"  {result.load}, round {result.round}, {result.system}: FAILED, {result.reason}")
        else:
            self.samples.append(result)
            self._announce(f"  {result.load}, round {result.round}, {result.system}: {result.rate:,.0f} branches/s")

    async def _attempt(self, system: System, load: Load, number: int) -> Sample | Failure:
        reason = self._broken.get(system.name)
        if reason is None:
            try:
                return await self._sample(system, load, number)
            except Exception as failure:  # whatever is wrong with one system, the others go on
                reason = _reason(failure, load)
            # What it left undone would disturb everybody, itself included.
            await system.stop()
            await self._start(system)
        return Failure(system.name, load.name, number, reason)

    async def _sample(self, system: System, load: Load, number: int) -> Sample:
        meter = Meter({Role.CLIENT: [os.getpid()], **self._server_processes, **system.processes()})
        meter.start()
        async with asyncio.timeout(load.seconds):
            outcome = await system.run(load)
        usage = meter.stop()
        await asyncio.sleep(self._pause)
        return Sample(system.name, load.name, number, load.total, outcome.wall_seconds, outcome.times, usage)

    async def _start(self, system: System) -> None:
        try:
            await system.start()
        except Exception as failure:  # as above
            self._broken[system.name] = f"does not start: {type(failure).__name__}: {failure}"
            self._announce(f"  {system.name} {self._broken[system.name]}")
            await system.stop()


def _reason(failure: Exception, load: Load) -> str:
    if isinstance(failure, TimeoutError):
        return f"not done within {load.seconds:g} s"
    return f"{type(failure).__name__}: {failure}"[:500]
