import asyncio
import uuid

import pytest

from agent_worker.suspects import SUSPECT_FROM, Suspects, turn
from tests.conftest import Eventually

IN_TURN = sorted((uuid.uuid4() for _ in range(5)), key=lambda task_id: turn(task_id, SUSPECT_FROM))


class Line:
    """Suspects, and which of them have begun."""

    def __init__(self) -> None:
        self.suspects = Suspects()
        self.begun: list[uuid.UUID] = []

    def arrives(self, task_id: uuid.UUID, deliveries: int = SUSPECT_FROM) -> "asyncio.Task[None]":
        return asyncio.create_task(self._begin(task_id, deliveries))

    async def _begin(self, task_id: uuid.UUID, deliveries: int) -> None:
        await self.suspects.begin(task_id, deliveries)
        self.begun.append(task_id)


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def gathering(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Suspects gather for a moment only."""
    monkeypatch.setattr("agent_worker.suspects.GATHERING", 0.02)
    return monkeypatch


async def ticks() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def all_run(line: Line, eventually: Eventually, count: int) -> None:
    for number in range(1, count + 1):
        await eventually(lambda number=number: len(line.begun) == number)
        line.suspects.end()


@pytest.mark.usefixtures("gathering")
@pytest.mark.parametrize("arriving", [IN_TURN, IN_TURN[::-1]])
async def test_suspects_run_in_turn_in_whatever_order_they_arrive(
    line: Line, eventually: Eventually, arriving: list[uuid.UUID]
) -> None:
    tasks = [line.arrives(task_id) for task_id in arriving]
    await all_run(line, eventually, len(tasks))
    assert line.begun == IN_TURN


@pytest.mark.usefixtures("gathering")
async def test_after_the_next_delivery_they_run_in_opposite_order(line: Line, eventually: Eventually) -> None:
    tasks = [line.arrives(task_id, SUSPECT_FROM + 1) for task_id in IN_TURN]
    await all_run(line, eventually, len(tasks))
    assert line.begun == IN_TURN[::-1]


async def test_whose_turn_is_first_is_waited_for_while_it_still_gathers(
    line: Line, eventually: Eventually, gathering: pytest.MonkeyPatch
) -> None:
    first, second = IN_TURN[:2]
    tasks = [line.arrives(first)]
    await asyncio.sleep(0)
    gathering.setattr("agent_worker.suspects.GATHERING", 0)
    tasks.append(line.arrives(second))
    await all_run(line, eventually, len(tasks))
    assert line.begun == [first, second]


async def test_only_one_runs_at_a_time(line: Line, eventually: Eventually, gathering: pytest.MonkeyPatch) -> None:
    gathering.setattr("agent_worker.suspects.GATHERING", 0)
    tasks = [line.arrives(IN_TURN[1])]
    await eventually(lambda: len(line.begun) == 1)
    tasks.append(line.arrives(IN_TURN[0]))  # an earlier turn does not help
    await ticks()
    assert len(line.begun) == 1
    line.suspects.end()
    await asyncio.wait(tasks)
    assert line.begun == [IN_TURN[1], IN_TURN[0]]


async def test_one_that_is_given_up_while_it_gathers_is_not_waited_for(
    line: Line, gathering: pytest.MonkeyPatch
) -> None:
    gathering.setattr("agent_worker.suspects.GATHERING", 600)
    given_up = line.arrives(IN_TURN[0])
    await ticks()
    gathering.setattr("agent_worker.suspects.GATHERING", 0)
    other = line.arrives(IN_TURN[1])
    await ticks()
    assert line.begun == []
    given_up.cancel()
    await asyncio.wait([given_up, other])
    assert line.begun == [IN_TURN[1]]


async def test_one_that_is_given_up_just_when_its_turn_has_come_passes_it_on(
    line: Line, gathering: pytest.MonkeyPatch
) -> None:
    gathering.setattr("agent_worker.suspects.GATHERING", 0)
    await line.arrives(IN_TURN[2])
    given_up, other = line.arrives(IN_TURN[0]), line.arrives(IN_TURN[1])
    await ticks()
    line.suspects.end()
    given_up.cancel()
    await asyncio.wait([given_up, other])
    assert line.begun == [IN_TURN[2], IN_TURN[1]]


def test_of_two_suspects_each_goes_first_once_in_two_deliveries() -> None:
    guilty = uuid.uuid4()
    for neighbour in (uuid.uuid4() for _ in range(100)):
        first = [turn(neighbour, count) < turn(guilty, count) for count in (SUSPECT_FROM, SUSPECT_FROM + 1)]
        assert sorted(first) == [False, True]
