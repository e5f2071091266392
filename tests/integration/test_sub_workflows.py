"""Steps that runs of other workflows carry out."""

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest

from messaging import topology
from orchestrator.engine.inputs import CancelRequested
from orchestrator.service.relay import Relay
from orchestrator.storage.definitions import register_workflow
from orchestrator.storage.postgres import PostgresStorage
from orchestrator.storage.queries import Selection, get_run, list_runs
from schemas.codec import encode
from schemas.messages import RunRequest, RunResult
from schemas.statuses import ResultStatus, RunStatus
from schemas.validation import parse_workflow
from tests.conftest import Eventually
from tests.integration.by_hand import driver_without_relay, requested
from tests.integration.documents import Document, agent, block, workflow
from tests.integration.system import System, completed


def starts(workflow_id: str, **fields: Any) -> Document:
    """Return a step that a run of another workflow carries out."""
    return {"type": "sub_workflow", "workflow_id": workflow_id, **fields}


def parent(**fields: Any) -> Document:
    """Return a workflow of one step, ``calls``, that starts a run of ``child``."""
    return workflow({"calls": starts("child", **fields)}, name="parent")


def child(agent_name: str = "echo", **fields: Any) -> Document:
    """Return the workflow ``child``, of one agent step, ``works``, that passes its input on."""
    return workflow({"works": agent(agent_name, input_mapping={"got": "${workflow.input}"}, **fields)}, name="child")


async def echo(input: Any) -> Any:
    return input


async def fails(input: Any) -> Any:
    raise ValueError("no luck")


class Held:
    """An agent that waits until it is let go."""

    def __init__(self) -> None:
        self.begun = 0
        self.cancelled = 0
        self.released = asyncio.Event()

    async def work(self, input: Any) -> Any:
        self.begun += 1
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return input

    def named(self) -> Any:
        async def held(input: Any) -> Any:
            return await self.work(input)

        return held


@pytest.fixture
async def held(system: System) -> AsyncIterator[Held]:
    """A replica, and a worker with agents that echo, fail and wait."""
    held = Held()
    await system.start_replica()
    await system.start_worker(echo, fails, held.named())
    yield held
    held.released.set()


async def register(system: System, *documents: Document) -> None:
    for document in documents:
        await register_workflow(system.database, parse_workflow(document), document)


async def child_of(system: System, run_id: UUID, step_id: str = "calls") -> UUID:
    """Return the run that carries out the current attempt of a step."""
    task_id = (await system.task_ids(run_id))[step_id]
    assert isinstance(task_id, UUID)
    return task_id


async def running_child(system: System, run_id: UUID, step_id: str = "calls") -> UUID:
    """Wait until a step's run has started, and return that."""
    await system.step_is(run_id, step_id, "RUNNING")
    return await child_of(system, run_id, step_id)


async def all_runs_are(system: System, *statuses: str) -> None:
    rows = await system.fetch("SELECT status FROM runs ORDER BY created_at")
    assert [row["status"] for row in rows] == list(statuses)


async def test_a_step_comes_to_what_the_run_of_its_workflow_comes_to(system: System, held: Held) -> None:
    await register(system, child())
    document = workflow(
        {
            "first": agent(input_mapping={"n": 3}, next_step="calls"),
            "calls": starts("child", input_mapping={"twice": ["${first.output.n}"] * 2}, next_step="last"),
            "last": agent(input_mapping={"all": "${calls.output}"}),
        }
    )
    run_id = uuid4()
    result = await system.run(document, run_id=run_id)
    assert (result.status, result.output) == (ResultStatus.COMPLETED, {"all": {"got": {"twice": [3, 3]}}})
    calls = (await system.steps(run_id))["calls"]
    below = await system.run_row(calls["task_id"])
    assert (below["parent_run_id"], below["parent_step_id"]) == (run_id, "calls")
    assert (below["workflow_id"], below["input"], json.loads(below["ancestors"])) == (
        "child",
        {"twice": [3, 3]},
        ["tested"],
    )
    assert calls["queued_at"] <= calls["started_at"] == below["started_at"] <= below["finished_at"]
    await system.quiet()


async def test_the_version_that_a_step_names_is_run_and_else_the_newest(system: System, held: Held) -> None:
    await register(system, *(child() | {"version": number, "description": number} for number in ("1.0", "2.0", "3.0")))
    for given, ran in (({"version": "2.0"}, "2.0"), ({}, "3.0")):
        run_id = uuid4()
        await system.run(parent(**given), run_id=run_id)
        assert (await system.run_row(await child_of(system, run_id)))["workflow_version"] == ran


