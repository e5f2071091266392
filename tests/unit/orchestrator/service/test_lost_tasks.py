"""Which dead letters mean that a task is lost."""

import asyncio
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from messaging.dead_letters import REASON_HEADER
from messaging.port import Delivery
from orchestrator.engine import codes
from orchestrator.engine.decision import Verdict
from orchestrator.engine.inputs import TaskUndeliverable
from orchestrator.service import lost_tasks as module
from orchestrator.service.batch import Answer
from orchestrator.service.lost_tasks import LostTasks, lost_tasks
from schemas.codec import encode
from schemas.messages import AgentTask
from tests.services.waiting import eventually

TASK = AgentTask(task_id=uuid.uuid4(), run_id=uuid.uuid4(), step_id="step", agent_name="a", attempt=1, input=None)
LOST = TaskUndeliverable(TASK.run_id, "step", TASK.task_id, "worker_lost")
JUDGED = replace(LOST, silent_after=timedelta(seconds=90))  # three times what the reconciler's patience is by default


def death(reason: str) -> dict[str, Any]:
    return {"reason": reason, "queue": "agent.a", "exchange": "orchestrator.tasks", "routing-keys": ["a"], "count": 1}


def letter(headers: Mapping[str, Any], body: bytes | None = None) -> Delivery:
    return Delivery(
        queue="orchestrator.dead-letters",
        exchange="orchestrator.dead-letters",
        routing_key="a",
        type="AgentTask",
        message_id="m",
        body=encode(TASK) if body is None else body,
        correlation_id=None,
        reply_to=None,
        headers=headers,
        redelivered=False,
        tag=(1, 1),
    )


def test_a_task_beyond_its_queues_delivery_limit_is_lost() -> None:
    assert lost_tasks([letter({"x-death": [death("delivery_limit")]})]) == [LOST]


def test_only_the_last_death_counts() -> None:
    replayed = letter({"x-death": [death("delivery_limit"), death("expired")]})
    expired = letter({"x-death": [death("expired"), death("delivery_limit")]})
    assert lost_tasks([expired, replayed]) == [LOST]


@pytest.mark.parametrize("reason", ["expired", "rejected", "maxlen", "something new"])
def test_a_task_that_died_otherwise_was_in_nobodys_hands(reason: str) -> None:
    assert lost_tasks([letter({"x-death": [death(reason)]})]) == []


def test_what_a_service_refused_is_not_lost_though_it_died_before() -> None:
    refused = letter({"x-death": [death("delivery_limit")], REASON_HEADER: "malformed_message"})
    assert lost_tasks([refused]) == []


@pytest.mark.parametrize("body", [b"", b"no json", b'{"version": 1}', b'{"version": 1, "run_id": "x"}'])
def test_what_is_no_task_is_left_out(body: bytes) -> None:
    assert lost_tasks([letter({"x-death": [death("delivery_limit")]}, body)]) == []


@pytest.mark.parametrize("deaths", [None, [], "delivery_limit", ["delivery_limit"], [{}], {"reason": "delivery_limit"}])
def test_a_header_that_anybody_may_have_written_is_never_an_error(deaths: object) -> None:
    assert lost_tasks([letter({"x-death": deaths}), letter({})]) == []


# Judging them


HEARD_FROM = Answer(Verdict.STALE, codes.HEARD_FROM)


class Driver:
    """Gives the prepared answers, and keeps what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.driven: list[Sequence[TaskUndeliverable]] = []
        self._answers = deque(answers)

    async def drive(self, inputs: Sequence[TaskUndeliverable]) -> list[Answer]:
        self.driven.append(inputs)
        return [self._answers.popleft() for _ in inputs]


def pending(driver: Driver, *letters: Delivery) -> LostTasks:
    tasks = LostTasks(driver)  # type: ignore[arg-type]
    tasks.add(letters)
    return tasks


@pytest.mark.parametrize("answer", [Answer(Verdict.APPLIED, ""), Answer(Verdict.STALE, codes.UNKNOWN_TASK)])
async def test_an_attempt_that_is_over_is_judged_once(answer: Answer) -> None:
    driver = Driver(answer)
    tasks = pending(driver, letter({"x-death": [death("delivery_limit")]}), letter({}))
    assert await tasks.run_once() == 0
    assert await tasks.run_once() == 0
    assert driver.driven == [[JUDGED]]


async def test_an_attempt_whose_worker_is_heard_of_is_judged_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_AGAIN_SECONDS", 0.0)
    driver = Driver(HEARD_FROM, HEARD_FROM, Answer(Verdict.APPLIED, ""))
    running = asyncio.create_task(pending(driver, letter({"x-death": [death("delivery_limit")]})).run())
    await eventually(lambda: len(driver.driven) == 3)
    running.cancel()


async def test_the_same_dead_letter_twice_is_one_task_to_judge() -> None:
    driver = Driver(HEARD_FROM, HEARD_FROM)
    same = letter({"x-death": [death("delivery_limit")]})
    assert await pending(driver, same, same).run_once() == 1
    assert driver.driven == [[JUDGED]]


async def test_many_are_judged_a_page_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    others = [TASK.model_copy(update={"task_id": uuid.uuid4()}) for _ in range(3)]
    letters = [letter({"x-death": [death("delivery_limit")]}, encode(task)) for task in others]
    driver = Driver(*[HEARD_FROM] * 3)
    assert await pending(driver, *letters).run_once() == 3
    assert [len(page) for page in driver.driven] == [2, 1]
