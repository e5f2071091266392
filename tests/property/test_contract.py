"""Whatever arrives, the contract answers with a value or a refusal, and never with a crash."""

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import decode, dump_json
from schemas.errors import MessageRefused, WorkflowInvalid
from schemas.json_text import JsonRefused, check_json, load_json, load_strictly
from schemas.messages import MESSAGES
from schemas.references import Scope, compile_template, read_template
from schemas.validation import parse_workflow, validate_workflow

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**308) + 1, 10**308 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20)

PIECES = st.sampled_from(
    [
        *'{}[]:,-1 "\\\0\ufeff\N{GRINNING FACE}',
        *('"a"', '"a":', r"\u0000", r"\ud800", r"\udc00", "e9", "9" * 400, ".5", "NaN", "-Infinity", "null", "[" * 101),
    ]
)
NEARLY_JSON = st.lists(PIECES, max_size=30).map(lambda pieces: "".join(pieces).encode())

WORKFLOW: dict[str, Any] = {
    "name": "sample",
    "start_step": "block",
    "steps": {
        "block": {"type": "parallel", "parallel_steps": ["a", "b"], "max_parallelism": 1, "next_step": "end"},
        "a": {"agent_name": "x", "input_mapping": {"topic": "${workflow.input.topic}"}, "on_failure": "end"},
        "b": {"agent_name": "x", "timeout_seconds": 5},
        "end": {"agent_name": "y", "input_mapping": {"all": ["${block.output}", "${a.status}"]}},
    },
}
FIELDS = ["type", "id", "next_step", "on_failure", "parallel_steps", "max_parallelism", "input_mapping", "agent_name"]
NAMES = st.sampled_from(["block", "a", "b", "end", "bb", "workflow", "", *FIELDS]) | TEXT
REFERENCES = st.sampled_from(
    ["${a.output}", "${end.output.x}", "${", "${a}", "${block.error.code}", "$${", "${x.status}"]
)
VALUES = st.recursive(
    SCALARS | NAMES | REFERENCES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)
)


COMPACT = JSON.map(dump_json)
# A body as ours write it, with a piece put in somewhere: often still JSON, and then one that loses something when read.
ALTERED = st.tuples(COMPACT, st.integers(0, 10**6), PIECES).map(
    lambda parts: parts[0][: parts[1] % (len(parts[0]) + 1)] + parts[2] + parts[0][parts[1] % (len(parts[0]) + 1) :]
)


@given((COMPACT | ALTERED).map(str.encode) | NEARLY_JSON)
def test_the_fast_parser_is_believed_only_where_the_strict_one_says_the_same(body: bytes) -> None:
    def reading(load: Callable[[bytes], Any]) -> str:
        try:
            return repr(load(body))
        except JsonRefused as error:
            return repr(error.problem)

    assert reading(load_json) == reading(load_strictly)


@given(JSON)
def test_what_was_checked_is_written_so_that_python_reads_it_back(value: Any) -> None:
    assert repr(json.loads(dump_json(value))) == repr(value)


@given(st.binary() | NEARLY_JSON)
def test_any_bytes_are_json_or_refused(body: bytes) -> None:
    try:
        check_json(load_json(body))
    except JsonRefused as error:
        refusal = error
    else:
        return

    assert refusal.problem.code.isidentifier()
    assert "\0" not in str(refusal)
    str(refusal).encode()


@given(NEARLY_JSON)
def test_what_is_taken_is_taken_again_and_is_the_same(body: bytes) -> None:
    try:
        value = load_json(body)
    except JsonRefused:
        return

    assert load_json(json.dumps(value).encode()) == value
    assert load_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(JSON)
def test_every_json_value_is_taken(value: Any) -> None:
    check_json(value)

    assert load_json(json.dumps(value).encode()) == value


@given(st.sampled_from(MESSAGES), JSON | st.dictionaries(TEXT, JSON).map(lambda fields: {"version": 1, **fields}))
def test_any_json_is_a_message_or_refused(model: Any, body: Any) -> None:
    with pytest.raises(MessageRefused) as caught:
        decode(model, json.dumps(body).encode())

    assert caught.value.problems


@given(JSON.filter(lambda value: "${" not in json.dumps(value)))
def test_resolving_a_template_without_references_is_the_identity(value: Any) -> None:
    assert compile_template(value).resolve(Scope(None, {})) is value


@given(JSON)
def test_a_reference_to_the_input_is_the_input_whatever_it_holds(value: Any) -> None:
    scope = Scope({"it": value}, {})

    assert compile_template("${workflow.input.it}").resolve(scope) is value
    assert compile_template(["${workflow.input.it}"]).resolve(scope)[0] is value


@given(TEXT)
def test_escaping_keeps_any_text(text: str) -> None:
    assert compile_template(text.replace("${", "$${")).resolve(Scope(None, {})) == text


@given(st.lists(REFERENCES | TEXT | st.sampled_from(["$", "{", "}", ".", "[0]"])).map("".join))
def test_any_text_is_a_template_or_has_problems(text: str) -> None:
    template = read_template(text)

    assert template.problems or "${" not in text or template.references or "$${" in text


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """Draw the sample with a few of its values replaced, removed or renamed."""
    document = deepcopy(WORKFLOW)
    for _ in range(draw(st.integers(1, 4))):
        parent: Any = document
        while True:
            key = draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
            if not isinstance(parent[key], dict | list) or not parent[key] or draw(st.booleans()):
                break
            parent = parent[key]
        match draw(st.sampled_from(["replace", "remove", "add"])):
            case "replace":
                parent[key] = draw(VALUES)
            case "add" if isinstance(parent, dict):
                parent[draw(NAMES)] = draw(VALUES)
            case _:
                del parent[key]
        if not document:
            break
    return document


@given(documents() | VALUES)
def test_any_document_is_a_workflow_or_has_problems(document: Any) -> None:
    problems = validate_workflow(document)
    for problem in problems:
        str(problem).encode()
        assert len(str(problem)) < 2000

    if problems:
        with pytest.raises(WorkflowInvalid) as caught:
            parse_workflow(document)
        assert list(caught.value.problems) == problems
    else:
        workflow = parse_workflow(document)
        assert parse_workflow(workflow.model_dump(mode="json")) == workflow
