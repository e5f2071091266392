"""Reports of workers: one effect each, whatever comes twice, late, forged or broken."""

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from messaging import topology
from schemas.messages import AgentError, AgentResult
from schemas.statuses import ReportStatus
from tests.conftest import Eventually
from tests.integration.documents import agent, one_block, workflow
from tests.integration.system import System, completed

ONE = workflow({"one": agent("by-hand", next_step="two"), "two": agent("by-hand")})
DUPLICATE = "DUPLICATE duplicate_result"


async def started(system: System, document: Any = ONE, *, step: str = "one") -> tuple[UUID, UUID]:
    """Start a run whose tasks are answered by hand; return its id and the task id of *step*."""
    if not system.replicas:
        await system.start_replica()
    await system.broker.declare([], [topology.agent_queue("by-hand")])
    run_id = await system.submit(document)
    await system.step_is(run_id, step, "QUEUED")
    return run_id, (await system.task_ids(run_id))[step]


async def counted(system: System, eventually: Eventually, key: str, number: int) -> None:
    """Wait until all replicas together have given an answer so often."""
    await eventually(lambda: system.verdicts().get(key, 0) >= number)
    assert system.verdicts()[key] == number


async def test_the_same_result_a_hundred_times_at_once_on_two_replicas_has_one_effect(
    system: System, eventually: Eventually
) -> None:
    await system.start_replica()
    await system.start_replica()
    run_id, task_id = await started(system)
    await system.report(*[completed(run_id, task_id, "first")] * 100)
    await counted(system, eventually, DUPLICATE, 99)
    steps = await system.steps(run_id)
    assert {name: (step["status"], step["attempt"]) for name, step in steps.items()} == {
        "one": ("COMPLETED", 1),
        "two": ("QUEUED", 1),
    }
    assert steps["one"]["output"] == "first"

    async def waiting() -> bool:
        return (await system.broker.check_queue("agent.by-hand")).ready == 2

    await eventually(waiting)


async def test_a_hundred_repeated_results_of_the_last_branch_join_the_block_once(
    system: System, eventually: Eventually
) -> None:
    await system.start_replica()
    await system.start_replica()
    run_id, _ = await started(system, one_block(3, agent_name="by-hand"), step="b0")
    tasks = await system.task_ids(run_id)
    await system.report(*[completed(run_id, task, name) for name, task in tasks.items() for _ in range(50)])
    assert await system.ended(run_id) == "COMPLETED"
    await counted(system, eventually, DUPLICATE, 147)
    row = await system.run_row(run_id)
    assert row["output"] == {"b0": "b0", "b1": "b1", "b2": "b2"}
    block = (await system.steps(run_id))["block"]
    assert (block["branches_open"], block["branches_failed"]) == (0, 0)


async def test_a_result_of_an_unknown_run_has_no_effect(system: System, eventually: Eventually) -> None:
    run_id, task_id = await started(system)
    await system.report(completed(uuid4(), task_id))
    await counted(system, eventually, "REJECTED unknown_run", 1)
    assert await system.statuses(run_id) == {"one": "QUEUED"}
    await system.quiet()


async def test_a_result_with_a_wrong_task_id_has_no_effect(system: System, eventually: Eventually) -> None:
    run_id, _ = await started(system)
    await system.report(completed(run_id, uuid4()))
    await counted(system, eventually, "STALE unknown_task", 1)
    assert await system.statuses(run_id) == {"one": "QUEUED"}


async def test_a_result_that_names_another_run_than_its_tasks_has_no_effect_on_either(
    system: System, eventually: Eventually
) -> None:
    run_id, task_id = await started(system)
    other, _ = await started(system)
    await system.report(completed(other, task_id), completed(other, task_id))
    await counted(system, eventually, "STALE unknown_task", 2)
    assert await system.statuses(run_id) == {"one": "QUEUED"}
    assert await system.statuses(other) == {"one": "QUEUED"}


async def test_a_result_that_contradicts_an_earlier_one_changes_nothing(system: System, eventually: Eventually) -> None:
    run_id, task_id = await started(system)
    await system.report(completed(run_id, task_id, 1))
    await system.step_is(run_id, "one", "COMPLETED")
    error = AgentError(type="Late", message="no")
    await system.report(
        AgentResult(run_id=run_id, task_id=task_id, status=ReportStatus.FAILED, error=error, worker_id="w")
    )
    await counted(system, eventually, "STALE late_report", 1)
    step = (await system.steps(run_id))["one"]
    assert (step["status"], step["output"], step["error"]) == ("COMPLETED", 1, None)


