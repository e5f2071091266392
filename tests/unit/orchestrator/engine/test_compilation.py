"""Workflows to plans: what is found out beforehand."""

from typing import Any

import pytest

from orchestrator.engine.plan import Place, Plan, SubWorkflowPlan, TimeLimits
from schemas.scope import Part, Reads
from schemas.statuses import JoinPolicy
from tests.unit.orchestrator.engine.scene import (
    agent,
    agent_plan,
    block_plan,
    conditional_plan,
    loop,
    loop_plan,
    parallel,
    plan_of,
)


def place(plan: Plan, step_id: str) -> Place:
    found = plan.steps[step_id].place
    assert found is not None
    return found


def choice(**fields: Any) -> dict[str, Any]:
    return {"type": "conditional", "condition": {"expression": "true"}, **fields}


def fork_join(*branches: Any, **config: Any) -> dict[str, Any]:
    """Return a block with branches that are called left, right and so on."""
    named = dict(zip(("left", "right"), branches, strict=False))
    return {"type": "fork_join", "fork_join_config": {"branches": named, **config}}


# Blocks and their branches


def test_branches_stand_in_the_order_of_the_block_not_of_the_document() -> None:
    plan = plan_of(block=parallel("c", "a", "b"), a=agent(), b=agent(), c=agent())
    branches = block_plan(plan).branches
    assert [branch.id for branch in branches] == ["c", "a", "b"]
    assert [(place(plan, name).block_id, place(plan, name).position) for name in ("c", "a", "b")] == [
        ("block", 0),
        ("block", 1),
        ("block", 2),
    ]
    assert agent_plan(plan, "a") is branches[1]


def test_a_step_outside_every_block_has_no_place() -> None:
    alone = agent_plan(plan_of(alone=agent()), "alone")
    assert (alone.place, alone.loops, alone.limits) == (None, 0, TimeLimits(None, None, None))


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
    assert block_plan(plan).reads == Reads(steps=frozenset({"first", "second"}), workflow_input=True)


def test_a_block_reads_the_errors_of_the_blocks_whose_errors_its_branches_read() -> None:
    plan = plan_of(
        first=parallel("x", next_step="block", join_policy="any"),
        x=agent(),
        block=parallel("a"),
        a=agent(input_mapping={"why": "${first.errors}"}),
    )
    assert block_plan(plan).reads == Reads(steps=frozenset({"first"}), blocks=frozenset({"first"}))


def test_a_block_reads_nothing_for_the_steps_that_come_later_in_its_branches() -> None:
    plan = plan_of(block=fork_join({"steps": ["a", "b"]}), a=agent(), b=agent(input_mapping={"it": "${a.output}"}))
    assert block_plan(plan).reads == Reads()


def test_the_steps_of_a_branch_follow_each_other() -> None:
    plan = plan_of(
        block=fork_join({"steps": ["a1", "a2", "a3"]}, {"steps": ["b1"]}),
        **{name: agent() for name in ("a1", "a2", "a3", "b1")},
    )
    assert [agent_plan(plan, step).next_step for step in ("a1", "a2", "a3", "b1")] == ["a2", "a3", None, None]
    assert [place(plan, step).ordinal for step in ("a1", "a2", "a3", "b1")] == [0, 1, 2, 0]
    assert [place(plan, step).branch_name for step in ("a1", "a3", "b1")] == ["left", "left", "right"]
    assert [branch.id for branch in block_plan(plan).branches] == ["a1", "b1"]
    assert dict(plan.lanes) == {"a1": ("a1", "a2", "a3")}


@pytest.mark.parametrize(
    ("all_of_them", "expected"), [({}, [None, 7.0]), ({"branch_timeout_seconds": 9.0}, [9.0, 7.0])]
)
def test_the_time_limit_of_a_branch_goes_before_that_of_all(all_of_them: Any, expected: list[float | None]) -> None:
    block = fork_join({"steps": ["a1"]}, {"steps": ["b1"], "timeout_seconds": 7.0}, **all_of_them)
    plan = plan_of(block=block, a1=agent(), b1=agent())
    assert [place(plan, step).branch_timeout for step in ("a1", "b1")] == expected


def test_a_block_knows_its_place_in_the_branch_of_another() -> None:
    plan = plan_of(
        block=fork_join({"steps": ["inner", "z"], "timeout_seconds": 50.0}, {"steps": ["a"]}, join_policy="any"),
        inner=parallel("x", "y"),
        **{name: agent() for name in ("x", "y", "z", "a")},
    )
    inner = block_plan(plan, "inner")
    assert inner.place == Place(
        block_id="block",
        iterates=False,
        branch_name="left",
        position=0,
        ordinal=0,
        branch_timeout=50.0,
        join_policy=JoinPolicy.ANY,
    )
    assert inner.next_step == "z"


