import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker

import schemas
from messaging import dead_letters, topology
from schemas.channels import async_api
from schemas.codec import decode
from schemas.errors import MessageRefused
from schemas.export import files, main, schema, schema_names, text
from schemas.messages import MESSAGES
from schemas.validation import validate_workflow

Json = dict[str, Any]

PUBLISHED = Path(schemas.__file__).parent / "published"


def accepts(name: str, document: object) -> bool:
    validator = Draft202012Validator(schema(name), format_checker=FormatChecker(["uuid"]))
    return validator.is_valid(document)


def test_the_committed_files_are_what_comes_out() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in PUBLISHED.iterdir()}

    assert committed == {name: text(document) for name, document in files().items()}, (
        "run `python -m schemas.export schemas/published` and commit the result"
    )


def test_the_command_writes_all_files(tmp_path: Path) -> None:
    main([str(tmp_path / "new")])

    assert {path.name for path in (tmp_path / "new").iterdir()} == files().keys()
    assert (tmp_path / "new" / "asyncapi.json").read_text().endswith("}\n")


def test_there_is_a_schema_for_the_workflow_and_each_message() -> None:
    assert schema_names() == ("Workflow", *(model.__name__ for model in MESSAGES))


@pytest.mark.parametrize("name", schema_names())
def test_every_schema_follows_the_meta_schema(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))

    assert schema(name)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_the_sample_workflow_matches_with_its_defaults_left_out(workflow: Json) -> None:
    assert accepts("Workflow", workflow)


@pytest.mark.parametrize(
    ("step", "change"),
    [
        ("block", {"max_parallelism": 0}),
        ("block", {"max_paralellism": 2}),
        ("block", {"parallel_steps": []}),
        ("block", {"type": "loop"}),
        ("step-a", {"agent_name": "a b"}),
        ("step-a", {"agent_name": "amq.x"}),
        ("step-a", {"timeout_seconds": "30"}),
        ("step-a", {"input_mapping": []}),
        ("step-a", {"id": "workflow"}),
        ("workflow", {"agent_name": "x"}),
        ("a b", {"agent_name": "x"}),
    ],
)
def test_the_schema_refuses_what_validation_refuses(workflow: Json, step: str, change: Json) -> None:
    workflow["steps"].setdefault(step, {}).update(change)

    assert validate_workflow(workflow)
    assert not accepts("Workflow", workflow)


@pytest.mark.parametrize("name", schema_names()[1:])
def test_an_example_of_each_message_matches(name: str, bodies: dict[str, Json]) -> None:
    assert accepts(name, bodies[name])