async def test_a_run_that_fails_fails_its_step_which_says_why(system: System, held: Held) -> None:
    await register(system, child("fails"))
    run_id = uuid4()
    result = await system.run(parent(), run_id=run_id)
    assert result.status is ResultStatus.FAILED
    below = await child_of(system, run_id)
    error = (await system.steps(run_id))["calls"]["error"]
    assert error["code"] == "sub_workflow_failed"
    assert error["message"] == 'the run of sub-workflow "child" failed: step "works" failed: no luck'
    assert (error["details"]["run_id"], error["details"]["workflow_id"]) == (str(below), "child")
    assert error["details"]["error"]["code"] == "step_failed"
    assert error["details"]["error"]["details"]["failed_steps"][0]["step_id"] == "works"
    await system.quiet()


async def test_a_failed_run_is_followed_by_another_where_the_step_is_tried_again(system: System, held: Held) -> None:
    await register(system, child("fails"))
    run_id = uuid4()
    retry = {"max_attempts": 3, "initial_interval_seconds": 0.01}
    result = await system.run(parent(retry=retry), run_id=run_id)
    assert result.status is ResultStatus.FAILED
    earlier = await system.fetch("SELECT task_id FROM step_attempts WHERE run_id = $1", run_id)
    below = await system.fetch("SELECT id FROM runs WHERE parent_run_id = $1", run_id)
    assert {row["id"] for row in below} == {row["task_id"] for row in earlier} | {await child_of(system, run_id)}
    assert len(below) == 3
    await system.quiet()


async def test_a_workflow_that_nobody_registered_fails_the_step_with_what_there_is(system: System, held: Held) -> None:
    await register(system, child())
    run_id = uuid4()
    result = await system.run(workflow({"calls": starts("chilled")}), run_id=run_id)
    assert result.status is ResultStatus.FAILED
    error = (await system.steps(run_id))["calls"]["error"]
    assert (error["code"], error["details"]["error"]["code"]) == ("sub_workflow_failed", "unknown_workflow")
    assert 'no workflow "chilled" is registered (did you mean "child"?)' in error["message"]
    await system.quiet()


async def test_a_cancelled_run_takes_the_runs_below_it_along(system: System, held: Held) -> None:
    await register(system, child("held"), workflow({"calls": starts("child")}, name="between"))
    run_id = await system.submit(workflow({"calls": starts("between")}))
    between = await running_child(system, run_id)
    below = await running_child(system, between)
    await system.step_is(below, "works", "RUNNING")
    await system.cancel(run_id, "enough")
    assert [await system.ended(one) for one in (run_id, between, below)] == ["CANCELLED"] * 3
    await system.quiet()
    assert held.begun == held.cancelled == 1
    assert f"run {run_id}" in (await system.run_row(between))["error"]["message"]


async def test_a_run_that_somebody_cancels_fails_its_step_for_good(system: System, held: Held) -> None:
    await register(system, child("held"))
    run_id = await system.submit(parent(retry={"max_attempts": 3}))
    below = await running_child(system, run_id)
    await system.cancel(below, "wrong input")
    assert await system.ended(run_id) == "FAILED"
    error = (await system.steps(run_id))["calls"]["error"]
    assert (error["code"], error["message"]) == (
        "sub_workflow_cancelled",
        'the run of sub-workflow "child" was cancelled: wrong input',
    )
    await all_runs_are(system, "FAILED", "CANCELLED")
    await system.quiet()


async def test_a_run_that_takes_longer_than_its_step_may_is_cancelled(system: System, held: Held) -> None:
    await register(system, child("held"))
    run_id = await system.submit(parent(timeout_seconds=0.2))
    assert await system.ended(run_id) == "FAILED"
    below = await child_of(system, run_id)
    assert await system.ended(below) == "CANCELLED"
    assert (await system.steps(run_id))["calls"]["error"]["code"] == "timeout"
    await system.quiet()


async def test_a_run_whose_time_is_up_takes_the_runs_below_it_along(system: System, held: Held) -> None:
    await register(system, child("held"))
    run_id = await system.submit(parent() | {"timeout_seconds": 0.5})
    assert await system.ended(run_id) == "FAILED"
    assert await system.ended(await child_of(system, run_id)) == "CANCELLED"
    await system.quiet()


