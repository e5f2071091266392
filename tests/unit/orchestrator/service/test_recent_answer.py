"""An answer that many ask for is fetched once in a while, and by one at a time."""

import asyncio
from collections import deque

import pytest

from orchestrator.service.recent_answer import RecentAnswer


class Question:
    """Answers with numbers from 1 on, or as it is told, when it is let."""

    def __init__(self) -> None:
        self.asked = 0
        self.errors: deque[Exception] = deque()
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self) -> int:
        self.asked += 1
        number = self.asked
        await self.open.wait()
        if self.errors:
            raise self.errors.popleft()
        return number


async def test_an_answer_serves_everybody_while_it_is_fresh() -> None:
    question = Question()
    recent = RecentAnswer(question, fresh_seconds=3_600, patience=60)
    assert [await recent.get() for _ in range(3)] == [1, 1, 1]
    assert question.asked == 1


async def test_an_answer_that_is_too_old_is_fetched_anew() -> None:
    recent = RecentAnswer(Question(), fresh_seconds=0, patience=60)
    assert [await recent.get() for _ in range(3)] == [1, 2, 3]


async def test_whoever_asks_meanwhile_waits_for_the_same_answer() -> None:
    question = Question()
    question.open.clear()
    recent = RecentAnswer(question, fresh_seconds=0, patience=60)
    many = [asyncio.create_task(recent.get()) for _ in range(5)]
    await asyncio.sleep(0)
    question.open.set()
    assert await asyncio.gather(*many) == [1] * 5


async def test_an_answer_that_does_not_come_is_not_asked_for_twice_and_serves_when_it_has_come() -> None:
    question = Question()
    question.open.clear()
    recent = RecentAnswer(question, fresh_seconds=3_600, patience=0.01)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await recent.get()
    assert question.asked == 1
    question.open.set()
    assert await recent.get() == 1


async def test_an_error_is_an_answer_too() -> None:
    question = Question()
    question.errors.append(OSError("gone"))
    recent = RecentAnswer(question, fresh_seconds=0, patience=60)
    with pytest.raises(OSError, match="gone"):
        await recent.get()
    assert await recent.get() == 2


async def test_a_dear_answer_is_left_to_rest_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(RecentAnswer, "_now", lambda _: now)

    async def dear() -> float:
        nonlocal now
        now += 2
        return now

    recent = RecentAnswer(dear, fresh_seconds=5, patience=60, rest=20)
    assert await recent.get() == 2
    now = 2 + 39
    assert await recent.get() == 2
    now = 2 + 41
    assert await recent.get() == 45
    assert recent.seconds == 2


async def test_nothing_is_left_running_when_it_is_closed() -> None:
    question = Question()
    question.open.clear()
    recent = RecentAnswer(question, fresh_seconds=0, patience=0.01)
    with pytest.raises(TimeoutError):
        await recent.get()
    await recent.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
