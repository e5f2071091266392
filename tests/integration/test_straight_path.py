"""Runs in which nothing goes wrong: chains, blocks, references, and the rows that they leave."""

import asyncio
from typing import Any

import pytest

from schemas.statuses import ResultStatus
from tests.integration.documents import agent, block, one_block, workflow
from tests.integration.system import System


async def echo(input: Any) -> Any:
    return input


async def nothing(input: Any) -> None:
    return None


FORK_JOIN = workflow(
    {
        "gather": block(["step-a", "step-b", "step-c"], next_step="final"),
        "step-a": agent("research", input_mapping={"topic": "${workflow.input.topic}", "wait_for": 2}),
        "step-b": agent("research", input_mapping={"topic": "b", "wait_for": 1}),
        "step-c": agent("research", input_mapping={"topic": "c", "wait_for": 0}),
        "final": agent(
            "echo",
            input_mapping={
                "a": "${step-a.output.result}",
                "all": "${gather.output}",
                "title": "About ${workflow.input.topic}",
            },
        ),
    }
)


class Reversed:
    """Agents that end in the opposite of the order of the definition."""

    def __init__(self) -> None:
        self._ended = [asyncio.Event() for _ in range(4)]
        self._ended[0].set()

    async def research(self, input: dict[str, Any]) -> Any:
        place = input["wait_for"]
        await self._ended[place].wait()
        self._ended[place + 1].set()
        return {"result": f"about {input['topic']}"}


async def test_a_chain_of_agents_hands_each_output_on(system: System) -> None:
    async def double(input: dict[str, int]) -> dict[str, int]:
        return {"n": input["n"] * 2}

    await system.start_replica()
    await system.start_worker(double)
    document = workflow(
        {
            "one": agent("double", input_mapping={"n": "${workflow.input.n}"}, next_step="two"),
            "two": agent("double", input_mapping={"n": "${one.output.n}"}, next_step="three"),
            "three": agent("double", input_mapping={"n": "${two.output.n}"}),
        }
    )
    result = await system.run(document, {"n": 5})
    assert (result.status, result.output, result.error) == (ResultStatus.COMPLETED, {"n": 40}, None)
    steps = await system.steps(result.run_id)
    assert list(steps) == ["one", "two", "three"]
    assert [step["output"] for step in steps.values()] == [{"n": 10}, {"n": 20}, {"n": 40}]
    await system.quiet()


async def test_a_block_joins_in_the_order_of_the_definition_whatever_the_order_of_the_results(system: System) -> None:
    await system.start_replica()
    await system.start_worker(Reversed().research, echo)
    result = await system.run(FORK_JOIN, {"topic": "bees"})
    assert result.status is ResultStatus.COMPLETED
    joined = {
        "step-a": {"result": "about bees"},
        "step-b": {"result": "about b"},
        "step-c": {"result": "about c"},
    }
    assert result.output == {"a": "about bees", "all": joined, "title": "About bees"}
    assert list(result.output["all"]) == ["step-a", "step-b", "step-c"]
    steps = await system.steps(result.run_id)
    ends = [steps[name]["finished_at"] for name in ("step-c", "step-b", "step-a")]
    assert ends == sorted(ends)
    await system.quiet()


async def test_every_step_execution_leaves_a_complete_row(system: System) -> None:
    await system.start_replica()
    await system.start_worker(Reversed().research, echo, worker_id="worker-7")
    result = await system.run(FORK_JOIN, {"topic": "bees"}, labels={"team": "blue"})
    steps = await system.steps(result.run_id)
    branch = steps["step-b"]
    expected = {
        "parent_step_id": "gather",
        "branch_name": "step-b",
        "join_policy": "all",
        "position": 1,
        "status": "COMPLETED",
        "agent_name": "research",
        "attempt": 1,
        "worker_id": "worker-7",
        "input": {"topic": "b", "wait_for": 1},
        "output": {"result": "about b"},
        "error": None,
        "due_at": None,
    }
    assert {name: branch[name] for name in expected} == expected
    assert branch["created_at"] <= branch["queued_at"] <= branch["finished_at"]
    assert branch["started_at"] <= branch["finished_at"]
    assert branch["task_id"] is not None

    outer = steps["gather"]
    expected = {
        "parent_step_id": None,
        "branch_name": None,
        "join_policy": "all",
        "status": "COMPLETED",
        "agent_name": None,
        "branches_total": 3,
        "branches_open": 0,
        "branches_failed": 0,
        "error": None,
        "task_id": None,
    }
    assert {name: outer[name] for name in expected} == expected
    assert outer["output"] == result.output["all"]
    assert outer["created_at"] <= outer["started_at"] <= outer["finished_at"]

    final = steps["final"]
    assert (final["parent_step_id"], final["branch_name"], final["join_policy"]) == (None, None, None)
    run = await system.run_row(result.run_id)
    assert (run["status"], run["output"], run["input"]) == ("COMPLETED", result.output, {"topic": "bees"})
    assert run["labels"] == {"team": "blue"}
    assert run["created_at"] <= run["started_at"] <= run["finished_at"]


