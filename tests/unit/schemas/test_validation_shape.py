from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from schemas.errors import WorkflowInvalid
from schemas.validation import parse_workflow, validate_workflow
from schemas.workflow import AgentStep, ParallelStep

Found = Callable[[object], list[tuple[str, str, str | None]]]
Document = dict[str, Any]

NAME_FAULTS = ["x" * 300, "has spaces", "../etc", "#", "a*b", "a.b", "", "-first", "line\nbreak", "ünïcode"]


def test_a_right_document_has_no_problems(workflow: Document) -> None:
    assert validate_workflow(workflow) == []


def test_defaults_are_filled_in(workflow: Document) -> None:
    parsed = parse_workflow(workflow)

    assert parsed.workflow_id == parsed.name == "Parallel Execution Example"
    assert [(key, step.id) for key, step in parsed.steps.items()] == [(key, key) for key in workflow["steps"]]
    step = parsed.steps["step-a"]
    assert isinstance(step, AgentStep)
    assert (step.type, step.next_step, step.on_failure, step.timeout_seconds) == ("agent", None, None, None)
    block = parsed.steps["block"]
    assert isinstance(block, ParallelStep)
    assert (block.parallel_steps, block.max_parallelism) == (["step-a", "step-b", "step-c"], 2)


def test_a_parsed_workflow_dumps_to_a_document_that_parses_to_the_same(workflow: Document) -> None:
    parsed = parse_workflow(workflow)

    assert parse_workflow(parsed.model_dump(mode="json")) == parsed


def test_the_document_itself_is_left_as_it_was(workflow: Document) -> None:
    workflow["nmae"] = workflow.pop("name")
    before = deepcopy(workflow)

    validate_workflow(workflow)

    assert workflow == before


@pytest.mark.parametrize("document", [None, [], "text", 5])
def test_a_document_that_is_no_object_is_refused(found: Found, document: object) -> None:
    assert found(document) == [("", "not_an_object", None)]


def test_an_empty_document_lacks_its_required_fields(found: Found) -> None:
    assert found({}) == [(name, "missing_field", None) for name in ("name", "start_step", "steps")]


@pytest.mark.parametrize(("steps", "code"), [({}, "no_steps"), ([], "wrong_type"), (None, "wrong_type")])
def test_a_document_without_steps_has_that_one_problem(found: Found, steps: object, code: str) -> None:
    assert found({"name": "x", "start_step": "a", "steps": steps}) == [("steps", code, None)]


@pytest.mark.parametrize("value", [float("nan"), "\0", "\ud800", object(), 10**400])
def test_a_document_that_is_not_json_is_refused_with_the_place(found: Found, workflow: Document, value: object) -> None:
    workflow["steps"]["step-a"]["input_mapping"]["x"] = [value]

    [(place, _, _)] = found(workflow)

    assert place == "steps.step-a.input_mapping.x[0]"


def test_an_input_mapping_of_absurd_depth_is_refused_without_recursion(found: Found, workflow: Document) -> None:
    value: object = "${workflow.input}"
    for _ in range(100_000):
        value = [value]
    workflow["steps"]["step-a"]["input_mapping"] = {"x": value}

    assert [code for _, code, _ in found(workflow)] == ["too_deep"]


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("name", 5, "wrong_type"),
        ("name", "", "bad_name"),
        ("name", "x" * 300, "bad_name"),
        ("workflow_id", "line\nbreak", "bad_name"),
        ("version", 1, "wrong_type"),
        ("version", "", "empty"),
        ("version", "v" * 101, "too_long"),
        ("description", [], "wrong_type"),
        ("start_step", None, "wrong_type"),
    ],
)
def test_a_field_of_the_workflow_that_is_wrong_is_one_problem(
    found: Found, workflow: Document, field: str, value: object, code: str
) -> None:
    workflow[field] = value

    assert found(workflow) == [(field, code, None)]


