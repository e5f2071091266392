"""A run that failed or was cancelled is retried as another, which does again what that has not completed."""

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import pytest

from agent_worker import AgentContext
from messaging import topology
from messaging.port import OutgoingMessage
from schemas.codec import encode
from schemas.messages import CancelRun, Message, RetryRun, RunResult
from schemas.statuses import ResultStatus
from tests.conftest import Eventually
from tests.integration.documents import Document, agent, block, one_block, workflow
from tests.integration.system import System


class Work:
    """An agent that fails or hangs where it is told to, and writes down what it did; all at once it is well."""

    def __init__(self, failing: str = "", hanging: str = "") -> None:
        self.failing, self.hanging = set(failing.split()), set(hanging.split())
        self.done: Counter[tuple[UUID, str]] = Counter()
        self.most_at_once = 0
        self._at_once = 0

    def heal(self) -> None:
        self.failing, self.hanging, self.most_at_once = set(), set(), 0

    def of(self, run_id: UUID | None) -> dict[str, int]:
        """Return how often each step of a run was worked on."""
        return {step_id: times for (run, step_id), times in self.done.items() if run == run_id}

    def named(self) -> Any:
        async def works(input: Any, context: AgentContext) -> Any:
            self.done[context.run_id, context.step_id] += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            try:
                if context.step_id in self.hanging:
                    await asyncio.Event().wait()
                await asyncio.sleep(0)
                if context.step_id in self.failing:
                    raise ValueError("no luck")
                return {"by": context.step_id, "input": input}
            finally:
                self._at_once -= 1

        return works


def works(**fields: Any) -> Document:
    return agent("works", **fields)


async def started(system: System, work: Work, replicas: int = 1) -> None:
    for _ in range(replicas):
        await system.start_replica()
    await system.start_worker(work.named())


async def fails(system: System, document: Document, **fields: Any) -> UUID:
    """Run *document*, which must fail, and return the run's id."""
    result = await system.run(document, {"topic": "rain"}, **fields)
    assert result.status is ResultStatus.FAILED, result
    assert result.run_id is not None
    return result.run_id


async def everything(system: System, run_id: UUID) -> list[Any]:
    """Return all that is stored of a run."""
    statements = [
        f"SELECT * FROM {table} WHERE {key} = $1 ORDER BY 1, 2"
        for table, key in [("runs", "id"), ("step_executions", "run_id"), ("step_attempts", "run_id")]
    ]
    return [[tuple(row) for row in await system.fetch(statement, run_id)] for statement in statements]


async def test_a_run_goes_on_at_the_step_that_failed_and_completed_steps_keep_their_outputs(system: System) -> None:
    work = Work(failing="second")
    await started(system, work)
    document = workflow(
        {
            "first": works(input_mapping={"topic": "${workflow.input.topic}"}, next_step="second"),
            "second": works(input_mapping={"before": "${first.output.input}"}, next_step="third"),
            "third": works(input_mapping={"before": "${first.output.by} and ${second.output.by}"}),
        }
    )
    old = await fails(system, document, labels={"team": "search"})
    before = await everything(system, old)
    work.heal()
    result = await system.retry(old)
    assert (result.status, result.output) == (
        ResultStatus.COMPLETED,
        {"by": "third", "input": {"before": "first and second"}},
    )
    assert work.of(result.run_id) == {"second": 1, "third": 1}
    assert result.run_id is not None
    new, kept = await system.run_row(result.run_id), await system.run_row(old)
    same = ("workflow_id", "workflow_version", "definition_id", "input", "labels")
    assert {name: new[name] for name in same} == {name: kept[name] for name in same}
    assert (new["retry_of"], new["input"], new["labels"]) == (old, {"topic": "rain"}, {"team": "search"})
    steps = await system.steps(result.run_id)
    assert steps["second"]["input"] == {"before": {"topic": "rain"}}
    assert await everything(system, old) == before, "the earlier run is history"
    await system.quiet()


async def test_of_a_block_only_the_branches_run_again_that_did_not_complete(system: System) -> None:
    work = Work(failing="b1 b3")
    await started(system, work)
    old = await fails(system, one_block(5, agent_name="works"))
    work.heal()
    result = await system.retry(old)
    assert result.status is ResultStatus.COMPLETED, result.error
    assert result.output == {f"b{n}": {"by": f"b{n}", "input": {"n": n}} for n in range(5)}
    assert list(result.output) == [f"b{n}" for n in range(5)]
    assert work.of(result.run_id) == {"b1": 1, "b3": 1}
    await system.quiet()