async def test_reports_of_a_start_and_of_life_are_shown(system: System) -> None:
    run_id, task_id = await started(system)
    lives = AgentResult(run_id=run_id, task_id=task_id, status=ReportStatus.STARTED, worker_id="worker-7")
    await system.report(lives)
    await system.step_is(run_id, "one", "RUNNING")
    step = (await system.steps(run_id))["one"]
    assert step["worker_id"] == "worker-7"
    assert step["queued_at"] <= step["started_at"] == step["heartbeat_at"]


async def test_a_result_after_a_cancellation_has_no_effect(system: System, eventually: Eventually) -> None:
    run_id, task_id = await started(system)
    await system.cancel(run_id, "enough")
    assert await system.ended(run_id) == "CANCELLED"
    await system.report(completed(run_id, task_id))
    await counted(system, eventually, "STALE late_report", 1)
    run = await system.run_row(run_id)
    assert (run["status"], run["error"]) == ("CANCELLED", {"code": "cancelled", "message": "enough"})
    assert await system.statuses(run_id) == {"one": "CANCELLED"}
    await system.quiet()


async def test_cancelling_twice_is_cancelling_once(system: System, eventually: Eventually) -> None:
    run_id, _ = await started(system, one_block(5, agent_name="by-hand"), step="b0")
    await system.cancel(run_id, "first")
    await system.cancel(run_id, "second")
    await counted(system, eventually, "DUPLICATE run_is_final", 1)
    assert (await system.run_row(run_id))["error"]["message"] == "first"
    assert set((await system.statuses(run_id)).values()) == {"CANCELLED"}


async def test_cancelling_what_does_not_exist_or_has_ended_changes_nothing(
    system: System, eventually: Eventually
) -> None:
    run_id, task_id = await started(system, workflow({"one": agent("by-hand")}))
    await system.report(completed(run_id, task_id))
    assert await system.ended(run_id) == "COMPLETED"
    await system.cancel(run_id)
    await system.cancel(uuid4())
    await counted(system, eventually, "STALE run_is_final", 1)
    await counted(system, eventually, "REJECTED unknown_run", 1)
    assert await system.status(run_id) == "COMPLETED"
    await system.quiet()


async def test_a_cancellation_that_races_the_last_result_leaves_one_final_status(system: System) -> None:
    await system.start_replica()
    await system.start_replica()
    runs = [await started(system, workflow({"one": agent("by-hand")})) for _ in range(10)]
    for run_id, task_id in runs:
        await system.report(completed(run_id, task_id))
        await system.cancel(run_id)
    for run_id, _ in runs:
        status = await system.ended(run_id)
        assert await system.statuses(run_id) == {"one": status}
    await system.quiet()
    assert all([await system.status(run_id) in {"COMPLETED", "CANCELLED"} for run_id, _ in runs])


async def test_a_client_that_waits_is_told_of_the_cancellation(system: System, eventually: Eventually) -> None:
    await system.start_replica()
    run_id = uuid4()
    replies = await system.broker.consume(topology.reply_queue("test"), prefetch=1)
    request = {"version": 1, "run_id": str(run_id), "workflow": ONE}
    await system.publish(
        topology.RUNS_QUEUE.name, json.dumps(request).encode(), reply_to=topology.reply_queue("test").name
    )
    await eventually(lambda: system.status(run_id))
    await system.cancel(run_id, "enough")
    (reply,) = await replies.receive(1)
    await replies.ack([reply])
    told = json.loads(reply.body)
    assert (told["status"], told["error"]["code"]) == ("CANCELLED", "cancelled")


@pytest.mark.parametrize("queue", [topology.RESULTS_QUEUE.name, topology.COMMANDS_QUEUE.name])
async def test_what_cannot_be_read_is_dead_lettered_once_and_the_next_is_applied(system: System, queue: str) -> None:
    run_id, task_id = await started(system, workflow({"one": agent("by-hand")}))
    bad = [b"", b"{", b'{"version":1}', b'{"version":7}', b'{"version":1,"run_id":"x","output":NaN}', b"[" * 100_000]
    for body in bad:
        await system.publish(queue, body)
    await system.report(completed(run_id, task_id))
    assert await system.ended(run_id) == "COMPLETED"
    letters = await system.dead_letters(len(bad))
    assert {letter["body"] for letter in letters} == set(bad)
    assert {letter["queue"] for letter in letters} == {queue}
    reasons = [letter["code"] for letter in letters]
    assert sorted(reasons) == ["malformed_message"] * 5 + ["unsupported_version"]
    await system.quiet()


async def test_results_that_arrive_while_no_replica_runs_are_applied_by_the_next(system: System) -> None:
    run_id, _ = await started(system, one_block(200, agent_name="by-hand"), step="b0")
    await system.end(system.replicas[0], crash=True)
    tasks = await system.task_ids(run_id)
    await system.report(*(completed(run_id, task, name) for name, task in tasks.items()))
    await system.start_replica()
    assert await system.ended(run_id) == "COMPLETED"
    assert len((await system.run_row(run_id))["output"]) == 200
