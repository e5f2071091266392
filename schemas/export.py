"""The contract in files that other languages can read: JSON Schema 2020-12 and AsyncAPI 3.0.

`python -m schemas.export schemas/published` writes them; a test fails when the committed files are not what comes out.
What a model says in Python only, in a validator or a default, is said here in the words of JSON Schema.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from schemas.channels import async_api
from schemas.messages import MESSAGES, Message
from schemas.workflow import Workflow

JsonObject = dict[str, Any]

WORKFLOW: Final = "Workflow"
ASYNC_API_FILE: Final = "asyncapi.json"

_NOT_NULL: Final = {"not": {"type": "null"}}
_RULES: Final[Mapping[str, JsonObject]] = {
    "RunRequest": {
        "oneOf": [
            {"required": ["workflow"], "properties": {"workflow": _NOT_NULL, "workflow_id": {"type": "null"}}},
            {"required": ["workflow_id"], "properties": {"workflow_id": _NOT_NULL, "workflow": {"type": "null"}}},
        ],
        "if": {"required": ["workflow_version"], "properties": {"workflow_version": _NOT_NULL}},
        "then": {"required": ["workflow_id"], "properties": {"workflow_id": _NOT_NULL}},
    },
    "AgentResult": {
        "if": {"properties": {"status": {"const": "FAILED"}}},
        "then": {"required": ["error"], "properties": {"error": _NOT_NULL}},
        "else": {"properties": {"error": {"type": "null"}}},
    },
}


def schema(name: str) -> JsonObject:
    """Return the JSON Schema of that name: `Workflow`, or the name of a message.

    Raises:
        KeyError: There is none; see `schema_names`.
    """
    return SCHEMAS[name]()


def schema_names() -> tuple[str, ...]:
    """Return the names that `schema` knows, the workflow first."""
    return tuple(SCHEMAS)


def files() -> dict[str, JsonObject]:
    """Return what is published, by file name."""
    schemas = {f"{name}.schema.json": schema(name) for name in schema_names()}
    return {**schemas, ASYNC_API_FILE: async_api()}


def text(document: JsonObject) -> str:
    """Return *document* as it stands in its file."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Write all files into a directory."""
    parser = argparse.ArgumentParser(prog="python -m schemas.export", description=main.__doc__)
    parser.add_argument("directory", type=Path, help="made when it does not exist")
    directory: Path = parser.parse_args(arguments).directory
    directory.mkdir(parents=True, exist_ok=True)
    for name, document in files().items():
        (directory / name).write_text(text(document), encoding="utf-8")


class _Generator(GenerateJsonSchema):
    """Pydantic's generator without what only repeats: a title for each field, and null as a default."""

    def generate(self, schema: core_schema.CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        return {"$schema": self.schema_dialect, **super().generate(schema, mode)}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        generated = super().default_schema(schema)
        if generated.get("default", ...) is None:
            del generated["default"]
        return generated


def _generate(model: type[BaseModel]) -> JsonObject:
    return model.model_json_schema(schema_generator=_Generator)


def _message_schema(model: type[Message]) -> JsonObject:
    document = _generate(model)
    del document["properties"]["version"]["default"]  # Python callers need not pass it, bodies must
    document["required"] = ["version", *document.get("required", [])]
    return document | _RULES.get(model.__name__, {})


def _workflow_schema() -> JsonObject:
    document = _generate(Workflow)
    document["required"].remove("workflow_id")
    for name, definition in document["$defs"].items():
        if name.endswith("Step"):
            definition["required"].remove("id")  # its key says it
    steps = document["properties"]["steps"]
    [(pattern, step)] = steps.pop("patternProperties").items()
    del step["discriminator"]  # of OpenAPI; and it would ask for a type
    steps["propertyNames"]["pattern"] = pattern
    steps["additionalProperties"] = step
    return document


SCHEMAS: Final[Mapping[str, Callable[[], JsonObject]]] = {
    WORKFLOW: _workflow_schema,
    **{model.__name__: partial(_message_schema, model) for model in MESSAGES},
}


if __name__ == "__main__":
    main()