async def test_the_limit_of_a_block_holds_for_what_runs_again(system: System) -> None:
    work = Work(failing=" ".join(f"b{number}" for number in range(1, 12)))
    await started(system, work, replicas=2)
    old = await fails(system, one_block(12, agent_name="works", max_parallelism=2))
    work.heal()
    result = await system.retry(old)
    assert result.status is ResultStatus.COMPLETED, result.error
    assert list(result.output) == [f"b{number}" for number in range(12)]
    assert work.of(result.run_id) == {f"b{number}": 1 for number in range(1, 12)}
    assert work.most_at_once <= 2
    assert result.run_id is not None
    row = (await system.steps(result.run_id))["block"]
    assert [row[f"branches_{name}"] for name in ("open", "failed", "dispatched", "ready")] == [0, 0, 0, 0]
    await system.quiet()


async def test_a_branch_of_many_steps_goes_on_at_the_one_that_failed(system: System) -> None:
    work = Work(failing="a2 c1")
    await started(system, work)
    lanes = {"left": {"steps": ["a1", "a2", "a3"]}, "middle": {"steps": ["b1", "b2"]}, "right": {"steps": ["c1"]}}
    steps = {
        "fork": {"type": "fork_join", "fork_join_config": {"branches": lanes, "max_parallelism": 2}, "next_step": "z"},
        "a1": works(),
        "a2": works(input_mapping={"before": "${a1.output.by}"}),
        "a3": works(input_mapping={"before": "${a2.output.by}"}),
        **{step_id: works() for step_id in ("b1", "b2", "c1")},
        "z": works(input_mapping={"all": "${fork.output}"}),
    }
    old = await fails(system, workflow(steps))
    assert work.of(old) == {"a1": 1, "a2": 1, "b1": 1, "b2": 1, "c1": 1}
    work.heal()
    result = await system.retry(old)
    assert result.status is ResultStatus.COMPLETED, result.error
    assert work.of(result.run_id) == {"a2": 1, "a3": 1, "c1": 1, "z": 1}
    joined = result.output["input"]["all"]
    assert {name: (it["by"], it["input"]) for name, it in joined.items()} == {
        "left": ("a3", {"before": "a2"}), "middle": ("b2", {}), "right": ("c1", {}),
    }  # fmt: skip
    await system.quiet()


@pytest.mark.parametrize("limit", [None, 1])
async def test_blocks_in_branches_go_on_within_the_limits_of_all_levels(system: System, limit: int | None) -> None:
    work = Work(failing="x2 y1 y2 y3")
    await started(system, work, replicas=2)
    limited = {"max_parallelism": limit} if limit is not None else {}
    steps = {
        "outer": block(["x", "y", "done", "b"], **limited),
        "x": block(["x1", "x2"]),
        "y": block(["y1", "y2", "y3"], max_parallelism=1),
        "done": block(["d1", "d2"]),
        **{step_id: works() for step_id in ("x1", "x2", "y1", "y2", "y3", "d1", "d2", "b")},
    }
    old = await fails(system, workflow(steps))
    work.heal()
    result = await system.retry(old)
    assert result.status is ResultStatus.COMPLETED, result.error
    assert {name: list(output) for name, output in result.output.items()} == {
        "x": ["x1", "x2"], "y": ["y1", "y2", "y3"], "done": ["d1", "d2"], "b": ["by", "input"],
    }  # fmt: skip
    assert work.of(result.run_id) == {"x2": 1, "y1": 1, "y2": 1, "y3": 1}
    if limit is not None:
        assert work.most_at_once == 1
    await system.quiet()


async def test_a_cancelled_run_goes_on_also_with_the_blocks_that_had_not_been_entered(
    system: System, eventually: Eventually
) -> None:
    work = Work(hanging="b")
    await started(system, work)
    steps = {
        "outer": block(["a", "b", "inner"], max_parallelism=2),
        "inner": block(["x", "y"]),
        **{step_id: works() for step_id in "abxy"},
    }
    steps["a"]["next_step"] = None
    work.hanging = {"a", "b"}
    old = await system.submit(workflow(steps))
    await eventually(lambda: len(work.of(old)) == 2)
    await system.cancel(old)
    assert await system.ended(old) == "CANCELLED"
    assert (await system.statuses(old))["inner"] == "CANCELLED"
    work.heal()
    result = await system.retry(old)
    assert result.status is ResultStatus.COMPLETED, result.error
    assert list(result.output) == ["a", "b", "inner"]
    assert work.of(result.run_id) == {"a": 1, "b": 1, "x": 1, "y": 1}
    await system.quiet()