@pytest.mark.parametrize(
    ("step", "field", "value", "code"),
    [
        ("block", "max_parallelism", 0, "out_of_range"),
        ("block", "max_parallelism", -1, "out_of_range"),
        ("block", "max_parallelism", True, "wrong_type"),
        ("block", "max_parallelism", 2.0, "wrong_type"),
        ("block", "max_parallelism", "2", "wrong_type"),
        ("block", "parallel_steps", "step-a", "wrong_type"),
        ("block", "timeout_seconds", 0, "out_of_range"),
        ("step-a", "timeout_seconds", -0.5, "out_of_range"),
        ("step-a", "timeout_seconds", 1e300, "out_of_range"),
        ("step-a", "timeout_seconds", "30", "wrong_type"),
        ("step-a", "timeout_seconds", True, "wrong_type"),
        ("step-a", "input_mapping", [], "wrong_type"),
        ("step-a", "input_mapping", None, "wrong_type"),
        ("step-a", "agent_name", None, "wrong_type"),
        ("step-a", "agent_name", "amq.gen", "bad_name"),
        ("step-a", "id", 5, "wrong_type"),
        ("step-a", "description", 5, "wrong_type"),
        ("step-a", "on_failure", 5, "wrong_type"),
        ("final-step", "next_step", ["report"], "wrong_type"),
    ],
)
def test_a_field_of_a_step_that_is_wrong_is_one_problem(
    found: Found, workflow: Document, step: str, field: str, value: object, code: str
) -> None:
    workflow["steps"][step][field] = value

    assert found(workflow) == [(f"steps.{step}.{field}", code, None)]


@pytest.mark.parametrize("limit", [1, 3, 4, 70_000, None])
def test_a_limit_may_be_above_the_number_of_branches_or_absent(workflow: Document, limit: int | None) -> None:
    workflow["steps"]["block"]["max_parallelism"] = limit

    block = parse_workflow(workflow).steps["block"]

    assert isinstance(block, ParallelStep)
    assert block.max_parallelism == limit


@pytest.mark.parametrize("name", [name for name in NAME_FAULTS if name != "a.b"])
def test_an_agent_name_that_cannot_be_a_routing_key_is_refused(found: Found, workflow: Document, name: str) -> None:
    workflow["steps"]["step-a"]["agent_name"] = name

    assert found(workflow) == [("steps.step-a.agent_name", "bad_name", None)]


@pytest.mark.parametrize("name", [*NAME_FAULTS, "workflow"])
def test_a_step_id_that_cannot_stand_in_a_reference_is_refused_once(
    found: Found, workflow: Document, name: str
) -> None:
    workflow["steps"][name] = workflow["steps"].pop("step-c")
    del workflow["steps"][name]["id"]
    workflow["steps"]["block"]["parallel_steps"][2] = name

    [(place, code, _)] = found(workflow)

    assert place.startswith("steps")
    assert code == "bad_name"


def test_a_wrong_id_is_named_by_its_key_and_a_long_one_is_cut() -> None:
    long = "x" * 300
    document = {"name": "n", "start_step": long, "steps": {long: {"agent_name": "a"}}}

    [problem] = validate_workflow(document)

    assert problem.place == "steps." + "x" * 100 + "..."
    assert len(problem.message) < 300


def test_an_id_that_differs_from_its_key_is_refused(found: Found, workflow: Document) -> None:
    workflow["steps"]["step-c"]["id"] = "step-d"

    assert found(workflow) == [("steps.step-c.id", "id_differs_from_key", "step-c")]


def test_a_misspelt_field_is_refused_with_the_field_that_was_meant(found: Found, workflow: Document) -> None:
    steps = workflow["steps"]
    workflow["start_stp"] = workflow.pop("start_step")
    steps["block"]["max_paralellism"] = steps["block"].pop("max_parallelism")
    steps["block"]["paralel_steps"] = steps["block"].pop("parallel_steps")
    steps["block"]["tpye"] = steps["block"].pop("type")
    steps["block"]["nextStep"] = steps["block"].pop("next_step")
    steps["step-a"]["agent"] = steps["step-a"].pop("agent_name")

    assert found(workflow) == [
        ("start_stp", "unknown_field", "start_step"),
        ("steps.block.max_paralellism", "unknown_field", "max_parallelism"),
        ("steps.block.paralel_steps", "unknown_field", "parallel_steps"),
        ("steps.block.tpye", "unknown_field", "type"),
        ("steps.block.nextStep", "unknown_field", "next_step"),
        ("steps.step-a.agent", "unknown_field", "agent_name"),
    ]


