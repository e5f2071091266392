import json
from types import MappingProxyType
from typing import Any

import pytest

from schemas.errors import ReferenceBroken, TemplateInvalid
from schemas.json_text import MAX_DEPTH
from schemas.references import compile_template, read_template
from schemas.scope import NOTHING_READ, Iteration, Part, Reads, Scope, StepOutcome
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
    assert template.reads is NOTHING_READ
    assert template.references == ()


def test_parts_without_references_are_shared_and_not_copied() -> None:
    constant = {"large": [1, 2, 3]}

    assert resolve({"a": "${step-a.status}", "b": constant})["b"] is constant
    assert resolve("${step-a.output}") is SCOPE.steps["step-a"].output


def test_a_template_knows_which_steps_it_needs_and_where() -> None:
    template = compile_template({"a": ["${step-a.output.x[0]} ${step-b.status}"], "b": "${workflow.input}"})

    assert template.reads == Reads(steps=frozenset({"step-a", "step-b"}), workflow_input=True)
    assert [(placed.place, placed.reference.text) for placed in template.references] == [
        (("a", 0), "${step-a.output.x[0]}"),
        (("a", 0), "${step-b.status}"),
        (("b",), "${workflow.input}"),
    ]
    assert template.references[0].reference.path == ("x", 0)


def test_a_template_knows_the_blocks_whose_errors_it_needs() -> None:
    template = compile_template({"a": "${block.errors.left.code} ${step-a.error}", "b": "${block.output}"})

    assert template.reads == Reads(steps=frozenset({"block", "step-a"}), blocks=frozenset({"block"}))


@pytest.mark.parametrize(
    ("value", "is_reference"),
    [
        ("${step-a.output.list}", True),
        ("${loop.item}", True),
        ("text", False),
        ("$${step-a.output}", False),
        (" ${step-a.output}", False),
        ("${step-a.output}${step-b.output}", False),
        (["${step-a.output}"], False),
    ],
)
def test_a_template_tells_whether_it_is_just_one_reference(value: Any, is_reference: bool) -> None:
    assert compile_template(value).is_reference is is_reference


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


# Iterations of loops


IN_LOOP = Scope({}, {"loop": StepOutcome(StepStatus.COMPLETED, {"index": 7}, None)}, Iteration(1, 3, {"name": ["ada"]}))


def resolve_in(iteration: Iteration | None, template: Any) -> Any:
    return compile_template(template).resolve(Scope({}, {}, iteration))


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("${loop.item}", {"name": ["ada"]}),
        ("${loop.item.name[0]}", "ada"),
        ("${loop.index}", 1),
        ("${loop.total}", 3),
        ("${loop.is_first}", False),
        ("${loop.is_last}", False),
        ("${loop.index} of ${loop.total}: ${loop.item.name[0]}, ${loop.is_last}", "1 of 3: ada, false"),
    ],
)
def test_in_the_body_of_a_loop_a_reference_leads_to_its_iteration(template: str, value: Any) -> None:
    resolved = compile_template(template).resolve(IN_LOOP)

    assert resolved == value
    assert type(resolved) is type(value)


@pytest.mark.parametrize(
    ("index", "total", "is_first", "is_last"),
    [(0, 3, True, False), (1, 3, False, False), (2, 3, False, True), (0, 1, True, True)],
)
def test_an_iteration_knows_whether_it_is_the_first_or_the_last(
    index: int, total: int, is_first: bool, is_last: bool
) -> None:
    iteration = Iteration(index, total)

    assert resolve_in(iteration, ["${loop.is_first}", "${loop.is_last}"]) == [is_first, is_last]


@pytest.mark.parametrize("item", [None, 0, "", [], {}, "${loop.index}"])
def test_an_item_may_be_any_value(item: Any) -> None:
    assert resolve_in(Iteration(0, 1, item), "${loop.item}") is item


def test_a_step_may_be_called_loop_and_is_told_from_the_iteration_by_what_is_taken() -> None:
    template = compile_template("${loop.output.index} ${loop.status} ${loop.index}")

    assert template.resolve(IN_LOOP) == "7 COMPLETED 1"
    assert template.reads == Reads(steps=frozenset({"loop"}), loop_parts=frozenset({Part.INDEX}))


def test_a_template_knows_which_parts_of_the_iteration_it_needs() -> None:
    template = compile_template({"a": "${loop.item.name} ${loop.item}", "b": ["${loop.is_last}", "${workflow.input}"]})

    assert template.reads == Reads(loop_parts=frozenset({Part.ITEM, Part.IS_LAST}), workflow_input=True)
    assert [placed.reference.step for placed in template.references] == [None, None, None, None]


@pytest.mark.parametrize("part", ["item", "index", "total", "is_first", "is_last"])
def test_outside_of_every_loop_a_reference_to_the_iteration_leads_nowhere(part: str) -> None:
    reference = f"${{loop.{part}}}"
    with pytest.raises(ReferenceBroken) as caught:
        resolve_in(None, reference)

    assert caught.value.reference == reference
    assert str(caught.value) == f"{reference} leads nowhere: it lies in no loop"


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("${loop.item.nmae}", 'loop.item has no key "nmae"; its keys are "name"'),
        ("${loop.item.name[1]}", "loop.item.name has no [1]; it is an array of 1"),
    ],
)
def test_a_path_that_does_not_exist_in_the_item_says_where_it_broke(reference: str, why: str) -> None:
    with pytest.raises(ReferenceBroken) as caught:
        compile_template(reference).resolve(IN_LOOP)

    assert str(caught.value) == f"{reference} leads nowhere: {why}"


@pytest.mark.parametrize(
    ("reference", "why", "suggestion"),
    [
        ("${loop.index.x}", "index is a number and has nothing below it", "${loop.index}"),
        ("${loop.total[0]}", "total is a number and has nothing below it", "${loop.total}"),
        ("${loop.is_first.x}", "is_first is true or false and has nothing below it", "${loop.is_first}"),
        ("${loop.is_last.x}", "is_last is true or false and has nothing below it", "${loop.is_last}"),
        ("${loop.status.x}", "a status is a word and has nothing below it", "${loop.status}"),
    ],
)
def test_what_has_nothing_below_it_is_told_in_words(reference: str, why: str, suggestion: str) -> None:
    [problem] = read_template(reference).problems

    assert problem.message == f"{reference}: {why}"
    assert (problem.code, problem.suggestion) == ("malformed_reference", suggestion)


def test_the_message_about_a_loop_says_what_would_be_right() -> None:
    [problem] = read_template("${loop.itme}").problems

    assert problem.message == (
        "${loop.itme} is no reference: write ${loop.item} or ${loop.index} or ${loop.total}, or a path below it; "
        'a literal "${" is written "$${"'
    )


# What is broken or cannot be read


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
    ("${loop}", "${loop.item}"),
    ("${loop.itme.name}", "${loop.item.name}"),
    ("${loop.name}", "${loop.item.name}"),
    ("${loop.isfirst}", "${loop.is_first}"),
    ("${loop.index.x}", "${loop.index}"),
    ("${loop.item..x}", None),
    ("${step-a.item}", "${step-a.output.item}"),
    ("${workflow.item}", "${workflow.input.item}"),
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
    assert template.reads == Reads(steps=frozenset({"step-b"}))


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
