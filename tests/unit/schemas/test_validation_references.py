from collections.abc import Callable
from typing import Any

import pytest

from schemas.validation import validate_workflow

Found = Callable[[object], list[tuple[str, str, str | None]]]
Document = dict[str, Any]


def mapped(workflow: Document, step: str, value: object) -> Document:
    workflow["steps"][step]["input_mapping"] = {"x": value}
    return workflow


@pytest.mark.parametrize(
    ("step", "reference"),
    [
        ("step-a", "${workflow.input}"),
        ("step-a", "$${step-b.output}"),
        ("final-step", "${step-a.output.result} ${step-b.status}"),
        ("final-step", "${block.output.step-a}"),
        ("report", "${block.error} ${step-c.error.message}"),
        ("last", "${final-step.output} ${step-a.output} ${block.status}"),
        ("last", "${report.status}"),
        ("lane", "${final-step.output} ${step-a.output}"),
    ],
)
def test_a_step_may_use_what_ran_before_it_on_some_path(
    found: Found, workflow: Document, step: str, reference: str
) -> None:
    workflow["steps"]["final-step"]["next_step"] = "second"
    workflow["steps"]["report"]["next_step"] = "last"
    workflow["steps"]["second"] = {"type": "parallel", "parallel_steps": ["lane"], "next_step": "last"}
    workflow["steps"]["lane"] = {"agent_name": "x"}
    workflow["steps"]["last"] = {"agent_name": "x"}

    assert found(mapped(workflow, step, reference)) == []


def test_the_target_of_a_branchs_failure_may_use_the_whole_block(found: Found, workflow: Document) -> None:
    del workflow["steps"]["block"]["on_failure"]
    workflow["steps"]["step-c"]["on_failure"] = "report"

    assert found(mapped(workflow, "report", "${step-c.error} ${step-a.output} ${block.output}")) == []


@pytest.mark.parametrize(
    ("step", "reference", "code", "suggestion"),
    [
        ("final-step", "${step-aa.output}", "reference_to_unknown_step", "step-a"),
        ("final-step", "${zzzzzzzz.output}", "reference_to_unknown_step", None),
        ("final-step", "${report.output}", "reference_to_later_step", None),
        ("step-a", "${final-step.output}", "reference_to_later_step", None),
        ("step-a", "${final-step.status}", "reference_to_later_step", None),
        ("step-a", "${step-b.output.x}", "reference_between_siblings", None),
        ("step-a", "${step-b.status}", "reference_between_siblings", None),
        ("step-a", "${block.output}", "reference_to_own_block", None),
        ("step-a", "${step-a.output}", "reference_to_itself", None),
        ("final-step", "${final-step.output}", "reference_to_itself", None),
        ("final-step", "${step-a.result}", "malformed_reference", "${step-a.output.result}"),
        ("final-step", "${", "malformed_reference", None),
    ],
)
def test_a_reference_to_what_has_not_run_is_refused_at_its_place(
    found: Found, workflow: Document, step: str, reference: str, code: str, suggestion: str | None
) -> None:
    mapped(workflow, step, {"deep": [0, f"see {reference}"]})

    assert found(workflow) == [(f"steps.{step}.input_mapping.x.deep[1]", code, suggestion)]


@pytest.mark.parametrize(
    ("step", "reference", "text"),
    [
        (
            "final-step",
            "${step-aa.output}",
            '${step-aa.output}: there is no step "step-aa" (did you mean "step-a"?) [reference_to_unknown_step]',
        ),
        (
            "step-a",
            "${final-step.output}",
            '${final-step.output}: "final-step" does not run before "step-a" on any path from the start '
            "[reference_to_later_step]",
        ),
        (
            "step-a",
            "${step-b.output}",
            '${step-b.output}: "step-b" runs at the same time, in the same block "block"; only steps behind the block '
            "can use it [reference_between_siblings]",
        ),
        (
            "step-a",
            "${block.output}",
            '${block.output}: block "block" is done only after all its branches, this one too [reference_to_own_block]',
        ),
        ("step-a", "${step-a.output}", "${step-a.output}: a step cannot refer to itself [reference_to_itself]"),
    ],
)
def test_the_message_names_the_reference_and_what_would_be_right(
    workflow: Document, step: str, reference: str, text: str
) -> None:
    [problem] = validate_workflow(mapped(workflow, step, reference))

    assert str(problem) == f"steps.{step}.input_mapping.x: {text}"


def test_steps_on_different_paths_do_not_run_before_each_other(found: Found, workflow: Document) -> None:
    workflow["steps"]["final-step"]["input_mapping"] = {"x": "${report.status}"}
    workflow["steps"]["report"]["input_mapping"] = {"x": "${final-step.output}"}

    assert [code for _, code, _ in found(workflow)] == ["reference_to_later_step"] * 2


def test_references_of_a_step_that_cannot_be_reached_have_no_order(found: Found, workflow: Document) -> None:
    workflow["steps"]["orphan"] = {"agent_name": "x", "input_mapping": {"x": "${final-step.output}"}}
    mapped(workflow, "final-step", "${orphan.output}")

    assert found(workflow) == [("steps.orphan", "unreachable_step", None)]


def test_within_a_cycle_every_step_runs_before_every_other(found: Found, workflow: Document) -> None:
    workflow["steps"]["final-step"]["next_step"] = "block"
    mapped(workflow, "step-a", "${final-step.output}")

    assert [code for _, code, _ in found(workflow)] == ["cycle"]


def test_a_misspelt_edge_does_not_put_references_out_of_order(found: Found, workflow: Document) -> None:
    workflow["steps"]["block"]["next_step"] = "finalstep"
    workflow["steps"]["block"]["parallel_steps"][0] = "stepa"

    assert [code for _, code, _ in found(workflow)] == ["unknown_step", "unknown_step"]


@pytest.mark.parametrize("broken", [5, None])
def test_behind_an_edge_that_cannot_be_read_only_certain_disorder_is_reported(
    found: Found, workflow: Document, broken: object
) -> None:
    workflow["start_step"] = broken
    workflow["steps"]["block"]["on_failure"] = 5
    mapped(workflow, "report", "${step-a.output}")
    mapped(workflow, "step-a", "${final-step.output}")

    assert found(workflow) == [
        ("start_step", "wrong_type", None),
        ("steps.block.on_failure", "wrong_type", None),
        ("steps.step-a.input_mapping.x", "reference_to_later_step", None),
    ]


def test_all_wrong_references_of_one_string_are_reported(found: Found, workflow: Document) -> None:
    mapped(workflow, "step-a", "${step-b.output} ${block.output} ${step-a.status} ${x")

    assert {code for _, code, _ in found(workflow)} == {
        "reference_between_siblings",
        "reference_to_own_block",
        "reference_to_itself",
        "malformed_reference",
    }


def test_keys_are_not_templates(found: Found, workflow: Document) -> None:
    assert found(mapped(workflow, "step-a", {"${nowhere.output}": "${"[:1]})) == []
