"""Steps that start other workflows, as documents have them."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.messages import RunRequest
from schemas.validation import parse_workflow, validate_workflow
from schemas.workflow import SubWorkflowStep

Found = Callable[[object], list[tuple[str, str, str | None]]]


def starting(**fields: Any) -> dict[str, Any]:
    step = {"type": "sub_workflow", "workflow_id": "other", **fields}
    return {"name": "this", "start_step": "calls", "steps": {"calls": step}}


def test_a_step_names_a_workflow_and_what_it_does_not_say_has_a_default() -> None:
    step = parse_workflow(starting()).steps["calls"]
    assert isinstance(step, SubWorkflowStep)
    assert (step.id, step.workflow_id, step.version, step.input_mapping) == ("calls", "other", None, {})
    assert (step.timeout_seconds, step.retry, step.retry_strategy) == (None, None, None)


def test_it_may_say_all_that_an_agent_step_may_but_what_is_about_workers() -> None:
    fields = {
        "description": "x",
        "version": "2.1",
        "input_mapping": {"a": "${workflow.input}"},
        "timeout_seconds": 5.0,
        "retry": {"max_attempts": 2},
    }
    assert validate_workflow(starting(**fields)) == []


def test_all_problems_are_told_at_once(found: Found) -> None:
    document = starting(
        workflow_id=7,
        version="",
        input_mapping=[],
        timeout_seconds=0,
        queue_timeout_seconds=1.0,
        heartbeat_timeout_seconds=1.0,
        agent_name="x",
        verison="1.0",
    )
    place = "steps.calls."
    assert sorted(found(document)) == [
        (place + "agent_name", "unknown_field", None),
        (place + "heartbeat_timeout_seconds", "unknown_field", None),
        (place + "input_mapping", "wrong_type", None),
        (place + "queue_timeout_seconds", "unknown_field", None),
        (place + "timeout_seconds", "out_of_range", None),
        (place + "verison", "unknown_field", None),
        (place + "version", "empty", None),
        (place + "workflow_id", "wrong_type", None),
    ]


def test_a_step_without_a_workflow_lacks_it(found: Found) -> None:
    document = starting()
    del document["steps"]["calls"]["workflow_id"]
    assert found(document) == [("steps.calls.workflow_id", "missing_field", None)]


def test_a_step_that_shows_what_it_is_should_say_so(found: Found) -> None:
    document = starting()
    del document["steps"]["calls"]["type"]
    assert found(document) == [("steps.calls.type", "missing_field", "sub_workflow")]


@pytest.mark.parametrize("fields", [{"name": "other"}, {"workflow_id": "other"}])
def test_a_workflow_cannot_start_itself(found: Found, fields: dict[str, str]) -> None:
    assert found(starting() | fields) == [("steps.calls.workflow_id", "sub_workflow_cycle", None)]


def test_references_in_its_mapping_lead_to_what_ran_before(found: Found) -> None:
    document = starting(input_mapping={"a": "${nobody.output}"})
    assert found(document) == [("steps.calls.input_mapping.a", "reference_to_unknown_step", None)]


def test_a_request_that_names_a_parent_names_its_run() -> None:
    with pytest.raises(ValidationError, match="goes with `run_id`"):
        RunRequest(workflow_id="x", parent_run_id="00000000-0000-0000-0000-000000000001")  # type: ignore[arg-type]
