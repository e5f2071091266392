import json
from types import MappingProxyType
from typing import Any

import pytest

from schemas.errors import ReferenceBroken, TemplateInvalid
from schemas.json_text import MAX_DEPTH
from schemas.references import Scope, StepOutcome, compile_template, read_template
from schemas.statuses import StepStatus

SCOPE = Scope(
    workflow_input={"topic": "otters", "list": [10, {"a-b": True}], "a key": 1},
    steps={
        "step-a": StepOutcome(
            StepStatus.COMPLETED, {"result": "wet", "n": {"k": 1.5, "ä": None}, "quote": "${x}"}, None
        ),
        "step-b": StepOutcome(StepStatus.FAILED, None, {"code": "agent_error", "message": "no such topic"}),
        "step-c": StepOutcome(StepStatus.COMPLETED, ["one"], None),
        "gone": StepOutcome(StepStatus.SKIPPED, None, None),
    },
)


def resolve(value: Any) -> Any:
    return compile_template(value).resolve(SCOPE)


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("${workflow.input}", SCOPE.workflow_input),
        ("${workflow.input.list[0]}", 10),
        ("${workflow.input.list[1].a-b}", True),
        ("${workflow.input.a key}", 1),
        ("${step-a.output}", SCOPE.steps["step-a"].output),
        ("${step-a.output.n}", {"k": 1.5, "ä": None}),
        ("${step-a.output.n.ä}", None),
        ("${step-c.output[0]}", "one"),
        ("${step-b.output}", None),
        ("${step-b.error}", {"code": "agent_error", "message": "no such topic"}),
        ("${step-b.error.message}", "no such topic"),
        ("${step-b.error.details}", None),
        ("${step-a.status}", "COMPLETED"),
        ("${step-b.status}", "FAILED"),
    ],
)
def test_a_string_that_is_one_reference_becomes_the_value_with_its_type(template: str, value: Any) -> None:
    assert resolve(template) == value
    assert type(resolve(template)) is type(value)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("About ${workflow.input.topic}", "About otters"),
        ("${workflow.input.topic}${step-a.output.result}", "otterswet"),
        (" ${workflow.input.list[0]}", " 10"),
        ("n=${step-a.output.n}.", 'n={"k":1.5,"ä":null}.'),
        ("${step-c.output}, ${step-b.output}, ${workflow.input.list[1].a-b}", '["one"], null, true'),
        ("${step-b.error}!", '{"code":"agent_error","message":"no such topic"}!'),
        ("${step-b.status}: ${step-b.error.message}", "FAILED: no such topic"),
    ],
)
def test_inside_a_longer_string_a_value_is_written_as_text(template: str, text: str) -> None:
    assert resolve(template) == text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("$${", "${"),
        ("$${step-a.output}", "${step-a.output}"),
        ("$${x} ${step-a.output.result}", "${x} wet"),
        ("$$${step-a.output.result}", "$${step-a.output.result}"),
        ("100$", "100$"),
        ("$step {a}", "$step {a}"),
        ("{{ x }} %s {0} '; DROP TABLE runs; --", "{{ x }} %s {0} '; DROP TABLE runs; --"),
    ],
)
def test_a_literal_brace_is_written_with_two_dollars(template: str, text: str) -> None:
    assert resolve(template) == text


def test_references_are_resolved_at_any_depth_of_values_and_never_in_keys() -> None:
    template = {"${step-a.output}": [{"deep": ("${step-a.status}", 1)}], "plain": [1, None]}

    assert resolve(template) == {"${step-a.output}": [{"deep": ["COMPLETED", 1]}], "plain": [1, None]}


def test_data_that_looks_like_a_reference_stays_as_it_is() -> None:
    assert resolve("${step-a.output.quote}") == "${x}"
    assert resolve("see ${step-a.output.quote}") == "see ${x}"


@pytest.mark.parametrize("value", [None, 5, "text", [], {}, {"a": [1, {"b": "c $ {d}"}]}])
def test_a_value_without_references_is_returned_as_it_is(value: Any) -> None:
    template = compile_template(value)

    assert template.resolve(SCOPE) is value
    assert template.steps == frozenset()
    assert template.references == ()


def test_parts_without_references_are_shared_and_not_copied() -> None:
    constant = {"large": [1, 2, 3]}

    assert resolve({"a": "${step-a.status}", "b": constant})["b"] is constant
    assert resolve("${step-a.output}") is SCOPE.steps["step-a"].output


def test_a_template_knows_which_steps_it_needs_and_where() -> None:
    template = compile_template({"a": ["${step-a.output.x[0]} ${step-b.status}"], "b": "${workflow.input}"})

    assert template.steps == {"step-a", "step-b"}
    assert [(placed.place, placed.reference.text) for placed in template.references] == [
        (("a", 0), "${step-a.output.x[0]}"),
        (("a", 0), "${step-b.status}"),
        (("b",), "${workflow.input}"),
    ]
    assert template.references[0].reference.path == ("x", 0)


def test_a_step_that_has_not_run_is_skipped() -> None:
    assert resolve("${nowhere.status} ${gone.status}") == "SKIPPED SKIPPED"


@pytest.mark.parametrize(
    "reference", ["${nowhere.output}", "${nowhere.error}", "${gone.output.x}", "${gone.error.code}"]
)
def test_a_step_that_has_not_run_has_neither_output_nor_error(reference: str) -> None:
    with pytest.raises(ReferenceBroken, match="has not run on this path") as caught:
        resolve(reference)

    assert caught.value.reference == reference


