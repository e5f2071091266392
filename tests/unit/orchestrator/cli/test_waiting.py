"""What an unfinished step waits for, in words and as data."""

from dataclasses import MISSING, asdict, replace
from dataclasses import fields as dataclass_fields
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from messaging.port import QueueDepth
from orchestrator.cli.waiting import Queues, WaitingFor, waiting_for, wants_queue, words
from orchestrator.storage.queries import ChildView, StepView
from schemas.statuses import RunStatus, StepStatus

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)
NOT_ASKED = Queues({}, unknown_agent_after=60.0)


def step(status: StepStatus, **fields: Any) -> StepView:
    given = {"step_id": "s", "agent_name": "x", "attempt": 1, "created_at": NOON, "queued_at": NOON} | fields
    required = [field.name for field in dataclass_fields(StepView) if field.default is MISSING]
    return StepView(status=status, **(dict.fromkeys(set(required) - {"status"}) | given))


BLOCK = step(
    StepStatus.RUNNING,
    step_id="block",
    agent_name=None,
    max_parallelism=7,
    branches_total=20,
    branches_open=12,
    branches_dispatched=7,
)
QUEUED = step(StepStatus.QUEUED)


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def asked(depth: QueueDepth | None) -> Queues:
    return Queues({"x": depth}, unknown_agent_after=60.0)


def awaited(view: StepView, block: StepView | None = None, queues: Queues = NOT_ASKED) -> WaitingFor:
    waiting = waiting_for(view, block, queues)
    assert waiting is not None
    return waiting


@pytest.mark.parametrize("status", [status for status in StepStatus if status.is_final])
def test_what_has_ended_waits_for_nothing(status: StepStatus) -> None:
    assert waiting_for(step(status), None, NOT_ASKED) is None
    assert waiting_for(replace(BLOCK, status=status), None, NOT_ASKED) is None


def test_a_branch_that_has_not_been_sent_waits_for_a_slot_of_its_gate() -> None:
    waiting = awaited(step(StepStatus.PENDING, parent_step_id="block", queued_at=None), BLOCK)
    assert words(waiting) == "a slot of its gate (7 of 7 taken)"
    assert asdict(waiting) == {"kind": "slot", "taken": 7, "limit": 7}


def test_a_branch_of_a_block_that_waits_at_a_gate_waits_for_its_block() -> None:
    block = replace(BLOCK, status=StepStatus.PENDING)
    waiting = awaited(step(StepStatus.PENDING, parent_step_id="block", queued_at=None), block)
    assert words(waiting) == "its block block, which waits itself"
    assert asdict(waiting) == {"kind": "block", "block_id": "block"}


def test_a_block_waits_for_its_branches() -> None:
    waiting = awaited(BLOCK)
    assert words(waiting) == "12 of its 20 branches"
    assert asdict(waiting) == {"kind": "branches", "open": 12, "total": 20}


@pytest.mark.parametrize(
    ("concurrency", "rate", "said"),
    [(3, None, "3 at once"), (3, 10.0, "3 at once, 10/s"), (None, None, "its limit was just lifted")],
)
def test_a_task_that_is_held_waits_for_a_slot_of_its_agent_whatever_the_broker_says(
    concurrency: int | None, rate: float | None, said: str
) -> None:
    view = replace(
        QUEUED,
        held_since=NOON,
        unsent_since=NOON,
        agent_max_concurrency=concurrency,
        agent_rate_per_second=rate,
    )
    waiting = awaited(view, queues=asked(QueueDepth(ready=5, consumers=0)))
    assert words(waiting) == f'a slot of its agent "x" ({said}), since 12:00:00'
    assert asdict(waiting) == {
        "kind": "agent_slot", "agent_name": "x", "since": NOON, "max_concurrency": concurrency, "rate_per_second": rate,
    }  # fmt: skip
    assert not wants_queue(view)
    assert wants_queue(QUEUED)


def test_a_task_that_is_not_confirmed_waits_to_be_sent() -> None:
    waiting = awaited(replace(QUEUED, unsent_since=later(1)), queues=asked(QueueDepth(1, 1)))
    assert words(waiting) == "its task to be sent, since 12:00:01 (is the broker out of reach?)"
    assert asdict(waiting) == {"kind": "sending", "since": later(1)}


