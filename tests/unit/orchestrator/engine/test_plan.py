"""A workflow, compiled once."""

import pytest

from orchestrator.engine.plan import TimeLimits
from tests.unit.orchestrator.engine.scene import agent, agent_plan, block_plan, parallel, plan_of, three_branches


def test_branches_stand_in_the_order_of_the_block_not_of_the_document() -> None:
    plan = plan_of(block=parallel("c", "a", "b"), a=agent(), b=agent(), c=agent())
    branches = block_plan(plan).branches
    assert [(branch.id, branch.block_id, branch.position) for branch in branches] == [
        ("c", "block", 0),
        ("a", "block", 1),
        ("b", "block", 2),
    ]
    assert agent_plan(plan, "a") is branches[1]


def test_a_step_outside_every_block_names_none() -> None:
    alone = agent_plan(plan_of(alone=agent()), "alone")
    assert (alone.block_id, alone.position, alone.limits) == (None, 0, TimeLimits(None, None, None))


def test_the_time_limits_of_a_block_are_the_defaults_of_its_branches_only() -> None:
    plan = plan_of(
        block=parallel("a", "b", timeout_seconds=60.0, queue_timeout_seconds=30.0, next_step="then"),
        a=agent(heartbeat_timeout_seconds=9.0),
        b=agent(timeout_seconds=5.0),
        then=agent(),
    )
    limits = {step_id: agent_plan(plan, step_id).limits for step_id in ("a", "b", "then")}
    assert limits == {
        "a": TimeLimits(60.0, 30.0, 9.0),
        "b": TimeLimits(5.0, 30.0, None),
        "then": TimeLimits(None, None, None),
    }


def test_the_retry_of_a_block_is_the_default_of_its_branches_only() -> None:
    plan = plan_of(
        block=parallel("a", "b", retry={"max_attempts": 7}, next_step="then"),
        a=agent(),
        b=agent(retry_strategy={"max_retries": 1}),
        then=agent(),
    )
    retries = {step_id: agent_plan(plan, step_id).retry for step_id in ("a", "b", "then")}
    assert {name: policy and policy.max_attempts for name, policy in retries.items()} == {"a": 7, "b": 2, "then": None}


@pytest.mark.parametrize(
    ("limit", "gated"), [(None, False), (1, True), (2, True), (3, False), (4, False), (70_000, False)]
)
def test_a_block_has_a_gate_only_where_its_limit_can_hold_a_branch_back(limit: int | None, gated: bool) -> None:
    assert block_plan(three_branches(max_parallelism=limit)).is_gated is gated


def test_one_branch_alone_needs_no_gate() -> None:
    assert not block_plan(plan_of(block=parallel("a", max_parallelism=1), a=agent())).is_gated


def test_steps_lead_where_the_document_says() -> None:
    plan = plan_of(
        block=parallel("a", next_step="then", on_failure="rescue"),
        a=agent(on_failure="rescue"),
        then=agent(),
        rescue=agent(),
    )
    block = block_plan(plan)
    assert (plan.start, block.next_step, block.on_failure) == ("block", "then", "rescue")
    assert agent_plan(plan, "a").on_failure == "rescue"
    assert agent_plan(plan, "then").next_step is None


def test_a_block_reads_from_every_step_that_one_of_its_branches_reads_from() -> None:
    plan = plan_of(
        first=agent(next_step="second"),
        second=agent(next_step="block"),
        block=parallel("a", "b", "c"),
        a=agent(input_mapping={"x": "${first.output}"}),
        b=agent(input_mapping={"x": ["${second.status}", "${first.output}"]}),
        c=agent(input_mapping={"x": "${workflow.input}"}),
    )
    assert block_plan(plan).referenced_steps == {"first", "second"}