async def test_a_branch_whose_time_is_up_takes_its_run_along(system: System, held: Held) -> None:
    await register(system, child("held"))
    config = {"branches": {"slow": {"steps": ["calls"], "timeout_seconds": 0.5}}}
    document = workflow({"block": {"type": "fork_join", "fork_join_config": config}, "calls": starts("child")})
    run_id = await system.submit(document)
    assert await system.ended(run_id) == "FAILED"
    assert (await system.steps(run_id))["calls"]["error"]["code"] == "branch_timeout"
    assert await system.ended(await child_of(system, run_id)) == "CANCELLED"
    await system.quiet()


async def test_a_block_that_does_not_wait_for_a_branch_cancels_its_run(system: System, held: Held) -> None:
    await register(system, child("held"))
    steps = {"calls": starts("child"), "quick": agent("held", input_mapping={})}
    document = workflow({"block": block(list(steps), join_policy="any", on_decided="cancel"), **steps})
    run_id = await system.submit(document)
    below = await running_child(system, run_id)
    await system.step_is(below, "works", "RUNNING")
    quick = (await system.task_ids(run_id))["quick"]
    await system.report(completed(run_id, quick))
    assert await system.ended(run_id) == "COMPLETED"
    assert await system.ended(below) == "CANCELLED"
    await system.quiet()


async def test_runs_of_a_limited_block_go_one_after_the_other(system: System, held: Held) -> None:
    await register(system, child())
    steps = {name: starts("child", input_mapping={"n": name}) for name in ("a", "b", "c")}
    run_id = uuid4()
    result = await system.run(workflow({"block": block(list(steps), max_parallelism=1), **steps}), run_id=run_id)
    assert result.output == {name: {"got": {"n": name}} for name in steps}
    rows = await system.fetch("SELECT created_at, finished_at FROM runs WHERE parent_run_id = $1", run_id)
    times = sorted((row["created_at"], row["finished_at"]) for row in rows)
    assert all(before[1] <= after[0] for before, after in pairwise(times))
    await system.quiet()


async def test_each_iteration_of_a_loop_has_a_run_of_its_own(system: System, held: Held) -> None:
    await register(system, child())
    config = {"collection": "${workflow.input}", "loop_body": ["before", "calls"], "execution_mode": "parallel"}
    steps = {
        "loop": {"type": "loop", "loop_config": config},
        "before": agent(input_mapping={"item": "${loop.item}"}),
        "calls": starts("child", input_mapping={"item": "${before.output.item}", "at": "${loop.index}"}),
    }
    run_id = uuid4()
    result = await system.run(workflow(steps), [5, 7], run_id=run_id)
    assert [one["output"] for one in result.output["iterations"]] == [
        {"got": {"item": item, "at": at}} for at, item in enumerate([5, 7])
    ]
    below = await system.fetch("SELECT parent_step_id FROM runs WHERE parent_run_id = $1", run_id)
    assert {row["parent_step_id"] for row in below} == {"calls[0]", "calls[1]"}
    await system.quiet()


async def test_a_workflow_that_comes_back_to_itself_fails_the_step_that_closes_the_cycle(
    system: System, held: Held
) -> None:
    await register(
        system,
        workflow({"there": starts("pong")}, name="ping"),
        workflow({"back": starts("ping")}, name="pong"),
    )
    result = await system.run(None, workflow_id="ping")
    assert result.status is ResultStatus.FAILED
    assert result.error is not None
    assert '"ping" -> "pong" -> "ping"' in result.error.message
    rows = await system.fetch("SELECT error FROM step_executions WHERE step_id = 'back'")
    assert json.loads(rows[0]["error"])["code"] == "sub_workflow_cycle"
    await all_runs_are(system, "FAILED", "FAILED")
    await system.quiet()


async def test_runs_go_eight_deep_and_no_deeper(system: System, held: Held) -> None:
    names = [f"level-{number}" for number in range(1, 10)]
    chain = [workflow({"down": starts(below)}, name=name) for name, below in pairwise(names)]
    await register(system, *chain, workflow({"works": agent()}, name=names[-1]))
    assert (await system.run(None, workflow_id=names[1])).status is ResultStatus.COMPLETED
    assert await system.count("runs") == 8
    failed = await system.run(None, workflow_id=names[0])
    assert failed.error is not None
    assert "runs go 8 deep at most" in failed.error.message
    assert await system.count("runs") == 16
    await system.quiet()


# What is shown