async def test_a_run_that_took_too_long_has_its_whole_time_again(system: System) -> None:
    work = Work(hanging="second")
    await started(system, work)
    steps = {"first": works(next_step="second"), "second": works()}
    old = await fails(system, workflow(steps, timeout_seconds=1.0))
    work.heal()
    result = await system.retry(old)
    assert result.status is ResultStatus.COMPLETED, result.error
    assert work.of(result.run_id) == {"second": 1}


@pytest.mark.parametrize("on_decided", ["wait", "cancel"])
@pytest.mark.parametrize(("policy", "failing"), [("any", "a b c d e"), ("majority", "b c d")])
async def test_a_block_that_failed_by_its_policy_completes_by_it(
    system: System, policy: str, failing: str, on_decided: str
) -> None:
    work = Work(failing=failing)
    await started(system, work)
    joined = block(list("abcde"), join_policy=policy, on_decided=on_decided, max_parallelism=1)
    old = await fails(system, workflow({"block": joined, **{step_id: works() for step_id in "abcde"}}))
    completed = {step_id for step_id, status in (await system.statuses(old)).items() if status == "COMPLETED"}
    work.heal()
    result = await system.retry(old)
    assert result.status is ResultStatus.COMPLETED, result.error
    assert not completed & work.of(result.run_id).keys()
    if on_decided == "wait":
        assert list(result.output) == list("abcde")
        assert work.of(result.run_id).keys() == set(failing.split())
    await system.quiet()


async def test_what_was_handled_or_did_not_matter_stays_as_it_was(system: System) -> None:
    work = Work(failing="bad b last")
    await started(system, work)
    steps = {
        "bad": works(on_failure="block"),
        "block": block(["a", "b", "c"], join_policy="any", next_step="last"),
        **{step_id: works() for step_id in "abc"},
        "last": works(input_mapping={"all": "${block.output}", "why": "${bad.error.message}"}),
    }
    old = await fails(system, workflow(steps))
    work.heal()
    result = await system.retry(old)
    assert result.status is ResultStatus.COMPLETED, result.error
    assert work.of(result.run_id) == {"last": 1}
    assert (list(result.output["input"]["all"]), result.output["input"]["why"]) == (["a", "c"], "no luck")
    await system.quiet()


async def test_a_step_whose_input_cannot_be_made_fails_again_and_no_agent_is_asked(system: System) -> None:
    work = Work(failing="a")
    await started(system, work)
    steps = {
        "block": block(["a", "b", "c"]),
        "a": works(),
        "b": works(input_mapping={"x": "${workflow.input.nothing}"}),
        "c": works(),
    }
    old = await fails(system, workflow(steps))
    work.heal()
    result = await system.retry(old)
    assert result.status is ResultStatus.FAILED
    assert result.error is not None
    assert result.error.details is not None
    assert [failed["code"] for failed in result.error.details["failed_steps"]] == ["reference_broken"]
    assert work.of(result.run_id) == {"a": 1}
    await system.quiet()


async def test_a_retry_is_retried(system: System) -> None:
    work = Work(failing="b0 b1 b2")
    await started(system, work)
    first = await fails(system, one_block(4, agent_name="works", max_parallelism=2))
    work.failing = {"b1"}
    second = await system.retry(first)
    assert second.status is ResultStatus.FAILED
    work.heal()
    third = await system.retry(second.run_id)
    assert third.status is ResultStatus.COMPLETED, third.error
    assert (work.of(second.run_id), work.of(third.run_id)) == ({"b0": 1, "b1": 1, "b2": 1}, {"b1": 1})
    await system.quiet()


async def test_the_same_command_again_is_the_same_run(system: System) -> None:
    work = Work(failing="b0")
    await started(system, work)
    old = await fails(system, one_block(2, agent_name="works"))
    work.heal()
    new = uuid4()
    results = [await system.retry(old, new_run_id=new) for _ in range(2)]
    assert results[0] == results[1]
    assert work.of(new) == {"b0": 1}
    assert await system.count("runs") == 2