# Conditionals


def test_behind_a_path_the_run_goes_on_where_the_conditional_says() -> None:
    steps = plan_of(
        choice=choice(if_true_step="yes", if_false_step="no", next_step="end"),
        yes=agent(next_step="yes2", on_failure="rescue"),
        yes2=agent(),
        rescue=agent(),
        no=parallel("a"),
        a=agent(),
        end=agent(),
    ).steps
    assert {name: steps[name].next_step for name in ("yes", "yes2", "rescue", "no", "end", "a")} == {
        "yes": "yes2", "yes2": "end", "rescue": "end", "no": "end", "end": None, "a": None,
    }  # fmt: skip


def skipping(if_true: str, if_false: str) -> tuple[str | None, str | None]:
    """Return what is skipped when the condition holds, and when it does not, of a choice between two of these steps."""
    plan = plan_of(
        choice=choice(if_true_step=if_true, if_false_step=if_false, next_step="end"),
        yes=agent(next_step="yes2", on_failure="rescue"),
        yes2=agent(on_failure="rescue"),
        rescue=agent(),
        end=agent(),
    )
    return conditional_plan(plan).skipped_if_true, conditional_plan(plan).skipped_if_false


@pytest.mark.parametrize(
    ("if_true", "if_false", "skipped"),
    [
        ("yes", "end", (None, "yes")),  # the run comes to the end anyhow
        ("yes", "rescue", (None, "yes")),  # and to the handler where a step of the other path fails
        ("yes", "yes2", (None, "yes")),
        ("yes", "yes", (None, None)),
    ],
)
def test_a_step_that_may_still_run_is_not_skipped(
    if_true: str, if_false: str, skipped: tuple[str | None, str | None]
) -> None:
    assert skipping(if_true, if_false) == skipped


def choosing_in_branch() -> Plan:
    """Return the plan of a branch a, choice, z, in which a choice leads to yes and yes2, or to no."""
    return plan_of(
        block=fork_join({"steps": ["a", "choice", "z"]}),
        z=agent(),
        no=agent(),
        yes2=agent(),
        yes=agent(next_step="yes2"),
        choice=choice(if_true_step="yes", if_false_step="no"),
        a=agent(),
    )


def test_the_paths_of_a_conditional_in_a_branch_lead_on_in_the_branch() -> None:
    plan = choosing_in_branch()
    assert {name: plan.steps[name].next_step for name in ("a", "choice", "yes", "yes2", "no", "z")} == {
        "a": "choice", "choice": "z", "yes": "yes2", "yes2": "z", "no": "z", "z": None,
    }  # fmt: skip
    chosen = conditional_plan(plan)
    assert (chosen.skipped_if_true, chosen.skipped_if_false) == ("no", "yes")


def test_steps_on_the_paths_of_a_conditional_are_steps_of_its_branch() -> None:
    plan = choosing_in_branch()
    assert set(plan.lanes) == {"a"}
    assert set(plan.lanes["a"]) == {"a", "choice", "yes", "yes2", "no", "z"}
    assert {place(plan, name)[:4] for name in plan.lanes["a"]} == {("block", False, "left", 0)}


@pytest.mark.parametrize(
    ("one", "other"),
    [("a", "choice"), ("choice", "yes"), ("yes", "yes2"), ("choice", "no"), ("yes2", "z"), ("no", "z")],
)
def test_whatever_runs_later_in_a_branch_has_a_higher_ordinal(one: str, other: str) -> None:
    plan = choosing_in_branch()
    assert place(plan, one).ordinal < place(plan, other).ordinal
    assert plan.lanes["a"].index(one) < plan.lanes["a"].index(other)


# Loops


def test_the_steps_of_a_body_iterate_and_count_the_loops_around_them() -> None:
    plan = plan_of(loop=loop("block"), block=parallel("inner"), inner=loop("x"), x=agent())
    assert [plan.steps[name].loops for name in ("loop", "block", "inner", "x")] == [0, 1, 1, 2]
    assert [place(plan, name).iterates for name in ("block", "inner", "x")] == [True, False, True]
    assert [place(plan, name).block_id for name in ("block", "inner", "x")] == ["loop", "block", "inner"]


