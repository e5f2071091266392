"""Stored JSON is passed on as it is, and read where somebody looks into it."""

import json

import pytest

from schemas.codec import dump_json
from schemas.scope import Part, Reference, Scope, StepOutcome
from schemas.statuses import StepStatus
from schemas.stored_json import StoredJson


@pytest.mark.parametrize("text", ["null", "3", '"x"', '{"z":1.50,"a":[{}]}', "[" * 300 + "]" * 300])
def test_the_value_is_that_of_the_text_and_the_text_is_written_again(text: str) -> None:
    stored = StoredJson(text)
    assert stored.value == json.loads(text)
    assert stored.value is stored.value
    assert dump_json(stored) == text


def test_nothing_stored_is_null() -> None:
    assert StoredJson(None).value is None
    assert dump_json(StoredJson(None)) == "null"


def test_a_reference_looks_into_it() -> None:
    scope = Scope(None, {"a": StepOutcome(StepStatus.COMPLETED, StoredJson('{"n":[7]}'), None)})
    assert Reference("${a.output.n[0]}", "a", Part.OUTPUT, ("n", 0)).resolve(scope) == 7
    assert Reference("${a.output}", "a", Part.OUTPUT, ()).resolve(scope) == {"n": [7]}


def test_it_equals_what_was_stored_in_the_same_text_only() -> None:
    assert StoredJson("1") == StoredJson("1")
    assert StoredJson("1") != StoredJson("2")
    assert StoredJson("1") != 1
