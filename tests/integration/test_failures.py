"""Steps that fail, and what the run makes of it."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from agent_worker import AgentFailed
from schemas.statuses import ResultStatus
from tests.integration.documents import agent, block, workflow
from tests.integration.system import System


async def echo(input: Any) -> Any:
    return input


async def broken(input: Any) -> Any:
    raise AgentFailed("the well is dry", type="DryWell", details={"depth": 12})


def a_block(**branches: Any) -> dict[str, Any]:
    """A block of step-a, which works, and step-b, which fails; *branches* are more fields of the block."""
    return {
        "block": block(["step-a", "step-b"], **branches),
        "step-a": agent("echo", input_mapping={"x": 1}),
        "step-b": agent("broken"),
    }


# What a failure means is decided far from the broker; RabbitMQ has its share in the other files.
pytestmark = pytest.mark.parametrize("brokers", ["memory"], indirect=True)

REPORT = agent(
    "echo",
    input_mapping={
        "message": "${step-b.error.message}",
        "status": "${step-b.status}",
        "other": "${step-a.output}",
        "block": "${block.status}",
        "all": "${block.output}",
    },
)
REPORTED = {
    "message": "the well is dry",
    "status": "FAILED",
    "other": {"x": 1},
    "block": "FAILED",
    "all": {"step-a": {"x": 1}},
}


@pytest.fixture
async def running(system: System) -> System:
    """A replica and a worker that has both agents."""
    await system.start_replica()
    await system.start_worker(echo, broken)
    return system


async def test_a_failed_step_is_stored_with_its_error_and_the_run_fails_with_it(running: System) -> None:
    result = await running.run(workflow({"only": agent("broken")}))
    step = (await running.steps(result.run_id))["only"]
    assert (step["status"], step["output"]) == ("FAILED", None)
    error = step["error"]
    assert (error["code"], error["message"]) == ("agent_error", "the well is dry")
    assert (error["details"]["type"], error["details"]["depth"]) == ("DryWell", 12)
    assert result.status is ResultStatus.FAILED
    assert result.output is None
    assert result.error is not None
    assert (result.error.code, result.error.message) == ("step_failed", 'step "only" failed: the well is dry')
    assert result.error.details == {
        "step_id": "only",
        "failed_count": 1,
        "failed_steps": [{"step_id": "only", "code": "agent_error", "message": "the well is dry"}],
    }
    await running.quiet()


async def test_a_run_without_a_handler_names_the_failed_branches_and_why(running: System) -> None:
    result = await running.run(workflow(a_block()))
    assert result.status is ResultStatus.FAILED
    assert result.error is not None
    assert result.error.message == 'step "block" failed: 1 of 2 branches failed: step-b: the well is dry'
    assert result.error.details == {
        "step_id": "block",
        "failed_count": 1,
        "failed_steps": [{"step_id": "step-b", "code": "agent_error", "message": "the well is dry"}],
    }
    rows = await running.steps(result.run_id)
    assert rows["block"]["error"]["code"] == "branches_failed"
    assert rows["block"]["output"] == {"step-a": {"x": 1}}
    assert (rows["block"]["branches_open"], rows["block"]["branches_failed"]) == (0, 1)


@pytest.mark.parametrize("where", ["block", "branch"])
async def test_on_failure_of_a_block_or_of_a_branch_takes_the_run_on(running: System, where: str) -> None:
    steps = a_block(**({"on_failure": "report"} if where == "block" else {}))
    if where == "branch":
        steps["step-b"]["on_failure"] = "report"
    result = await running.run(workflow({**steps, "report": REPORT}))
    assert (result.status, result.output) == (ResultStatus.COMPLETED, REPORTED)
    assert (await running.statuses(result.run_id))["block"] == "FAILED"


async def test_on_failure_of_a_step_takes_the_run_on(running: System) -> None:
    steps = {
        "step-a": agent("echo", input_mapping={"x": 1}, next_step="step-b"),
        "step-b": agent("broken", on_failure="report", next_step="never"),
        "never": agent("echo"),
        "report": agent("echo", input_mapping={"why": "${step-b.error}", "other": "${step-a.output}"}),
    }
    result = await running.run(workflow(steps))
    assert result.status is ResultStatus.COMPLETED
    assert result.output["other"] == {"x": 1}
    assert (result.output["why"]["code"], result.output["why"]["message"]) == ("agent_error", "the well is dry")
    assert "never" not in await running.statuses(result.run_id)


async def test_a_handler_that_fails_too_fails_the_run_with_its_own_error(running: System) -> None:
    steps = {"first": agent("broken", on_failure="second"), "second": agent("broken")}
    result = await running.run(workflow(steps))
    assert result.status is ResultStatus.FAILED
    assert result.error is not None
    assert result.error.details is not None
    assert result.error.details["step_id"] == "second"


async def test_a_reference_that_leads_nowhere_fails_its_step_and_says_where_it_broke(running: System) -> None:
    steps = {
        "one": agent("echo", input_mapping={"a": 1, "b": 2}, next_step="two"),
        "two": agent("echo", input_mapping={"x": "${one.output.c.d}"}),
    }
    result = await running.run(workflow(steps))
    assert result.status is ResultStatus.FAILED
    step = (await running.steps(result.run_id))["two"]
    assert step["status"] == "FAILED"
    assert step["error"]["code"] == "reference_broken"
    for part in ("${one.output.c.d}", '"c"', '"a"', '"b"'):
        assert part in step["error"]["message"]
    assert step["attempt"] == 0


async def test_a_branch_whose_input_cannot_be_made_fails_alone(running: System) -> None:
    steps = a_block()
    steps["step-b"] = agent("echo", input_mapping={"x": "${workflow.input.missing}"})
    with capture_logs() as lines:
        result = await running.run(workflow(steps), {"present": 1})
    rows = await running.steps(result.run_id)
    assert (rows["step-a"]["status"], rows["step-b"]["status"]) == ("COMPLETED", "FAILED")
    assert rows["block"]["branches_failed"] == 1
    assert [line["code"] for line in lines if line.get("step_id") == "step-b"] == ["reference_broken"]


@pytest.mark.parametrize("limit", [None, 1])
async def test_a_block_of_which_no_branch_can_start_fails_at_once(running: System, limit: int | None) -> None:
    names = ["step-a", "step-b", "step-c"]
    branches = {name: agent("echo", input_mapping={"x": "${workflow.input.missing}"}) for name in names}
    outer = block(names) if limit is None else block(names, max_parallelism=limit)
    result = await running.run(workflow({"block": outer, **branches}), {})
    assert result.status is ResultStatus.FAILED
    assert result.error is not None
    assert "3 of 3 branches failed" in result.error.message
    assert set((await running.statuses(result.run_id)).values()) == {"FAILED"}
    await running.quiet()
    assert not await running.gate_exists(result.run_id, "block")


async def test_hundreds_of_failures_are_counted_and_the_first_twenty_described(running: System) -> None:
    names = [f"b{number}" for number in range(150)]
    steps = {"block": block(names), **{name: agent("broken") for name in names}}
    result = await running.run(workflow(steps))
    assert result.error is not None
    assert result.error.details is not None
    assert result.error.details["failed_count"] == 150
    assert [failure["step_id"] for failure in result.error.details["failed_steps"]] == names[:20]
    assert "150 of 150 branches failed" in result.error.message
    assert "and 147 more" in result.error.message


async def test_nothing_of_an_error_is_lost_that_a_later_step_may_want(running: System) -> None:
    steps = {
        "first": agent("broken", on_failure="second"),
        "second": agent("echo", input_mapping={"depth": "${first.error.details.depth}"}),
    }
    result = await running.run(workflow(steps))
    assert result.output == {"depth": 12}