CHANGES: list[tuple[str, Json]] = [
    *((name, {"version": ...}) for name in schema_names()[1:]),
    *((name, {"version": version}) for name in schema_names()[1:] for version in (2, "1", None, True)),
    *((name, {"run_id": "x"}) for name in schema_names()[1:]),
    ("CancelRun", {"further": "field"}),
    ("CancelRun", {"reason": None}),
    ("RetryRun", {"new_run_id": ...}),
    ("RetryRun", {"new_run_id": None}),
    ("RetryRun", {"new_run_id": "x"}),
    ("RunRequest", {"workflow": ...}),
    ("RunRequest", {"workflow": None}),
    ("RunRequest", {"workflow_id": "x"}),
    ("RunRequest", {"workflow_id": None}),
    ("RunRequest", {"workflow": ..., "workflow_id": "x"}),
    ("RunRequest", {"workflow": None, "workflow_id": "x", "workflow_version": "1"}),
    ("RunRequest", {"workflow_version": "1"}),
    ("RunRequest", {"workflow_version": None}),
    ("AgentResult", {"error": ...}),
    ("AgentResult", {"error": None}),
    ("AgentResult", {"status": "COMPLETED"}),
    ("AgentResult", {"status": "COMPLETED", "error": ...}),
    ("AgentResult", {"status": "HEARTBEAT", "error": None}),
    ("AgentResult", {"status": "LOST"}),
    ("AgentTask", {"attempt": 0}),
    ("AgentTask", {"input": ...}),
    ("AgentTask", {"timeout_seconds": None}),
    ("RunResult", {"error": ...}),
    ("RunEvent", {"events": []}),
    ("RunEvent", {"events": [{}]}),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_the_schema_of_a_message_accepts_exactly_what_the_codec_takes(
    name: str, change: Json, bodies: dict[str, Json]
) -> None:
    body = {key: value for key, value in (bodies[name] | change).items() if value is not ...}
    model = next(model for model in MESSAGES if model.__name__ == name)

    try:
        decode(model, json.dumps(body).encode())
        taken = True
    except MessageRefused:
        taken = False

    assert accepts(name, body) == taken


# AsyncAPI


def bindings(kind: str) -> list[Json]:
    found = [channel["bindings"]["amqp"] for channel in async_api()["channels"].values() if "bindings" in channel]
    return [binding for binding in found if binding["is"] == kind]


def test_the_exchanges_are_those_of_the_topology() -> None:
    described = {(binding["exchange"]["name"], binding["exchange"]["type"]) for binding in bindings("routingKey")}
    exchanges = {(exchange.name, str(exchange.kind)) for exchange in topology.EXCHANGES}

    # Dead letters are described by their queue: nobody else publishes to that exchange.
    assert described == exchanges - {(topology.DEAD_LETTERS_EXCHANGE, "fanout")}


def test_the_queues_are_those_of_the_topology() -> None:
    described = {binding["queue"]["name"] for binding in bindings("queue")}

    assert described == {queue.name for queue in topology.QUEUES} | {"agent.{agent_name}"}
    assert topology.agent_queue("x").name == "agent.x"


def test_the_addresses_are_the_routing_keys_of_the_topology() -> None:
    channels = async_api()["channels"]

    assert channels["submit"]["address"] == topology.RUNS_KEY
    assert channels["tasks"]["address"].format(agent_name="x") == topology.agent_queue("x").bindings[0].routing_key
    assert channels["reports"]["address"].format(agent_name="x") == topology.result_key("x")
    assert channels["cancellations"]["address"] == topology.CANCELLED_KEY
    assert channels["events"]["address"].format(run_id="r") == topology.event_key("r")  # type: ignore[arg-type]
    assert channels["gates"]["address"].format(run_id="r", block_id="b") == topology.gate_key("r", "b")  # type: ignore[arg-type]


def test_the_headers_of_dead_letters_are_those_that_are_written() -> None:
    headers = async_api()["components"]["messages"]["DeadLetter"]["headers"]["properties"]

    assert headers.keys() == {value for name, value in vars(dead_letters).items() if name.endswith("_HEADER")}


def test_every_message_stands_on_a_channel_and_has_its_schema_file() -> None:
    document = async_api()
    messages = document["components"]["messages"]
    used = {name for channel in document["channels"].values() for name in channel.get("messages", {})}

    assert used == messages.keys() == {*schema_names()[1:], "DeadLetter"}
    assert {message["payload"]["$ref"] for message in messages.values() if "payload" in message} == {
        f"./{name}.schema.json" for name in schema_names()[1:]
    }
    assert all((PUBLISHED / f"{name}.schema.json").exists() for name in schema_names())


def test_every_reference_within_the_document_leads_somewhere() -> None:
    document = async_api()

    references = local_references(document)
    assert references
    for reference in references:
        target: Any = document
        for part in reference.removeprefix("#/").split("/"):
            assert part in target, reference
            target = target[part]


def local_references(value: Any) -> list[str]:
    if isinstance(value, dict):
        here = [value["$ref"]] if str(value.get("$ref", "")).startswith("#") else []
        return here + [found for child in value.values() for found in local_references(child)]
    return [found for child in value for found in local_references(child)] if isinstance(value, list) else []