async def test_a_step_and_its_runs_are_shown_together_and_runs_of_steps_are_listed_where_asked_for(
    system: System, held: Held
) -> None:
    await register(system, child("fails"))
    run_id = uuid4()
    await system.run(parent(retry={"max_attempts": 2, "initial_interval_seconds": 0.01}), run_id=run_id)
    [step] = (await get_run(system.database, run_id)).steps
    [earlier] = step.earlier_attempts
    assert (step.sub_workflow_id, step.sub_workflow_version) == ("child", None)
    assert step.child is not None
    assert earlier.child is not None
    assert {step.child.status, earlier.child.status} == {RunStatus.FAILED}
    for view in (step.child, earlier.child):
        shown = (await get_run(system.database, view.run_id)).summary
        assert (shown.parent_run_id, shown.parent_step_id) == (run_id, "calls")
    assert [run.run_id for run in await list_runs(system.database, Selection(), limit=10)] == [run_id]
    everything = await list_runs(system.database, Selection(children=True), limit=10)
    assert {run.run_id for run in everything} == {run_id, step.child.run_id, earlier.child.run_id}


# Messages that are lost, late, repeated or forged


async def test_a_request_that_comes_after_its_step_was_cancelled_starts_nothing(system: System, held: Held) -> None:
    await register(system, child("held"))
    run_id = await system.submit(parent())
    below = await running_child(system, run_id)
    await system.cancel(run_id)
    assert await system.ended(below) == "CANCELLED"
    await system.quiet()
    # As if the CancelRun had overtaken the request.
    await system.fetch("DELETE FROM runs WHERE id = $1", below)
    request = RunRequest(run_id=below, workflow_id="child", input={}, parent_run_id=run_id)
    await system.publish(topology.RUNS_QUEUE.name, encode(request))
    [letter] = await system.dead_letters(1)
    assert letter["code"] == "not_awaited"
    assert await system.status(below) is None
    await system.quiet()


async def test_a_run_whose_step_is_being_cancelled_waits_to_hear_of_it(system: System, held: Held) -> None:
    await register(system, child("held"))
    run_id = await system.submit(parent())
    below = await running_child(system, run_id)
    await system.fetch("DELETE FROM runs WHERE id = $1", below)
    async with system.database.transaction() as cancelling:
        await cancelling.execute("UPDATE runs SET status = 'CANCELLED' WHERE id = $1", run_id)
        await cancelling.execute("UPDATE step_executions SET status = 'CANCELLED' WHERE run_id = $1", run_id)
        request = RunRequest(run_id=below, workflow_id="child", input={}, parent_run_id=run_id)
        await system.publish(topology.RUNS_QUEUE.name, encode(request))
        await system.somebody_waits_for_a_lock()
    [letter] = await system.dead_letters(1)
    assert letter["code"] == "not_awaited"
    assert await system.status(below) is None


async def test_what_no_queue_takes_between_a_step_and_its_run_is_kept_for_when_there_is_one(system: System) -> None:
    await register(system, child())
    event = await requested(system.database, parent())
    driver = driver_without_relay(system.database)
    await driver.drive([event])
    await system.broker.declare(topology.EXCHANGES, ())
    relay = Relay(PostgresStorage(system.database), system.broker, driver, unknown_agent_after=0.0)

    async def kept() -> set[str]:
        for _ in range(2):
            await system.make_due()
            await relay.run_once()
        return {row["type"] for row in await system.fetch("SELECT type FROM outbox")}

    assert await kept() == {"RunRequest"}
    assert await system.statuses(event.run_id) == {"calls": "QUEUED"}
    await driver.drive([CancelRequested(event.run_id, None)])
    assert await kept() == {"RunRequest", "CancelRun"}
    await system.start_replica()
    await system.make_due()
    await system.quiet()
    assert await system.count("runs") == 1


async def test_nobody_can_make_a_run_the_child_of_another(system: System, held: Held) -> None:
    await register(system, child("held"))
    run_id = await system.submit(parent())
    below = await running_child(system, run_id)
    works = (await system.task_ids(below))["works"]
    for forged in (uuid4(), works):  # no attempt, and one of an agent
        for above in (run_id, below, uuid4(), forged):
            result = await system.run(None, workflow_id="child", run_id=forged, parent_run_id=above)
            assert (result.status, result.error and result.error.code) == (ResultStatus.REJECTED, "not_awaited")
    held.released.set()
    assert await system.ended(run_id) == "COMPLETED"
    assert await system.count("runs") == 2
    await system.quiet()


async def test_nobody_can_take_the_result_of_a_child_away_from_its_parent(
    system: System, held: Held, eventually: Eventually
) -> None:
    await register(system, child("held"))
    run_id = await system.submit(parent())
    below = await running_child(system, run_id)
    request = RunRequest(run_id=below, workflow_id="child", input={}, parent_run_id=run_id)
    await system.publish(topology.RUNS_QUEUE.name, encode(request), reply_to="elsewhere")
    await eventually(lambda: system.verdicts().get("DUPLICATE"))
    held.released.set()
    assert await system.ended(run_id) == "COMPLETED"
    assert (await system.run_row(below))["reply_to"] == topology.RESULTS_QUEUE.name
    await system.quiet()


