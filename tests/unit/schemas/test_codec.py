import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from schemas.codec import decode, dump_json, encode, encode_checked
from schemas.errors import MessageRefused
from schemas.messages import (
    MESSAGES,
    AgentResult,
    AgentTask,
    CancelRun,
    Message,
    RunEvent,
    RunRequest,
    RunResult,
    StepEvent,
)
from schemas.statuses import ReportStatus, ResultStatus, StepStatus

Bodies = dict[str, dict[str, Any]]
Refusal = Callable[[type[Message], dict[str, Any]], tuple[str, list[tuple[str, str]]]]

RUN = UUID("6f1f6a52-6d0f-4d0a-9f0e-1c8d3b1f2a10")
TASK = UUID("0b8a7c1e-52a4-4f5c-8c0d-9d3b6a4e7f21")


def read(model: type[Message], body: dict[str, Any]) -> Message:
    return decode(model, json.dumps(body).encode())


def refused(model: type[Message], body: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    with pytest.raises(MessageRefused) as caught:
        read(model, body)
    return caught.value.code, [(problem.place, problem.code) for problem in caught.value.problems]


@pytest.mark.parametrize("model", MESSAGES)
def test_every_message_survives_a_round_trip(model: type[Message], bodies: Bodies) -> None:
    message = read(model, bodies[model.__name__])

    assert decode(model, encode(message)) == message


@pytest.mark.parametrize("model", MESSAGES)
def test_a_body_comes_out_as_it_went_in(model: type[Message], bodies: Bodies) -> None:
    body = bodies[model.__name__]

    assert json.loads(encode(read(model, body))) == body


def test_optional_fields_that_are_not_given_are_left_out() -> None:
    task = AgentTask(task_id=TASK, run_id=RUN, step_id="a", agent_name="x", attempt=1, input=None)

    assert encode(task) == (
        b'{"version":1,"task_id":"%s","run_id":"%s","step_id":"a","agent_name":"x","attempt":1,"input":null}'
        % (str(TASK).encode(), str(RUN).encode())
    )


def test_required_fields_are_there_even_when_they_are_null() -> None:
    result = RunResult(run_id=None, status=ResultStatus.REJECTED, output=None, error=None)

    assert json.loads(encode(result)) == {
        "version": 1,
        "run_id": None,
        "status": "REJECTED",
        "output": None,
        "error": None,
    }


def test_times_are_written_in_utc() -> None:
    noon_in_delhi = datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    event = StepEvent(step_id="a", status=StepStatus.QUEUED, attempt=1, at=noon_in_delhi)

    assert json.loads(encode(RunEvent(run_id=RUN, events=[event])))["events"][0]["at"] == "2026-01-31T06:30:00+00:00"


@pytest.mark.parametrize("written", ["2026-01-31T12:00:00Z", "2026-01-31t13:00:00+01:00", "2026-01-31 12:00:00.000Z"])
def test_times_are_read_with_any_offset(bodies: Bodies, written: str) -> None:
    body = bodies["AgentResult"] | {"started_at": written}

    assert decode(AgentResult, json.dumps(body).encode()).started_at == datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_text_and_order_are_kept_as_they_are() -> None:
    output = {"b": "ü '; DROP TABLE runs; -- ${x} {{y}}", "a": [1.5, 10**300]}
    report = AgentResult(task_id=TASK, run_id=RUN, status=ReportStatus.COMPLETED, output=output, worker_id="w")

    read_back = decode(AgentResult, encode(report))

    assert read_back.output == output
    assert list(read_back.output) == ["b", "a"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_what_json_cannot_carry_is_not_written(value: object) -> None:
    with pytest.raises(ValueError, match=r"not JSON compliant|surrogates"):
        encode(RunResult(run_id=RUN, status=ResultStatus.COMPLETED, output=[value], error=None))


def test_what_is_no_json_value_is_not_written() -> None:
    with pytest.raises(TypeError, match="a set is not a JSON value"):
        encode(RunResult(run_id=RUN, status=ResultStatus.COMPLETED, output={"a": {1}}, error=None))


@pytest.mark.parametrize("model", MESSAGES)
def test_a_message_that_was_checked_is_written_the_same(model: type[Message], bodies: Bodies) -> None:
    message = read(model, bodies[model.__name__])

    assert encode_checked(message) == encode(message)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), "\ud800"])
