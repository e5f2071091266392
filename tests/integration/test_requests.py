"""RunRequests: good ones once, repeated ones once more, and each kind of bad one."""

import json
from typing import Any
from uuid import uuid4

import pytest

from messaging import topology
from messaging.port import OutgoingMessage
from orchestrator.storage.dead_letters import replay
from orchestrator.storage.definitions import register_workflow
from schemas.codec import decode, encode
from schemas.messages import RunRequest, RunResult
from schemas.statuses import ResultStatus
from schemas.validation import parse_workflow
from tests.conftest import Eventually
from tests.integration.documents import agent, block, one_block, workflow
from tests.integration.system import System

RUNS = topology.RUNS_QUEUE.name
HELLO = workflow({"one": agent("echo", input_mapping={"said": "${workflow.input}"})})


async def echo(input: Any) -> Any:
    return input


@pytest.fixture
async def running(system: System) -> System:
    """A replica and a worker."""
    await system.start_replica()
    await system.start_worker(echo)
    return system


def body(**fields: Any) -> bytes:
    return json.dumps({"version": 1} | fields).encode()


async def still_works(system: System) -> None:
    """The next good request is answered."""
    assert (await system.run(HELLO, "hello")).output == {"said": "hello"}


# Good ones


async def test_the_same_request_twice_is_one_run_and_is_answered_twice(running: System) -> None:
    run_id = uuid4()
    first = await running.run(HELLO, 1, run_id=run_id)
    again = await running.run(HELLO, 1, run_id=run_id)
    assert first == again
    assert first.output == {"said": 1}
    assert await running.count("runs") == 1
    assert await running.count("step_executions") == 1


async def test_the_same_request_a_hundred_times_at_once_on_two_replicas_is_one_run(running: System) -> None:
    await running.start_replica()
    run_id = uuid4()
    request = encode(RunRequest(run_id=run_id, workflow=HELLO, input=1))
    messages = [OutgoingMessage("", RUNS, "RunRequest", str(uuid4()), request) for _ in range(100)]
    await running.broker.publish(messages)
    assert await running.ended(run_id) == "COMPLETED"
    await running.quiet()
    assert await running.count("runs") == 1
    assert await running.count("step_executions") == 1


async def test_a_repeated_request_that_awaits_an_answer_gets_it_where_the_run_still_goes_on(
    running: System, eventually: Eventually
) -> None:
    run_id = uuid4()
    document = workflow({"one": agent("later", input_mapping={"said": "${workflow.input}"})})
    await running.submit(document, 1, run_id=run_id)
    await eventually(lambda: running.status(run_id))

    async def later(input: Any) -> Any:
        return input

    await running.start_worker(later)
    assert (await running.run(document, 1, run_id=run_id)).output == {"said": 1}


async def test_the_same_id_with_another_body_is_refused(running: System) -> None:
    run_id = uuid4()
    await running.run(HELLO, 1, run_id=run_id)
    refused = await running.run(HELLO, 2, run_id=run_id)
    assert refused.status is ResultStatus.REJECTED
    assert refused.error is not None
    assert refused.error.code == "run_id_conflict"
    assert (await running.run_row(run_id))["input"] == 1
    await running.quiet()


async def test_a_conflict_that_nobody_awaits_is_dead_lettered_with_its_reason(running: System) -> None:
    run_id = uuid4()
    await running.run(HELLO, 1, run_id=run_id)
    await running.submit(HELLO, 2, run_id=run_id)
    (letter,) = await running.dead_letters(1)
    assert letter["code"] == "run_id_conflict"
    assert json.loads(letter["body"])["input"] == 2


async def test_a_request_without_a_run_id_is_a_run_and_comes_again_as_the_same_run(
    running: System, eventually: Eventually
) -> None:
    for _ in range(2):
        await running.publish(RUNS, body(workflow=HELLO, input=1), message_id="from-a-script-1")
    await eventually(lambda: finished_runs(running, 1))
    await running.quiet()
    assert await running.count("runs") == 1


async def test_a_request_without_any_property_is_a_run(running: System, eventually: Eventually) -> None:
    await running.publish(RUNS, body(workflow=HELLO), message_id="")
    await eventually(lambda: finished_runs(running, 1))


async def test_requests_arrive_over_the_exchange_with_and_without_a_key(
    running: System, eventually: Eventually
) -> None:
    for key in ("", "orchestrator.runs"):
        message = OutgoingMessage("orchestrator.submit", key, "", str(uuid4()), body(workflow=HELLO))
        await running.broker.publish([message])
    await eventually(lambda: finished_runs(running, 2))


async def test_the_answer_carries_the_correlation_id_and_the_type_of_a_result(running: System) -> None:
    replies = await running.broker.consume(topology.reply_queue("test"), prefetch=1)
    fields = {"reply_to": topology.reply_queue("test").name, "correlation_id": "my-17"}
    await running.publish(RUNS, body(workflow=HELLO, input=5), **fields)
    (reply,) = await replies.receive(1)
    await replies.ack([reply])
    assert (reply.correlation_id, reply.type) == ("my-17", "RunResult")
    assert decode(RunResult, reply.body).output == {"said": 5}


