"""What is larger than the broker takes: told, and never waited for."""

from typing import Any

from tests.integration.documents import agent, workflow
from tests.integration.system import System

SMALL = {"max_message_bytes": 4_096}


async def large(input: Any) -> Any:
    return {"text": "x" * 6_000}


async def echo(input: Any) -> Any:
    return input


async def test_a_step_whose_input_makes_too_large_a_task_fails_and_the_run_ends(system: System) -> None:
    await system.start_worker(large, echo)
    await system.start_replica(broker=SMALL)
    document = workflow(
        {"one": agent("large", next_step="two"), "two": agent("echo", input_mapping={"all": "${one.output}"})}
    )
    result = await system.run(document)
    assert (result.status, result.error.details["step_id"] if result.error and result.error.details else None) == (
        "FAILED",
        "two",
    )
    assert result.run_id is not None
    assert (await system.steps(result.run_id))["two"]["error"]["code"] == "payload_too_large"
    await system.quiet()


async def test_a_result_that_is_too_large_is_told_without_its_output_which_stays_in_the_row(system: System) -> None:
    await system.start_worker(large)
    await system.start_replica(broker=SMALL)
    result = await system.run(workflow({"one": agent("large")}))
    assert (result.status, result.output) == ("COMPLETED", None)
    assert result.error is not None
    assert result.error.code == "payload_too_large"
    assert result.run_id is not None
    assert (await system.run_row(result.run_id))["output"] == {"text": "x" * 6_000}
    await system.quiet()