def test_what_json_cannot_carry_is_not_written_fast_either(value: object) -> None:
    with pytest.raises(ValueError, match=r"not JSON compliant|surrogates"):
        dump_json({"a": [value]})


def test_words_that_look_like_numbers_that_are_none_are_written() -> None:
    assert dump_json(["NaN", "Infinity"]) == '["NaN","Infinity"]'


def test_unknown_fields_are_ignored(bodies: Bodies) -> None:
    body = bodies["CancelRun"] | {"urgency": "high"}

    assert read(CancelRun, body) == read(CancelRun, bodies["CancelRun"])


# Bodies that are refused


@pytest.mark.parametrize(
    ("body", "place", "code"),
    [
        (b"", "", "empty_body"),
        (b"{", "line 1, column 2", "invalid_json"),
        (b"\xff", "byte 0", "invalid_utf8"),
        (b"\xef\xbb\xbf{}", "byte 0", "byte_order_mark"),
        (b'{"output": NaN}', "output", "not_finite"),
        (rb'{"output": ["\u0000"]}', "output[0]", "nul_character"),
        (rb'{"output": "\ud800"}', "output", "lone_surrogate"),
        (b'{"run_id": 1, "run_id": 2}', "run_id", "duplicate_key"),
        (b'{"output": 1e999}', "output", "number_too_large"),
        (b"[" * 100_000, "[0]" * 100, "too_deep"),
        (b"[]", "", "not_an_object"),
        (b'"text"', "", "not_an_object"),
        (b"null", "", "not_an_object"),
    ],
)
def test_a_body_that_is_no_json_object_is_malformed(body: bytes, place: str, code: str) -> None:
    with pytest.raises(MessageRefused) as caught:
        decode(AgentResult, body)

    assert caught.value.code == "malformed_message"
    assert [(problem.place, problem.code) for problem in caught.value.problems] == [(place, code)]


@pytest.mark.parametrize("version", [None, True, 1.0, "1", [1]])
def test_a_version_that_is_no_whole_number_is_malformed(bodies: Bodies, version: object) -> None:
    body = bodies["CancelRun"] | {"version": version}

    assert refused(CancelRun, body) == ("malformed_message", [("version", "wrong_type")])


def test_a_body_without_a_version_is_malformed(bodies: Bodies) -> None:
    del bodies["CancelRun"]["version"]

    assert refused(CancelRun, bodies["CancelRun"]) == ("malformed_message", [("version", "missing_field")])


@pytest.mark.parametrize("version", [0, 2, -1, 10**300])
def test_another_version_is_unsupported_whatever_its_fields_are(version: int) -> None:
    assert refused(CancelRun, {"version": version, "run": 5}) == (
        "unsupported_version",
        [("version", "unsupported_version")],
    )


def test_all_problems_of_a_body_are_listed(bodies: Bodies) -> None:
    body = bodies["AgentTask"] | {"version": "1", "run_id": "x", "attempt": 0}

    assert refused(AgentTask, body) == (
        "malformed_message",
        [("version", "wrong_type"), ("run_id", "wrong_type"), ("attempt", "out_of_range")],
    )