async def test_a_client_that_has_gone_does_not_stop_its_run(running: System, eventually: Eventually) -> None:
    await running.publish(RUNS, body(workflow=HELLO), reply_to="nobody-is-here", correlation_id="x")
    await eventually(lambda: finished_runs(running, 1))
    await running.quiet()


async def test_labels_are_stored_and_found_with_plain_sql(running: System) -> None:
    result = await running.run(HELLO, labels={"team": "blau", "größe": "🐝"})
    rows = await running.fetch('SELECT id FROM runs WHERE labels @> \'{"team": "blau"}\'')
    assert [row["id"] for row in rows] == [result.run_id]
    assert (await running.run_row(result.run_id))["labels"] == {"team": "blau", "größe": "🐝"}


# Registered workflows


async def register(system: System, document: dict[str, Any]) -> None:
    await register_workflow(system.database, parse_workflow(document), document)


async def test_a_registered_workflow_runs_by_its_id_and_by_its_version(running: System) -> None:
    for version in ("1.0", "2.0"):
        await register(
            running, workflow({"one": agent("echo", input_mapping={"v": version})}, version=version, name="greet")
        )
    assert (await running.run(None, workflow_id="greet")).output == {"v": "2.0"}
    assert (await running.run(None, workflow_id="greet", workflow_version="1.0")).output == {"v": "1.0"}
    rows = await running.fetch("SELECT workflow_id, workflow_version FROM runs ORDER BY created_at")
    assert [tuple(row) for row in rows] == [("greet", "2.0"), ("greet", "1.0")]


async def test_a_workflow_registered_anew_leaves_active_runs_with_what_they_began_with(
    running: System, eventually: Eventually
) -> None:
    def version(answer: str) -> dict[str, Any]:
        return workflow(
            {
                "wait": agent("later", next_step="answer"),
                "answer": agent("echo", input_mapping={"answer": answer}),
            },
            name="greet",
        )

    await register(running, version("old"))
    run_id = await running.submit(None, workflow_id="greet")
    await eventually(lambda: running.status(run_id))
    await register(running, version("new"))
    await running.start_replica()  # one whose memory holds no plan of the old one

    async def later(input: Any) -> None:
        return None

    await running.start_worker(later)
    assert await running.ended(run_id) == "COMPLETED"
    assert (await running.run_row(run_id))["output"] == {"answer": "old"}
    assert (await running.run(None, workflow_id="greet")).output == {"answer": "new"}


async def test_a_repeated_request_for_a_registered_workflow_is_the_same_run_after_a_new_registration(
    running: System,
) -> None:
    run_id = uuid4()
    await register(running, workflow({"one": agent("echo", input_mapping={"v": 1})}, name="greet"))
    first = await running.run(None, workflow_id="greet", run_id=run_id)
    await register(running, workflow({"one": agent("echo", input_mapping={"v": 2})}, name="greet"))
    assert await running.run(None, workflow_id="greet", run_id=run_id) == first


@pytest.mark.parametrize("fields", [{"workflow_id": "nobody"}, {"workflow_id": "tested", "workflow_version": "9"}])
async def test_an_unknown_workflow_is_refused(running: System, fields: dict[str, str]) -> None:
    await register(running, HELLO)
    refused = await running.run(None, **fields)
    assert refused.status is ResultStatus.REJECTED
    assert refused.error is not None
    assert refused.error.code == "unknown_workflow"
    assert fields["workflow_id"] in refused.error.message


# Bad ones


async def test_an_invalid_workflow_is_refused_with_all_its_problems(running: System) -> None:
    document = workflow(
        {
            "gather": block(["step-a", "step-a"], max_parallelism=0, next_step="finale"),
            "step-a": agent("echo", input_mapping={"x": "${step-z.output}"}),
            "final": agent("echo", inputs={}),
        }
    )
    refused = await running.run(document)
    assert refused.status is ResultStatus.REJECTED
    assert refused.error is not None
    assert refused.error.code == "invalid_workflow"
    assert refused.error.details is not None
    found = {problem["code"]: problem for problem in refused.error.details["problems"]}
    assert set(found) >= {"unknown_step", "out_of_range", "duplicate_branch", "unknown_field"}
    assert found["unknown_step"]["suggestion"] == "final"
    assert found["out_of_range"]["place"] == "steps.gather.max_parallelism"
    await running.quiet()


async def test_an_invalid_workflow_that_nobody_awaits_is_dead_lettered_with_the_reason(running: System) -> None:
    await running.submit(workflow({"one": agent("echo", next_step="two")}))
    (letter,) = await running.dead_letters(1)
    assert letter["code"] == "invalid_workflow"
    assert "unknown_step" in letter["message"]
    assert letter["queue"] == RUNS
    await still_works(running)