async def publish_result(system: System, result: RunResult, correlation_id: str | None) -> None:
    await system.publish(
        topology.RESULTS_QUEUE.name, encode(result), type=RunResult.__name__, correlation_id=correlation_id
    )


async def test_results_of_attempts_that_are_over_or_never_were_have_no_effect(system: System, held: Held) -> None:
    await register(system, child())
    run_id = uuid4()
    await system.run(parent(), run_id=run_id)
    below = await child_of(system, run_id)
    over = RunResult(run_id=below, status=ResultStatus.CANCELLED, output=None, error=None)
    never = over.model_copy(update={"run_id": uuid4()})
    for result, correlation_id in (
        (over, f"{run_id}/{below}"),
        (over, f"{uuid4()}/{below}"),
        (never, f"{run_id}/{never.run_id}"),
    ):
        await publish_result(system, result, correlation_id)
    for correlation_id in (None, "nonsense", f"{run_id}", f"{run_id}/{never.run_id}"):
        await publish_result(system, over, correlation_id)
    letters = await system.dead_letters(4)
    assert {letter["code"] for letter in letters} == {"unknown_correlation"}
    assert (await system.statuses(run_id))["calls"] == "COMPLETED"
    await system.quiet()


async def taken_back(system: System, status: str) -> tuple[UUID, UUID]:
    """Let a run and the one below it complete, and make the step of the first one be *status* as it was before."""
    await register(system, child())
    run_id = await system.submit(parent())
    await system.ended(run_id)
    await system.quiet()
    unfinished = "finished_at = NULL, output = NULL"
    await system.fetch(f"UPDATE runs SET status = 'RUNNING', {unfinished} WHERE id = $1", run_id)
    step = f"status = $2, {unfinished}, queued_at = queued_at - interval '1 minute'"
    await system.fetch(f"UPDATE step_executions SET {step} WHERE run_id = $1", run_id, status)
    return run_id, await child_of(system, run_id)


async def look_for_strays(system: System) -> int:
    return await system.replicas[0].replica.strays.run_once()


async def test_a_request_that_is_lost_is_sent_again(system: System, held: Held) -> None:
    run_id, below = await taken_back(system, "QUEUED")
    await system.fetch("DELETE FROM runs WHERE id = $1", below)
    assert await look_for_strays(system) == 1
    assert await look_for_strays(system) == 0
    assert await system.ended(run_id) == "COMPLETED"
    assert await system.status(below) == "COMPLETED"
    await system.quiet()


async def test_a_result_that_is_lost_is_read_from_the_run(system: System, held: Held) -> None:
    run_id, below = await taken_back(system, "RUNNING")
    assert await look_for_strays(system) == 0  # it may still be on its way
    await system.fetch("UPDATE runs SET finished_at = finished_at - interval '1 minute' WHERE id = $1", below)
    assert await look_for_strays(system) == 1
    assert await system.ended(run_id) == "COMPLETED"
    assert (await system.run_row(run_id))["output"] == {"got": {}}
    await system.quiet()


async def test_a_cancellation_that_is_lost_is_made_up_for(system: System, held: Held) -> None:
    await register(system, child("held"))
    run_id = await system.submit(parent())
    below = await running_child(system, run_id)
    now = "status = 'CANCELLED', finished_at = now()"
    await system.fetch(f"UPDATE step_executions SET {now} WHERE run_id = $1", run_id)
    await system.fetch(f"UPDATE runs SET {now} WHERE id = $1", run_id)
    assert await look_for_strays(system) == 1
    assert await system.ended(below) == "CANCELLED"
    await system.quiet()


async def test_a_cancellation_that_meets_the_start_of_the_run_leaves_nothing_running(
    system: System, held: Held, eventually: Eventually
) -> None:
    await register(system, child("held"))
    await system.start_replica()

    async def cancelled_at_once() -> str:
        run_id = await system.submit(parent())
        await eventually(lambda: system.status(run_id))
        await system.cancel(run_id)
        return await system.ended(run_id)

    assert set(await asyncio.gather(*(cancelled_at_once() for _ in range(30)))) == {"CANCELLED"}
    await system.quiet()

    async def nothing_runs() -> bool:
        return not await system.fetch("SELECT 1 FROM runs WHERE status = 'RUNNING' LIMIT 1")

    await eventually(nothing_runs)