def test_a_task_that_came_back_waits_for_a_first_worker_until_it_is_given_up() -> None:
    waiting = awaited(replace(QUEUED, unsent_since=NOON, unroutable_since=later(2)), queues=asked(None))
    assert words(waiting) == ('a worker: none has ever declared agent "x" (since 12:00:02; given up at 12:01:02)')
    assert asdict(waiting) == {"kind": "queue", "agent_name": "x", "since": later(2), "gives_up_at": later(62)}


def test_a_task_whose_queue_is_gone_waits_to_be_sent_again() -> None:
    waiting = awaited(QUEUED, queues=asked(None))
    assert words(waiting) == (
        'a worker: none has ever declared agent "x", or its queue was deleted; then the task is sent again'
    )
    assert asdict(waiting) == {"kind": "queue", "agent_name": "x", "since": None, "gives_up_at": None}


@pytest.mark.parametrize(
    ("depth", "said"),
    [
        (QueueDepth(ready=4, consumers=0), "a worker: none consumes agent.x now, 4 tasks wait"),
        (QueueDepth(ready=1, consumers=1), "a worker: 1 consumes agent.x, 1 task waits"),
        (QueueDepth(ready=12, consumers=3), "a worker: 3 consume agent.x, 12 tasks wait"),
    ],
)
def test_a_task_in_its_queue_waits_for_a_worker(depth: QueueDepth, said: str) -> None:
    waiting = awaited(QUEUED, queues=asked(depth))
    assert words(waiting) == said
    assert asdict(waiting) == {
        "kind": "worker",
        "agent_name": "x",
        "since": NOON,
        "consumers": depth.consumers,
        "tasks_ready": depth.ready,
    }


def test_without_an_answer_of_the_broker_it_says_so() -> None:
    waiting = awaited(QUEUED)
    assert words(waiting) == "a worker for agent.x (the broker was not asked)"
    assert asdict(waiting)["consumers"] is None


def test_a_running_attempt_tells_of_its_worker() -> None:
    running = step(StepStatus.RUNNING, attempt=2, worker_id="w-1", started_at=later(1), heartbeat_at=later(31))
    waiting = awaited(running)
    assert words(waiting) == "attempt 2 on worker w-1, since 12:00:01 (last sign of life 12:00:31)"
    assert asdict(waiting) == {
        "kind": "attempt",
        "attempt": 2,
        "worker_id": "w-1",
        "since": later(1),
        "last_sign_of_life": later(31),
        "due_at": None,
        "sent_again_at": None,
    }
    assert words(awaited(replace(running, due_at=later(70)))).endswith("; overdue at 12:01:10")


def test_an_attempt_that_fell_silent_tells_when_its_task_was_sent_again() -> None:
    silent = step(StepStatus.RUNNING, worker_id="w-1", started_at=later(1), heartbeat_at=later(2), queued_at=later(95))
    assert words(awaited(silent)).endswith("(last sign of life 12:00:02); its task was sent again at 12:01:35")


CALLS = step(StepStatus.QUEUED, agent_name=None, sub_workflow_id="below")
CHILD = UUID(int=7)


def test_a_sub_workflow_waits_for_its_run() -> None:
    assert words(awaited(CALLS)) == 'an orchestrator that takes the request for a run of workflow "below"'
    running = replace(CALLS, status=StepStatus.RUNNING, child=ChildView(CHILD, RunStatus.RUNNING), started_at=later(1))
    assert words(awaited(running)) == f"run {CHILD}, since 12:00:01"
    assert words(awaited(replace(running, due_at=later(61)))) == f"run {CHILD}, since 12:00:01; overdue at 12:01:01"
    assert asdict(awaited(running)) == {
        "kind": "run",
        "workflow_id": "below",
        "run_id": CHILD,
        "since": later(1),
        "due_at": None,
    }


def test_a_sub_workflow_whose_request_is_not_sent_waits_for_that() -> None:
    assert words(awaited(replace(CALLS, unsent_since=NOON))).startswith("its task to be sent, since 12:00:00")


def test_no_queue_tells_what_a_sub_workflow_waits_for() -> None:
    assert [wants_queue(view) for view in (QUEUED, CALLS)] == [True, False]