@pytest.mark.parametrize("path", ["", ".code", ".message", ".details"])
def test_the_error_of_a_step_without_an_error_is_null_and_so_are_its_fields(path: str) -> None:
    assert resolve(f"${{step-a.error{path}}}") is None


def test_an_error_may_be_any_mapping() -> None:
    outcome = StepOutcome(StepStatus.FAILED, None, MappingProxyType({"code": "timeout", "details": {"after": 5}}))
    scope = Scope(None, {"a": outcome})

    assert compile_template("${a.error} ${a.error.details.after}").resolve(scope) == (
        '{"code":"timeout","details":{"after":5}} 5'
    )


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("${step-a.output.titel}", 'step-a.output has no key "titel"; its keys are "result", "n", "quote"'),
        ("${step-a.output.result.x}", 'step-a.output.result is a string and has no key "x"'),
        ("${step-a.output[0]}", 'step-a.output is an object and has no [0]; its keys are "result", "n", "quote"'),
        ("${step-a.error.type}", 'step-a.error has no key "type"; its keys are "code", "message", "details"'),
        ("${step-a.error.details.x}", 'step-a.error.details is null and has no key "x"'),
        ("${step-b.output.result}", 'step-b.output is null and has no key "result"'),
        ("${step-c.output[1]}", "step-c.output has no [1]; it is an array of 1"),
        (
            "${step-c.output.0}",
            'step-c.output is an array of 1 and has no key "0"; take an element with [index]',
        ),
        ("${workflow.input.list[1].a-b[0]}", "workflow.input.list[1].a-b is true and has no [0]"),
    ],
)
def test_a_path_that_does_not_exist_says_where_it_broke_and_what_was_there(reference: str, why: str) -> None:
    with pytest.raises(ReferenceBroken) as caught:
        resolve({"a": [f"text {reference}"]})

    assert str(caught.value) == f"{reference} leads nowhere: {why}"


def test_a_broken_reference_never_dumps_the_data() -> None:
    data = {f"key-{index}-" + "k" * 1000: "secret" * 1000 for index in range(1000)}

    with pytest.raises(ReferenceBroken) as caught:
        compile_template("${workflow.input.other}").resolve(Scope(data, {}))

    assert len(str(caught.value)) < 1500
    assert "and 990 more" in str(caught.value)
    assert "secret" not in str(caught.value)


MALFORMED = [
    ("${", None),
    ("text ${step-a.output", None),
    ("${step-a.output.{x}}", None),
    ("${}", None),
    ("${ step-a.output }", None),
    ("${.output}", None),
    ("${foo}", "${foo.output}"),
    ("${step-a}", "${step-a.output}"),
    ("${step-a.result}", "${step-a.output.result}"),
    ("${step-a.ouput.x}", "${step-a.output.x}"),
    ("${step-a..x}", None),
    ("${step-a.output.}", None),
    ("${step-a.output..x}", None),
    ("${step-a.output[x]}", None),
    ("${step-a.output[-1]}", None),
    ("${step-a.output[]}", None),
    ("${step-a.output[0]x}", None),
    ("${step-a.output[99999999999999999999]}", None),
    ("${step-a.output.x }", None),
    ("${step-a.outputs}", "${step-a.output}"),
    ("${step-a.status.x}", "${step-a.status}"),
    ("${workflow}", "${workflow.input}"),
    ("${workflow.topic}", "${workflow.input.topic}"),
    ("${workflow.inputs.topic}", "${workflow.input.topic}"),
    ("${workflow.output}", "${workflow.input.output}"),
]


@pytest.mark.parametrize(("text", "suggestion"), MALFORMED)
def test_a_reference_that_cannot_be_read_is_refused(text: str, suggestion: str | None) -> None:
    with pytest.raises(TemplateInvalid) as caught:
        compile_template({"a": [0, text]})

    [problem] = caught.value.problems
    assert (problem.place, problem.code, problem.suggestion) == ("a[1]", "malformed_reference", suggestion)


@pytest.mark.parametrize("suggestion", [suggestion for _, suggestion in MALFORMED if suggestion is not None])
def test_what_is_suggested_can_be_read(suggestion: str) -> None:
    assert compile_template(suggestion).references


def test_all_references_that_cannot_be_read_are_listed_with_their_places() -> None:
    value = {"a": "${step-a} and ${", "b": [{"c": "${workflow.topic}"}], "d": "${step-b.output}"}

    template = read_template(value, ("steps", "x", "input_mapping"))

    assert [problem.place for problem in template.problems] == [
        "steps.x.input_mapping.a",
        "steps.x.input_mapping.a",
        "steps.x.input_mapping.b[0].c",
    ]
    assert template.steps == {"step-b"}


def test_the_message_says_what_would_be_right() -> None:
    with pytest.raises(TemplateInvalid) as caught:
        compile_template({"a": "${step-a.result}"})

    assert str(caught.value) == (
        "the template has 1 problem: a: ${step-a.result} is no reference: write ${step-a.output} or ${step-a.error} or "
        '${step-a.status}, or a path below it; a literal "${" is written "$${" '
        '(did you mean "${step-a.output.result}"?) [malformed_reference]'
    )


def test_a_template_that_is_too_deep_is_refused_without_recursion() -> None:
    value: Any = "${workflow.input}"
    for _ in range(100 * MAX_DEPTH):
        value = [value]

    with pytest.raises(TemplateInvalid, match="too_deep"):
        compile_template(value)


def test_a_template_as_deep_as_json_may_be_resolves() -> None:
    text = "[" * MAX_DEPTH + '"${step-a.status}"' + "]" * MAX_DEPTH

    assert json.dumps(resolve(json.loads(text))) == text.replace("${step-a.status}", "COMPLETED")