@pytest.mark.parametrize(
    ("message", "field", "value", "code"),
    [
        ("AgentResult", "task_id", "not-a-uuid", "wrong_type"),
        ("AgentResult", "task_id", 5, "wrong_type"),
        ("AgentResult", "status", "DONE", "not_allowed"),
        ("AgentResult", "status", 5, "not_allowed"),
        ("AgentResult", "worker_id", "", "empty"),
        ("AgentResult", "worker_id", "w" * 201, "too_long"),
        ("AgentResult", "error", "boom", "wrong_type"),
        ("AgentResult", "started_at", 1_769_860_800, "wrong_type"),
        ("AgentResult", "started_at", "1769860800", "wrong_type"),
        ("AgentResult", "started_at", "2026-01-31", "wrong_type"),
        ("AgentResult", "started_at", "2026-01-31T12:00:00", "wrong_type"),
        ("AgentResult", "started_at", "2026-01-31T25:00:00Z", "wrong_type"),
        ("AgentTask", "attempt", 0, "out_of_range"),
        ("AgentTask", "attempt", True, "wrong_type"),
        ("AgentTask", "attempt", 1.0, "wrong_type"),
        ("AgentTask", "attempt", "1", "wrong_type"),
        ("AgentTask", "timeout_seconds", "30", "wrong_type"),
        ("AgentTask", "timeout_seconds", True, "wrong_type"),
        ("AgentTask", "timeout_seconds", 0, "out_of_range"),
        ("AgentTask", "timeout_seconds", 1e300, "out_of_range"),
        ("AgentTask", "agent_name", "a*b", "bad_name"),
        ("AgentTask", "step_id", "../a", "bad_name"),
        ("RunRequest", "run_id", "1", "wrong_type"),
        ("RunRequest", "workflow", [], "wrong_type"),
        ("RunRequest", "labels", {"team": 5}, "wrong_type"),
        ("RunResult", "status", "RUNNING", "not_allowed"),
        ("CancelRun", "run_id", None, "wrong_type"),
        ("CancelRun", "reason", "x" * 2001, "too_long"),
        ("RetryRun", "run_id", 5, "wrong_type"),
        ("RetryRun", "new_run_id", "1", "wrong_type"),
        ("RunEvent", "events", {}, "wrong_type"),
    ],
)
def test_a_field_that_is_wrong_is_named(bodies: Bodies, message: str, field: str, value: object, code: str) -> None:
    model = next(model for model in MESSAGES if model.__name__ == message)
    code_of_message, [(place, found)] = refused(model, bodies[message] | {field: value})

    assert (code_of_message, place.partition(".")[0], found) == ("malformed_message", field, code)


@pytest.mark.parametrize(
    ("change", "place", "code"),
    [
        ({"error": {"type": "X", "message": None}}, "error.message", "wrong_type"),
        ({"error": {"message": "m"}}, "error.type", "missing_field"),
        ({"error": {"type": "X", "message": "m", "retryable": "yes"}}, "error.retryable", "wrong_type"),
        ({"error": {"type": "X", "message": "m", "details": []}}, "error.details", "wrong_type"),
        ({"error": None}, "", "inconsistent"),
        ({"status": "COMPLETED"}, "", "inconsistent"),
    ],
)
def test_an_error_belongs_to_a_failure_and_has_its_shape(
    bodies: Bodies, change: dict[str, Any], place: str, code: str
) -> None:
    assert refused(AgentResult, bodies["AgentResult"] | change) == ("malformed_message", [(place, code)])


@pytest.mark.parametrize(
    "fields",
    [{}, {"workflow": {}, "workflow_id": "x"}, {"workflow": {}, "workflow_version": "1"}, {"workflow_version": "1"}],
)
def test_a_run_request_names_one_workflow(fields: dict[str, Any]) -> None:
    assert refused(RunRequest, {"version": 1} | fields) == ("malformed_message", [("", "inconsistent")])


def test_the_message_says_what_is_wrong_where_and_what_would_be_right(bodies: Bodies) -> None:
    body = bodies["AgentTask"] | {"attempt": 0, "agent_name": "a*b"}
    del body["version"]

    with pytest.raises(MessageRefused) as caught:
        read(AgentTask, body)

    assert str(caught.value) == (
        "refused AgentTask: version: this field is required; only version 1 is known [missing_field]; "
        'agent_name: "a*b" will not do: an agent name has 1 to 100 letters, digits, dots, hyphens or underscores, '
        "and neither a dot nor a hyphen first [bad_name]; "
        "attempt: 0 is too small; the least is 1 [out_of_range]"
    )