async def test_a_command_without_an_id_for_the_new_run_starts_one_however_often_it_is_delivered(
    system: System, eventually: Eventually
) -> None:
    work = Work(failing="b0")
    await started(system, work)
    old = await fails(system, one_block(2, agent_name="works"))
    work.heal()
    message_id = str(uuid4())
    for _ in range(2):
        await command(system, RetryRun(run_id=old), message_id=message_id)

    async def completed() -> bool:
        return len(await system.fetch("SELECT 1 FROM runs WHERE retry_of = $1 AND status = 'COMPLETED'", old)) == 1

    await eventually(completed)
    await eventually(lambda: system.verdicts().get("DUPLICATE") == 1)
    assert await system.count("runs") == 2
    await system.quiet()


async def command(system: System, message: Message, **fields: Any) -> None:
    """Put a command into its queue."""
    await system.publish(topology.COMMANDS_QUEUE.name, encode(message), type=type(message).__name__, **fields)


async def test_what_is_asked_for_together_happens_in_its_order(system: System) -> None:
    work = Work(hanging="b0")
    replica = await system.start_replica()
    await system.start_worker(work.named())
    old, new, last = await system.submit(one_block(2, agent_name="works")), uuid4(), uuid4()
    await system.step_is(old, "b1", "COMPLETED")
    await system.end(replica, crash=False)
    work.heal()
    messages = [
        CancelRun(run_id=old),
        RetryRun(run_id=old, new_run_id=new),
        CancelRun(run_id=new, reason="enough"),
        RetryRun(run_id=new, new_run_id=last),
    ]
    queue = topology.COMMANDS_QUEUE.name
    await system.broker.publish(
        [OutgoingMessage("", queue, type(one).__name__, str(uuid4()), encode(one)) for one in messages]
    )
    await system.start_replica()
    assert (await system.ended(old), await system.ended(new)) == ("CANCELLED", "CANCELLED")
    assert (await system.run_row(new))["error"]["message"] == "enough"
    assert await system.ended(last) == "COMPLETED"
    assert work.of(last) == {"b0": 1}
    await system.quiet()


async def refused(system: System, run_id: UUID, **fields: Any) -> tuple[str, str]:
    result: RunResult = await system.retry(run_id, **fields)
    assert result.status is ResultStatus.REJECTED
    assert result.error is not None
    return result.error.code, result.error.message


async def test_what_cannot_be_retried_is_refused_with_a_reason(system: System) -> None:
    work = Work(hanging="b0")
    await started(system, work)
    nobody = uuid4()
    code, message = await refused(system, nobody)
    assert (code, message.startswith(f"there is no run {nobody}")) == ("unknown_run", True)

    going_on = await system.submit(one_block(1, agent_name="works"))
    await system.step_is(going_on, "b0", "RUNNING")
    code, message = await refused(system, going_on)
    assert (code, "has not ended yet" in message) == ("run_goes_on", True)
    await system.cancel(going_on)
    await system.ended(going_on)

    work.heal()
    done = await system.run(one_block(1, agent_name="works"))
    assert done.run_id is not None
    code, message = await refused(system, done.run_id)
    assert (code, "nothing to retry" in message) == ("run_completed", True)

    for taken in (done.run_id, going_on):
        code, message = await refused(system, going_on, new_run_id=taken)
        assert (code, "choose another new_run_id" in message) == ("run_id_conflict", True)
    await system.quiet()


async def test_a_refusal_that_nobody_awaits_is_a_dead_letter_and_so_is_what_is_no_command(system: System) -> None:
    await system.start_replica()
    await command(system, RetryRun(run_id=uuid4()))
    [letter] = await system.dead_letters(1)
    assert letter["code"] == "unknown_run"
    await command(system, RetryRun(run_id=uuid4()), message_id=str(uuid4()))
    await system.dead_letters(1)
    await system.publish(topology.COMMANDS_QUEUE.name, b'{"version": 1}', type="RetryRun")
    await system.publish(topology.COMMANDS_QUEUE.name, encode(RetryRun(run_id=uuid4())), type="PauseRun")
    letters = await system.dead_letters(2)
    assert [letter["code"] for letter in letters] == ["malformed_message", "malformed_message"]
    assert 'CancelRun and RetryRun, not "PauseRun"' in letters[1]["message"]


async def test_the_history_may_be_deleted(system: System) -> None:
    work = Work(failing="b0")
    await started(system, work)
    old = await fails(system, one_block(2, agent_name="works"))
    work.heal()
    new = (await system.retry(old)).run_id
    assert new is not None
    await system.fetch("DELETE FROM runs WHERE id = $1", old)
    assert (await system.run_row(new))["retry_of"] is None
    assert set((await system.statuses(new)).values()) == {"COMPLETED"}
