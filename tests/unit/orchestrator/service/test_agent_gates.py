"""Who looks after limited agents, and when: after commits, at looks, and when there are tokens."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import pytest

from orchestrator.service import agent_gates
from orchestrator.service.agent_gates import PAGE, AgentGates
from orchestrator.service.batch import Committed
from orchestrator.service.health import DatabaseWatch
from orchestrator.storage.agent_limits import LetThrough
from orchestrator.storage.changes import OutboxRow
from tests.conftest import Eventually

ROW = OutboxRow(UUID(int=1), UUID(int=2), "s", UUID(int=3), "tasks", "x", "AgentTask", None, b"{}")
NOTHING = LetThrough()


class Storage:
    """Lets through what the test says, in this order; then nothing."""

    def __init__(self, *done: LetThrough) -> None:
        self.done = list(done)
        self.asked: list[str] = []
        self.with_room: list[str] = []
        self.failure: Exception | None = None

    async def agents_with_room(self) -> Sequence[str]:
        return self.with_room

    async def let_tasks_through(self, agent_name: str, page: int) -> LetThrough:
        assert page == PAGE
        self.asked.append(agent_name)
        if self.failure is not None:
            raise self.failure
        return self.done.pop(0) if self.done else NOTHING


class Relay:
    """Takes what it is handed."""

    def __init__(self) -> None:
        self.handed: list[OutboxRow] = []

    async def committed(self, batch: Committed) -> None:
        self.handed += batch.messages


class Scene:
    """Gates over a storage of the test's own."""

    def __init__(self, *done: LetThrough) -> None:
        self.storage, self.relay = Storage(*done), Relay()
        self.gates = AgentGates(self.storage, self.relay, DatabaseWatch())  # type: ignore[arg-type]

    async def commit(self, *agents: str) -> None:
        await self.gates.committed(Committed(answers=[], limited_agents=set(agents)))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_gates, "PAUSE_SECONDS", 0.0)


async def test_what_is_let_through_is_handed_to_the_relay() -> None:
    scene = Scene(LetThrough([ROW]))
    await scene.commit("x")
    await scene.gates.run_once()
    assert (scene.storage.asked, scene.relay.handed) == (["x"], [ROW])
    await scene.gates.run_once()
    assert scene.storage.asked == ["x"], "once for each reason"


async def test_a_commit_that_concerns_no_limited_agent_is_none_of_its_business(eventually: Eventually) -> None:
    scene = Scene()
    running = asyncio.create_task(scene.gates.run())
    await scene.commit()
    await scene.commit("x")
    await eventually(lambda: scene.storage.asked == ["x"])
    running.cancel()


async def test_pages_go_through_one_after_the_other() -> None:
    scene = Scene(LetThrough([ROW], more=True), LetThrough([ROW], more=True), LetThrough([ROW]))
    await scene.commit("x")
    await scene.gates.run_once()
    assert len(scene.relay.handed) == 3


async def test_a_look_finds_agents_with_room() -> None:
    scene = Scene()
    scene.storage.with_room = ["y", "z"]
    await scene.gates.run_once()
    assert scene.storage.asked == []
    scene.gates.wake()
    await scene.gates.run_once()
    assert sorted(scene.storage.asked) == ["y", "z"]


async def test_the_next_token_is_waited_for(eventually: Eventually) -> None:
    soon = LetThrough([ROW], next_token=timedelta(0))
    scene = Scene(soon, soon, LetThrough([ROW]))
    running = asyncio.create_task(scene.gates.run())
    await scene.commit("x")
    await eventually(lambda: len(scene.relay.handed) == 3)
    running.cancel()


async def test_of_a_token_that_another_replica_took_the_next_one_is_left_to_that_one(eventually: Eventually) -> None:
    scene = Scene(LetThrough(next_token=timedelta(0)), LetThrough(next_token=timedelta(0)))
    running = asyncio.create_task(scene.gates.run())
    await scene.commit("x")  # there is no token, so it waits for one
    await eventually(lambda: len(scene.storage.asked) == 2)
    assert scene.storage.done == []
    await scene.commit("y")
    await eventually(lambda: scene.storage.asked == ["x", "x", "y"])
    running.cancel()


async def test_what_failed_is_left_to_the_next_look() -> None:
    scene = Scene(LetThrough([ROW]))
    scene.storage.failure = ConnectionResetError("gone")
    await scene.commit("x")
    with pytest.raises(ConnectionResetError):
        await scene.gates.run_once()
    scene.storage.failure, scene.storage.with_room = None, ["x"]
    scene.gates.wake()
    await scene.gates.run_once()
    assert scene.relay.handed == [ROW]


async def test_nothing_is_let_through_once_it_is_closed() -> None:
    scene = Scene(LetThrough([ROW], next_token=timedelta(seconds=3_600)))
    await scene.commit("x")
    await scene.gates.run_once()
    await scene.gates.close()
    running = asyncio.create_task(scene.gates.run())
    await scene.commit("x")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert scene.storage.asked == ["x"]
    running.cancel()
