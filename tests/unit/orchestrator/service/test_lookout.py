"""The lookout wakes whom it concerns, and the loops sleep until then."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from messaging.memory import MemoryBroker
from orchestrator.service import health
from orchestrator.service import lookout as module
from orchestrator.service.driver import Driver
from orchestrator.service.health import DatabaseWatch
from orchestrator.service.lookout import Lookout
from orchestrator.service.plans import PlanCache
from orchestrator.service.relay import Relay
from orchestrator.service.timers import Timers
from orchestrator.storage.due import Due
from tests.services.waiting import eventually

TURNS = 20  # of the event loop: more than anything here needs


class Storage:
    """Says what is due, or that it is out of reach."""

    def __init__(self) -> None:
        self.due: frozenset[Due] = frozenset()
        self.error: Exception | None = None
        self.asked: list[str] = []

    async def what_is_due(self, replica_id: str) -> frozenset[Due]:
        self.asked.append(replica_id)
        if self.error is not None:
            raise self.error
        return self.due


class Woken:
    """Notes who was woken."""

    def __init__(self) -> None:
        self.kinds: list[Due] = []
        self.wakes = {kind: self._wake(kind) for kind in Due}

    def _wake(self, kind: Due) -> Callable[[], None]:
        return lambda: self.kinds.append(kind)


@pytest.fixture
def storage() -> Storage:
    return Storage()


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture
def lookout(storage: Storage, woken: Woken) -> Lookout:
    return Lookout(storage, "me", DatabaseWatch(), woken.wakes)  # type: ignore[arg-type]


@asynccontextmanager
async def running(loop: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a loop meanwhile."""
    task = asyncio.create_task(loop)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("due", [[], *([kind] for kind in Due), list(Due)], ids=lambda due: " and ".join(due) or "none")
async def test_whoever_has_something_to_do_is_woken_and_nobody_else(
    lookout: Lookout, storage: Storage, woken: Woken, due: list[Due]
) -> None:
    storage.due = frozenset(due)
    assert await lookout.run_once() == frozenset(due)
    assert woken.kinds == due
    assert storage.asked == ["me"]


async def test_it_wakes_again_for_as_long_as_something_is_due(
    lookout: Lookout, storage: Storage, woken: Woken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0)
    storage.due = frozenset({Due.GATES})
    async with running(lookout.run()):
        await eventually(lambda: len(woken.kinds) >= 3)


async def test_it_tells_that_postgres_is_away_and_that_it_is_back(
    lookout: Lookout, storage: Storage, woken: Woken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CALM_SECONDS", 0)
    storage.error = ConnectionResetError("gone")
    with capture_logs() as lines:
        for _ in range(2):
            with pytest.raises(ConnectionResetError):
                await lookout.run_once()
        storage.error = None
        await lookout.run_once()
    told = [line["action"] for line in lines if line["action"].startswith("database")]
    assert told == ["database_lost", "database_restored"]
    assert woken.kinds == []


@pytest.mark.parametrize("kind", [Relay, Timers])
async def test_a_loop_looks_when_it_starts_and_then_only_when_it_is_woken(
    monkeypatch: pytest.MonkeyPatch, storage: Storage, kind: type[Relay] | type[Timers]
) -> None:
    sweeps: list[bool] = []
    more = iter([False, True, False])

    async def sweep(_: Any) -> bool:
        sweeps.append(next(more))
        return sweeps[-1]

    monkeypatch.setattr(kind, "run_once", sweep)
    sleeper = loop_of(kind, storage)
    async with running(sleeper.run()):
        await turns()
        assert sweeps == [False]
        sleeper.wake()
        await turns()
        assert sweeps == [False, True, False], "it goes on while there is more"


def loop_of(kind: type[Relay] | type[Timers], storage: Any) -> Relay | Timers:
    driver = Driver(storage, "me", PlanCache())
    return Timers(storage, driver) if kind is Timers else Relay(storage, MemoryBroker(), driver, unknown_agent_after=60)


async def turns() -> None:
    """Let everybody do what can be done without waiting."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