def test_a_body_begins_with_its_first_step_and_leads_through_the_others() -> None:
    plan = plan_of(loop=loop("x", "y") | {"next_step": "then"}, x=agent(), y=agent(), then=agent())
    assert loop_plan(plan).body is plan.steps["x"]
    assert {name: plan.steps[name].next_step for name in ("loop", "x", "y")} == {"loop": "then", "x": "y", "y": None}
    assert dict(plan.lanes) == {"x": ("x", "y")}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({}, 1),
        ({"execution_mode": "sequential"}, 1),
        ({"execution_mode": "parallel"}, None),
        ({"execution_mode": "parallel", "max_parallelism": 5}, 5),
    ],
)
def test_a_sequential_loop_is_one_that_runs_one_iteration_at_a_time(config: dict[str, Any], limit: int | None) -> None:
    assert loop_plan(plan_of(loop=loop("x", **config), x=agent())).max_parallelism == limit


@pytest.mark.parametrize(
    ("on_error", "stops", "tolerates"), [("stop", True, False), ("continue", False, True), ("collect", False, False)]
)
def test_what_a_failed_iteration_means_to_a_loop(on_error: str, stops: bool, tolerates: bool) -> None:
    plan = loop_plan(plan_of(loop=loop("x", on_error=on_error), x=agent()))
    assert (plan.stops, plan.tolerates) == (stops, tolerates)


@pytest.mark.parametrize(
    ("x", "y", "keeps"),
    [
        ("${loop.item}", "${loop.index}", False),  # the input of the first step is made while the items are at hand
        ("${loop.item}", "${loop.item}", True),
        ("${loop.index}", "${loop.item.name}", True),
        ("${loop.is_first}", "${x.output}", False),
    ],
)
def test_a_loop_keeps_its_items_for_steps_that_are_entered_later(x: str, y: str, keeps: bool) -> None:
    steps = {"x": agent(input_mapping={"it": x}), "y": agent(input_mapping={"it": y})}
    assert loop_plan(plan_of(loop=loop("x", "y"), **steps)).keeps_items is keeps


def test_a_loop_keeps_its_items_for_a_step_in_a_block_of_its_body() -> None:
    plan = plan_of(loop=loop("block"), block=parallel("x"), x=agent(input_mapping={"it": "${loop.item}"}))
    assert loop_plan(plan).keeps_items


def test_a_loop_around_the_one_whose_items_are_read_keeps_none() -> None:
    steps = {"inner": loop("x", "y"), "x": agent(), "y": agent(input_mapping={"it": "${loop.item}"})}
    plan = plan_of(loop=loop("inner"), **steps)
    assert (loop_plan(plan).keeps_items, loop_plan(plan, "inner").keeps_items) == (False, True)


def test_a_loop_reads_what_its_collection_and_the_inputs_at_its_fork_take_from_elsewhere() -> None:
    plan = plan_of(
        first=agent(next_step="second"),
        second=agent(next_step="loop"),
        loop=loop("x", "y", collection="${first.output.items}"),
        x=agent(input_mapping={"it": "${loop.item}", "and": "${second.output}"}),
        y=agent(input_mapping={"it": "${x.output}"}),
    )
    assert loop_plan(plan).reads == Reads(steps=frozenset({"first", "second"}))
    assert agent_plan(plan, "x").reads == Reads(frozenset({"second"}), loop_parts=frozenset({Part.ITEM}))


# Sub-workflows


def test_a_sub_workflow_is_planned_as_an_agent_step_is_with_the_defaults_of_its_block() -> None:
    starts = {"type": "sub_workflow", "workflow_id": "below", "input_mapping": {"a": "${before.output}"}}
    plan = plan_of(
        before=agent(next_step="block"),
        block=parallel("one", "two", timeout_seconds=5.0, retry={"max_attempts": 2}),
        one={**starts, "version": "2.0", "timeout_seconds": 3.0},
        two={**starts, "retry": {"max_attempts": 7}},
    )
    one, two = plan.steps["one"], plan.steps["two"]
    assert isinstance(one, SubWorkflowPlan)
    assert isinstance(two, SubWorkflowPlan)
    assert (one.workflow_id, one.version, two.version) == ("below", "2.0", None)
    assert (one.limits.attempt, two.limits.attempt) == (3.0, 5.0)
    assert [step.retry and step.retry.max_attempts for step in (one, two)] == [2, 7]
    assert block_plan(plan).reads.steps == {"before"}


def test_a_body_that_begins_with_a_sub_workflow_has_its_items_at_the_fork() -> None:
    starts = {"type": "sub_workflow", "workflow_id": "below", "input_mapping": {"item": "${loop.item}"}}
    assert not loop_plan(plan_of(loop=loop("x"), x=starts)).keeps_items
    assert loop_plan(plan_of(loop=loop("y", "x"), x=starts, y=agent())).keeps_items