async def test_an_output_of_null_is_an_output(system: System) -> None:
    await system.start_replica()
    await system.start_worker(nothing, echo)
    document = workflow(
        {
            "block": block(["one", "two"], next_step="last"),
            "one": agent("nothing"),
            "two": agent("nothing"),
            "last": agent("echo", input_mapping={"one": "${one.output}", "all": "${block.output}"}),
        }
    )
    result = await system.run(document)
    assert result.output == {"one": None, "all": {"one": None, "two": None}}
    rows = await system.fetch("SELECT output::text FROM step_executions WHERE step_id = 'one'")
    assert rows[0][0] == "null"


UNICODE = {
    "größe": "🐝 \U0001d4b3 \u200f\u202e",
    "": [],
    "sql": "'; DROP TABLE runs; --",
    "template": "${workflow.input}",
}


async def test_text_in_any_script_comes_back_as_it_was(system: System) -> None:
    await system.start_replica()
    await system.start_worker(echo)
    document = workflow(
        {
            "one": agent("echo", input_mapping={"all": "${workflow.input}"}, next_step="two"),
            "two": agent("echo", input_mapping={"again": "${one.output.all}", "größe": "${one.output.all.größe}"}),
        }
    )
    result = await system.run(document, UNICODE)
    assert result.output == {"again": UNICODE, "größe": UNICODE["größe"]}
    assert (await system.run_row(result.run_id))["input"] == UNICODE


async def test_keys_keep_their_order_and_numbers_their_text(system: System) -> None:
    await system.start_replica()
    await system.start_worker(echo)
    given = {"z": 1.0, "a": 10**40, "m": 1e-7, "b": True}
    result = await system.run(workflow({"one": agent("echo", input_mapping={"x": "${workflow.input}"})}), given)
    assert list(result.output["x"]) == list(given)
    assert result.output["x"] == given
    stored = (await system.fetch("SELECT output::text FROM step_executions"))[0][0]
    assert stored == '{"x":{"z":1.0,"a":10000000000000000000000000000000000000000,"m":1e-7,"b":true}}'


async def test_outputs_of_megabytes_are_joined_and_handed_on(system: System) -> None:
    async def large(input: dict[str, Any]) -> Any:
        return {"text": str(input["n"]) * 1_000_000}

    async def measure(input: dict[str, Any]) -> Any:
        return {name: len(value["text"]) for name, value in input["all"].items()}

    await system.start_replica()
    await system.start_worker(large, measure)
    document = one_block(4, agent_name="large", next_step="last")
    document["steps"]["last"] = agent("measure", input_mapping={"all": "${block.output}"})
    result = await system.run(document)
    assert result.output == {f"b{number}": 1_000_000 for number in range(4)}
    await system.quiet()


@pytest.mark.parametrize("branches", [1, 2, 50])
async def test_a_block_of_any_size_completes_on_two_replicas(system: System, branches: int) -> None:
    await system.start_replica()
    await system.start_replica()
    await system.start_worker(echo)
    result = await system.run(one_block(branches))
    assert result.status is ResultStatus.COMPLETED
    assert result.output == {f"b{number}": {"n": number} for number in range(branches)}
    await system.quiet()


async def test_results_of_runs_that_one_client_awaits_at_once_are_not_mixed_up(system: System) -> None:
    await system.start_replica()
    await system.start_worker(echo)
    document = workflow({"one": agent("echo", input_mapping={"n": "${workflow.input}"})})
    results = await asyncio.gather(*(system.run(document, number) for number in range(10)))
    assert [result.output for result in results] == [{"n": number} for number in range(10)]
