"""Named branches of several steps, join policies and conditionals, on both brokers and a real Postgres."""

import asyncio
from typing import Any

import pytest

from agent_worker import AgentContext
from schemas.statuses import ResultStatus
from tests.conftest import Eventually
from tests.integration.documents import agent, workflow
from tests.integration.system import System


async def says(input: Any, context: AgentContext) -> Any:
    return {"step": context.step_id, "branch": context.branch_name, "input": input}


async def fails(input: Any) -> Any:
    raise ValueError("no luck")


class Hanging:
    """An agent that works until it is cancelled."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled: list[str] = []

    def named(self) -> Any:
        async def hangs(input: Any, context: AgentContext) -> Any:
            self.begun.append(context.step_id)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(context.step_id)
                raise

        return hangs


def forked(branches: dict[str, list[str]], agents: dict[str, str], **config: Any) -> Any:
    """Return a workflow of one fork_join step and a step behind it; *agents* names those that are not `says`."""
    timeouts = config.pop("timeouts", {})
    block = {
        "type": "fork_join",
        "fork_join_config": {
            "branches": {name: {"steps": steps, **timeouts.get(name, {})} for name, steps in branches.items()},
            **config,
        },
        "next_step": "after",
    }
    mapping = {"all": "${fork.output}", "errors": "${fork.errors}"}
    steps: dict[str, Any] = {"fork": block, "after": agent("says", input_mapping=mapping)}
    for lane in branches.values():
        for before, step_id in zip([None, *lane], lane, strict=False):
            seen = {} if before is None else {"before": f"${{{before}.output.step}}"}
            steps[step_id] = agent(agents.get(step_id, "says"), input_mapping=seen)
    return workflow(steps)


async def test_the_steps_of_a_branch_see_each_other_and_the_last_one_speaks_for_it(system: System) -> None:
    await system.start_replica()
    await system.start_worker(says, fails)
    result = await system.run(
        forked({"left": ["a1", "a2", "a3"], "right": ["b1", "b2"]}, {"b2": "fails"}, join_policy="any")
    )
    assert result.status is ResultStatus.COMPLETED, result.error
    seen = result.output["input"]
    assert list(seen["all"]) == ["left", "right"]
    assert seen["all"] == {"left": {"step": "a3", "branch": "left", "input": {"before": "a2"}}, "right": None}
    assert {name: error["message"] for name, error in seen["errors"].items()} == {"right": "no luck"}
    assert result.run_id is not None
    rows = await system.steps(result.run_id)
    columns = ("branch_name", "join_policy", "position")
    assert [rows["a2"][column] for column in columns] == ["left", "any", 0]
    assert [rows["b2"][column] for column in columns] == ["right", "any", 1]
    assert (rows["fork"]["join_policy"], rows["fork"]["status"]) == ("any", "COMPLETED")
    await system.quiet()


async def test_a_limit_counts_whole_branches(system: System) -> None:
    at_once: list[int] = []
    under_way: set[str] = set()

    async def says(input: Any, context: AgentContext) -> Any:
        branch = str(context.branch_name)
        under_way.add(branch)
        at_once.append(len(under_way))
        await asyncio.sleep(0)
        if context.step_id.endswith("2"):
            under_way.discard(branch)
        return {"step": context.step_id}

    await system.start_replica()
    await system.start_replica()
    await system.start_worker(says)
    lanes = {f"lane-{number}": [f"s{number}-1", f"s{number}-2"] for number in range(6)}
    result = await system.run(forked(lanes, {}, max_parallelism=2))
    assert result.status is ResultStatus.COMPLETED, result.error
    assert max(at_once) <= 2
    await system.quiet()


@pytest.mark.parametrize("limit", [None, 2])
async def test_what_cannot_matter_any_more_is_cancelled_and_the_run_goes_on(
    system: System, eventually: Eventually, limit: int | None
) -> None:
    hanging = Hanging()
    await system.start_replica()
    await system.start_worker(says, hanging.named())
    lanes = {"slow": ["a1", "a2"], "quick": ["b1", "b2"], "other": ["c1"]}
    limited = {"max_parallelism": limit} if limit is not None else {}
    result = await system.run(
        forked(lanes, {"a1": "hangs", "c1": "hangs"}, join_policy="any", on_decided="cancel", **limited)
    )
    assert result.status is ResultStatus.COMPLETED, result.error
    await eventually(lambda: sorted(hanging.cancelled) == sorted(hanging.begun))
    assert result.run_id is not None
    rows = await system.steps(result.run_id)
    assert {step: rows[step]["status"] for step in ("a1", "b2", "c1", "fork")} == {
        "a1": "CANCELLED", "b2": "COMPLETED", "c1": "CANCELLED", "fork": "COMPLETED",
    }  # fmt: skip
    assert "a2" not in rows
    quick = {"step": "b2", "branch": "quick", "input": {"before": "b1"}}
    assert result.output["input"]["all"] == {"slow": None, "quick": quick, "other": None}
    await system.quiet()


async def test_a_block_that_can_no_longer_succeed_fails_at_once(system: System) -> None:
    hanging = Hanging()
    await system.start_replica()
    await system.start_worker(fails, hanging.named())
    result = await system.run(
        forked({"slow": ["a1"], "bad": ["b1"]}, {"a1": "hangs", "b1": "fails"}, on_decided="cancel")
    )
    assert result.status is ResultStatus.FAILED
    assert result.error is not None
    assert result.error.message == 'step "fork" failed: 1 of 2 branches failed: b1: no luck'
    await system.quiet()


async def test_a_branch_that_takes_too_long_fails_and_the_others_go_on(system: System) -> None:
    hanging = Hanging()
    await system.start_replica()
    await system.start_worker(says, hanging.named())
    document = forked(
        {"slow": ["a1", "a2"], "quick": ["b1"]},
        {"a1": "hangs"},
        join_policy="any",
        timeouts={"slow": {"timeout_seconds": 0.3}},
        branch_timeout_seconds=600,
    )
    result = await system.run(document)
    assert result.status is ResultStatus.COMPLETED, result.error
    assert result.run_id is not None
    rows = await system.steps(result.run_id)
    assert (rows["a1"]["status"], rows["b1"]["status"], "a2" in rows) == ("FAILED", "COMPLETED", False)
    assert result.output["input"]["errors"]["slow"]["code"] == "branch_timeout"


@pytest.mark.parametrize("limit", [None, 1])
async def test_blocks_lie_within_blocks_each_with_its_own_gate(system: System, limit: int | None) -> None:
    limited = {"max_parallelism": limit} if limit is not None else {}
    inner = {"type": "parallel", "parallel_steps": ["x", "y", "w"], "max_parallelism": 2}
    steps = {
        "fork": {
            "type": "fork_join",
            "fork_join_config": {
                "branches": {"left": {"steps": ["inner", "z"]}, "middle": {"steps": ["b"]}, "right": {"steps": ["c"]}},
                **limited,
            },
        },
        "inner": inner,
        "x": agent("says"),
        "y": agent("says"),
        "w": agent("says"),
        "z": agent("says", input_mapping={"inner": "${inner.output.x.step}"}),
        "b": agent("says"),
        "c": {"type": "parallel", "parallel_steps": ["d"]},
        "d": agent("says"),
    }
    await system.start_replica()
    await system.start_replica()
    await system.start_worker(says)
    result = await system.run(workflow(steps))
    assert result.status is ResultStatus.COMPLETED, result.error
    assert list(result.output) == ["left", "middle", "right"]
    assert result.output["left"]["input"] == {"inner": "x"}
    assert result.output["right"]["d"]["step"] == "d"
    await system.quiet()


async def test_cutting_a_block_short_reaches_the_blocks_within(system: System, eventually: Eventually) -> None:
    hanging = Hanging()
    steps = {
        "fork": {
            "type": "fork_join",
            "fork_join_config": {
                "branches": {"slow": {"steps": ["inner"]}, "quick": {"steps": ["b"]}},
                "join_policy": "any",
                "on_decided": "cancel",
            },
        },
        "inner": {"type": "parallel", "parallel_steps": ["x", "y"], "max_parallelism": 1},
        "x": agent("hangs"),
        "y": agent("hangs"),
        "b": agent("says"),
    }
    await system.start_replica()
    await system.start_worker(says, hanging.named())
    result = await system.run(workflow(steps))
    assert result.status is ResultStatus.COMPLETED, result.error
    assert result.run_id is not None
    rows = await system.steps(result.run_id)
    assert {step: rows[step]["status"] for step in ("inner", "x", "y", "b")} == {
        "inner": "CANCELLED", "x": "CANCELLED", "y": "CANCELLED", "b": "COMPLETED",
    }  # fmt: skip
    await eventually(lambda: hanging.cancelled == hanging.begun)
    await system.quiet()


@pytest.mark.parametrize(("topic", "way"), [("rain", "wet"), ("sun", "dry")])
async def test_a_conditional_leads_one_way_and_both_meet_behind_it(system: System, topic: str, way: str) -> None:
    await system.start_replica()
    await system.start_worker(says)
    steps = {
        "one": agent("says", input_mapping={"topic": "${workflow.input.topic}"}, next_step="choice"),
        "choice": {
            "type": "conditional",
            "condition": {"expression": "${one.output.input.topic} in ['rain', 'snow']"},
            "if_true_step": "wet",
            "if_false_step": "dry",
            "next_step": "last",
        },
        "wet": agent("says"),
        "dry": agent("says"),
        "last": agent("says", input_mapping={"wet": "${wet.status}", "dry": "${dry.status}"}),
    }
    result = await system.run(workflow(steps), {"topic": topic})
    other = {"wet": "dry", "dry": "wet"}[way]
    assert result.output["input"] == {way: "COMPLETED", other: "SKIPPED"}
    assert result.run_id is not None
    rows = await system.steps(result.run_id)
    assert (rows["choice"]["status"], rows[other]["status"]) == ("COMPLETED", "SKIPPED")
    await system.quiet()


async def test_a_condition_that_cannot_be_evaluated_fails_the_step_and_says_why(system: System) -> None:
    await system.start_replica()
    await system.start_worker(says)
    steps = {
        "choice": {
            "type": "conditional",
            "condition": {"expression": "${workflow.input.topic} > 3"},
            "if_true_step": "last",
            "on_failure": "rescue",
        },
        "last": agent("says"),
        "rescue": agent("says", input_mapping={"why": "${choice.error.message}", "code": "${choice.error.code}"}),
    }
    result = await system.run(workflow(steps), {"topic": "rain"})
    assert result.output["input"]["code"] == "condition_failed"
    assert "a string and a number cannot be compared" in result.output["input"]["why"]
    await system.quiet()