def test_a_misspelt_field_is_checked_as_the_one_that_was_meant(found: Found, workflow: Document) -> None:
    workflow["steps"]["block"]["max_paralellism"] = 0
    del workflow["steps"]["block"]["max_parallelism"]

    assert found(workflow) == [
        ("steps.block.max_paralellism", "unknown_field", "max_parallelism"),
        ("steps.block.max_parallelism", "out_of_range", None),
    ]


def test_an_unknown_field_like_no_other_is_refused_with_what_there_is(workflow: Document) -> None:
    workflow["steps"]["step-b"]["colour"] = "blue"

    [problem] = validate_workflow(workflow)

    assert str(problem) == (
        'steps.step-b.colour: a step has no field "colour"; it may also have "id", "description", "on_failure", '
        '"queue_timeout_seconds", "heartbeat_timeout_seconds", "retry", "retry_strategy", "input_mapping" '
        "[unknown_field]"
    )


@pytest.mark.parametrize(
    ("step", "field", "value"),
    [("step-a", "max_parallelism", 2), ("block", "agent_name", "x"), ("block", "input_mapping", {})],
)
def test_a_field_of_the_other_kind_of_step_is_refused(
    found: Found, workflow: Document, step: str, field: str, value: object
) -> None:
    workflow["steps"][step][field] = value

    assert found(workflow) == [(f"steps.{step}.{field}", "unknown_field", None)]


def test_a_step_without_agent_name_lacks_it(found: Found, workflow: Document) -> None:
    del workflow["steps"]["step-a"]["agent_name"]

    assert found(workflow) == [("steps.step-a.agent_name", "missing_field", None)]


def test_a_block_without_its_type_is_told_to_say_so(found: Found, workflow: Document) -> None:
    del workflow["steps"]["block"]["type"]

    assert found(workflow) == [("steps.block.type", "missing_field", "parallel")]


@pytest.mark.parametrize(
    ("given", "suggestion"),
    [("paralel", "parallel"), ("Parallel", "parallel"), ("while", None), (5, None), (None, None), ([], None)],
)
def test_an_unknown_type_is_one_problem(
    found: Found, workflow: Document, given: object, suggestion: str | None
) -> None:
    workflow["steps"]["block"]["type"] = given

    assert found(workflow) == [("steps.block.type", "unknown_type", suggestion)]


def test_a_step_of_an_unknown_type_need_not_be_an_agent(found: Found, workflow: Document) -> None:
    workflow["steps"]["step-c"] = {"type": "while"}

    assert found(workflow) == [("steps.step-c.type", "unknown_type", None)]


@pytest.mark.parametrize("step", [None, 5, "research", ["research"]])
def test_a_step_that_is_no_object_is_one_problem(found: Found, workflow: Document, step: object) -> None:
    workflow["steps"]["final-step"] = step

    assert found(workflow) == [("steps.final-step", "wrong_type", None)]


def test_the_error_lists_all_problems_in_words(workflow: Document) -> None:
    workflow["steps"]["block"]["max_parallelism"] = 0
    workflow["steps"]["step-a"]["timeout_seconds"] = "soon"
    workflow["steps"]["final-step"]["next_step"] = "reprot"

    with pytest.raises(WorkflowInvalid) as caught:
        parse_workflow(workflow)

    assert str(caught.value) == (
        "the workflow has 3 problems: "
        "steps.block.max_parallelism: 0 is too small; the least is 1 [out_of_range]; "
        'steps.step-a.timeout_seconds: this is the string "soon"; it must be a number [wrong_type]; '
        'steps.final-step.next_step: there is no step "reprot" (did you mean "report"?) [unknown_step]'
    )


def test_the_text_of_an_error_stays_short_when_everything_is_wrong() -> None:
    document = {"name": "n", "start_step": "s0", "steps": {f"s{index}": {"agent_name": 5} for index in range(1000)}}

    with pytest.raises(WorkflowInvalid) as caught:
        parse_workflow(document)

    assert len(caught.value.problems) >= 1000
    assert len(str(caught.value)) < 10_000
    assert str(caught.value).endswith(f"and {len(caught.value.problems) - 50} more")