async def test_a_refusal_whose_client_has_gone_is_dead_lettered(running: System) -> None:
    await running.publish(RUNS, body(workflow={}), reply_to="nobody-is-here")
    (letter,) = await running.dead_letters(1)
    assert letter["code"] == "invalid_workflow"


DEEP = b'{"version":1,"workflow":%s}'
MALFORMED = {
    "not JSON": b"{",
    "empty": b"",
    "not an object": b"[1]",
    "null": b"null",
    "invalid UTF-8": b'{"version":1,"input":"\xff"}',
    "byte order mark": b"\xef\xbb\xbf" + body(workflow=HELLO),
    "UTF-16": body(workflow=HELLO).decode().encode("utf-16"),
    "wrong types": body(workflow=HELLO, labels=[1]),
    "run_id that is none": body(workflow=HELLO, run_id="me"),
    "huge number": b'{"version":1,"workflow":{},"input":1e999}',
    "number of 5,000 digits": b'{"version":1,"workflow":{},"input":' + b"9" * 5_000 + b"}",
    "NaN": b'{"version":1,"workflow":{},"input":NaN}',
    "NUL": b'{"version":1,"workflow":{},"input":"\\u0000"}',
    "lone surrogate": b'{"version":1,"workflow":{},"input":"\\ud800"}',
    "depth of 1,000": DEEP % (b"[" * 1_000 + b"]" * 1_000),
    "depth of 100,000": DEEP % (b"[" * 100_000 + b"]" * 100_000),
    "duplicate keys": b'{"version":1,"version":1,"workflow":{}}',
    "no workflow": body(),
    "two workflows": body(workflow=HELLO, workflow_id="x"),
    "no version": json.dumps({"workflow": HELLO}).encode(),
}


async def test_each_kind_of_malformed_body_is_dead_lettered_once_and_the_others_go_on(running: System) -> None:
    run_id = uuid4()
    good = encode(RunRequest(run_id=run_id, workflow=HELLO))
    bodies = [good, *MALFORMED.values(), good]
    await running.broker.publish([OutgoingMessage("", RUNS, "", str(uuid4()), content) for content in bodies])
    letters = await running.dead_letters(len(MALFORMED))
    assert await running.ended(run_id) == "COMPLETED"
    assert {letter["body"] for letter in letters} == set(MALFORMED.values())
    assert {letter["code"] for letter in letters} == {"malformed_message"}
    assert all(letter["message"] for letter in letters)
    await running.quiet()


async def test_a_malformed_request_is_also_answered_where_someone_waits(running: System) -> None:
    replies = await running.broker.consume(topology.reply_queue("test"), prefetch=1)
    await running.publish(RUNS, b"{", reply_to=topology.reply_queue("test").name, correlation_id="c")
    (reply,) = await replies.receive(1)
    await replies.ack([reply])
    result = decode(RunResult, reply.body)
    assert (result.status, result.run_id, reply.correlation_id) == (ResultStatus.REJECTED, None, "c")
    await running.dead_letters(1)


async def test_an_unsupported_version_has_a_reason_of_its_own(running: System) -> None:
    await running.publish(RUNS, json.dumps({"version": 2, "workflow": HELLO}).encode())
    (letter,) = await running.dead_letters(1)
    assert letter["code"] == "unsupported_version"


async def test_a_dead_letter_that_is_put_right_and_sent_again_has_its_effect(running: System) -> None:
    run_id = uuid4()
    request = encode(RunRequest(run_id=run_id, workflow_id="greet"))
    await running.publish(RUNS, request)
    (letter,) = await running.stored_dead_letters(1)
    assert letter["code"] == "unknown_workflow"
    await register(running, HELLO | {"name": "greet"})
    assert await replay(running.database, [letter["id"]]) == {letter["id"]}
    assert await running.ended(run_id) == "COMPLETED"
    await running.quiet()


NAMES = ["../etc", "a b", "#", "*", "amq.queue", "x" * 300, "", "agent\u0000", "größe"]


async def test_names_that_could_not_be_routing_keys_are_refused_before_they_become_any(system: System) -> None:
    await system.start_replica()
    for name in NAMES:
        await system.publish(RUNS, body(workflow=workflow({"one": agent(name)})))
    letters = await system.dead_letters(len(NAMES))
    reasons = sorted(letter["code"] for letter in letters)
    assert reasons == ["invalid_workflow"] * 8 + ["malformed_message"], "a NUL is refused with the whole body"
    assert await system.count("runs") == 0


@pytest.mark.parametrize("brokers", ["memory"], indirect=True)
async def test_a_block_of_thousands_is_checked_without_stopping_the_replica(
    running: System,
) -> None:
    document = one_block(3_000)
    assert len(json.dumps(document)) > 256 * 1024, "large enough to be checked in a thread"
    result = await running.run(document)
    assert result.status is ResultStatus.COMPLETED
    assert len(result.output) == 3_000
    await running.quiet()


async def finished_runs(system: System, number: int) -> bool:
    rows = await system.fetch("SELECT status FROM runs")
    return [row["status"] for row in rows] == ["COMPLETED"] * number
