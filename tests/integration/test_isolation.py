"""One run's trouble is not another's: poisoned inputs, locked rows, messages that are too large."""

from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from structlog.testing import capture_logs

from messaging import topology
from messaging.port import OutgoingMessage
from orchestrator.engine.inputs import TaskReported
from orchestrator.service.batch import Batch
from orchestrator.service.requests import RequestReader
from orchestrator.storage import unit_of_work
from orchestrator.storage.dead_letters import replay
from schemas.codec import encode
from schemas.messages import RunRequest
from schemas.statuses import ResultStatus
from tests.integration.documents import agent, workflow
from tests.integration.system import System, completed

RUNS = topology.RUNS_QUEUE.name
HELLO = workflow({"one": agent("echo", input_mapping={"said": "${workflow.input}"})})
BY_HAND = workflow({"one": agent("by-hand")})


async def echo(input: Any) -> Any:
    return input


async def started(system: System) -> tuple[UUID, UUID]:
    await system.broker.declare([], [topology.agent_queue("by-hand")])
    run_id = await system.submit(BY_HAND)
    await system.step_is(run_id, "one", "QUEUED")
    return run_id, (await system.task_ids(run_id))["one"]


async def test_of_many_inputs_only_the_one_that_cannot_be_applied_is_dead_lettered(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    await system.start_replica()
    runs = dict([await started(system) for _ in range(7)])
    poison = list(runs)[3]
    decided = Batch.run

    async def picky(self: Batch, inputs: Any) -> Any:
        if any(isinstance(event, TaskReported) and event.run_id == poison for event in inputs):
            raise ArithmeticError("this one is poison\nand more")
        return await decided(self, inputs)

    monkeypatch.setattr(Batch, "run", picky)
    with capture_logs() as lines:
        await system.report(*(completed(run_id, task_id) for run_id, task_id in runs.items()))
        (letter,) = await system.stored_dead_letters(1)
        for run_id in runs:
            if run_id != poison:
                assert await system.ended(run_id) == "COMPLETED"
    assert str(poison) in letter["body"].decode()
    assert letter["code"] == "internal_error"
    assert letter["message"] == "ArithmeticError: this one is poison"
    assert [line["log_level"] for line in lines if line.get("action") == "input_failed"] == ["error"]
    assert await system.status(poison) == "RUNNING"
    monkeypatch.undo()
    await replay(system.database, [letter["id"]])  # it has the original effect
    assert await system.ended(poison) == "COMPLETED"
    await system.quiet()


async def test_a_request_that_the_database_cannot_hold_is_dead_lettered_and_its_neighbours_run(
    system: System,
) -> None:
    await system.start_replica()
    await system.start_worker(echo)
    good, bad = uuid4(), uuid4()
    messages = [
        OutgoingMessage("", RUNS, "RunRequest", str(uuid4()), encode(RunRequest(run_id=run_id, workflow=HELLO)), **more)
        for run_id, more in (
            (good, {}),
            (bad, {"reply_to": "x", "correlation_id": "NUL \0 is no text for Postgres"}),
        )
    ]
    await system.broker.publish(messages)
    (letter,) = await system.dead_letters(1)
    assert str(bad) in letter["body"].decode()
    assert await system.ended(good) == "COMPLETED"
    assert await system.status(bad) is None


async def test_a_request_that_cannot_be_read_for_a_bug_of_ours_is_dead_lettered_and_its_neighbours_run(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    await system.start_replica()
    await system.start_worker(echo)
    read = RequestReader.read

    async def picky(self: RequestReader, delivery: Any) -> Any:
        if b"poison" in delivery.body:
            raise ArithmeticError
        return await read(self, delivery)

    monkeypatch.setattr(RequestReader, "read", picky)
    good = await system.submit(HELLO)
    result = await system.run(HELLO, "poison")  # whoever waits is told
    (letter,) = await system.dead_letters(1)
    assert letter["code"] == "internal_error"
    assert result.status is ResultStatus.REJECTED
    assert result.error is not None
    assert (result.error.code, "kept among the dead letters" in result.error.message) == ("internal_error", True)
    assert await system.ended(good) == "COMPLETED"


async def test_a_run_whose_row_somebody_locks_does_not_stop_other_runs(system: System) -> None:
    await system.start_replica()
    locked, locked_task = await started(system)
    free, free_task = await started(system)
    other: asyncpg.Connection = await asyncpg.connect(system.database_url)
    try:
        async with other.transaction():
            await other.execute("SELECT * FROM runs WHERE id = $1 FOR UPDATE", locked)
            await system.report(completed(locked, locked_task))
            await system.somebody_waits_for_a_lock()
            await system.report(completed(free, free_task))
            assert await system.ended(free) == "COMPLETED"
            assert await system.status(locked) == "RUNNING"
    finally:
        await other.close()
    assert await system.ended(locked) == "COMPLETED"


@pytest.fixture
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no sweep come to help in the time of a test."""
    monkeypatch.setattr(unit_of_work, "HAND_OVER_SECONDS", 600.0)


@pytest.mark.usefixtures("no_sweep")
async def test_a_task_that_is_too_large_for_the_broker_fails_its_step(system: System) -> None:
    await system.start_replica(broker={"max_message_bytes": 20_000})
    await system.start_worker(echo)
    steps = {
        "one": agent("echo", input_mapping={"x": "y" * 8_000}, next_step="two"),
        "two": agent("echo", input_mapping={"a": "${one.output}", "b": "${one.output}", "c": "${one.output}"}),
    }
    result = await system.run(workflow(steps))
    assert result.status is ResultStatus.FAILED
    assert result.error is not None
    assert (await system.steps(result.run_id))["two"]["error"]["code"] == "payload_too_large"
    await system.quiet()


@pytest.mark.usefixtures("no_sweep")
async def test_a_client_whose_result_is_too_large_for_the_broker_is_told_so(system: System) -> None:
    async def large(input: Any) -> str:
        return "y" * 30_000

    await system.start_replica(broker={"max_message_bytes": 20_000})
    await system.start_worker(large)
    result = await system.run(workflow({"one": agent("large")}))
    assert result.run_id is not None
    assert await system.status(result.run_id) == "COMPLETED"
    assert result.error is not None
    assert result.error.code == "payload_too_large"
