"""Run one seed and say what came of it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final
from unittest import mock

import structlog

from tests.simulation.clock import VirtualDatetime, VirtualLoop
from tests.simulation.entropy import seeded_entropy
from tests.simulation.process import task_factory
from tests.simulation.world import World

CLOCKS: Final = ("agent_worker.attempts.datetime", "agent_worker.reports.datetime")


@dataclass
class Simulated:
    """What came of a seed."""

    seed: int
    error: BaseException | None = None
    seconds: float = 0.0  # of virtual time
    faults: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    executions: int = 0

    @property
    def digest(self) -> str:
        """The same for two runs that took the same course."""
        return sha256("\n".join(self.trace).encode()).hexdigest()[:16]


def simulate(seed: int) -> Simulated:
    """Run a seed to its end. Bugs of the product and violated oracles are in the answer; nothing is raised."""
    simulated = Simulated(seed)
    with _quiet_logs(), _virtual_clocks(), seeded_entropy(seed):
        loop = VirtualLoop()
        loop.set_task_factory(task_factory)  # type: ignore[arg-type]  # typeshed's factories return futures
        loop.set_exception_handler(lambda _, context: None)  # of tasks that were killed
        try:
            loop.run_until_complete(_simulate(simulated))
        finally:
            loop.close()
    return simulated


async def _simulate(simulated: Simulated) -> None:
    world = World(simulated.seed)
    try:
        await world.run()
    except BaseException as error:
        simulated.error = error
    simulated.seconds = world.chaos.now
    simulated.faults, simulated.trace = world.chaos.faults, world.chaos.trace
    simulated.executions = len(world.executions)
    await world.shut_down()


@contextmanager
def _virtual_clocks() -> Iterator[None]:
    with mock.patch(CLOCKS[0], VirtualDatetime), mock.patch(CLOCKS[1], VirtualDatetime):
        yield


@contextmanager
def _quiet_logs() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL), cache_logger_on_first_use=False
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        structlog.configure(**before)
