"""Workflow definitions: stored under the digest of their content, registered under their id."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orchestrator.errors import UnknownWorkflow
from orchestrator.storage.definitions import definition_id
from schemas.codec import dump_json
from schemas.workflow import Workflow
from tests.simulation.storage.rows import StoredDefinition
from tests.simulation.storage.transaction import Transaction


async def store_definition(transaction: Transaction, workflow: Workflow, document: Mapping[str, Any]) -> str:
    """Store a definition unless it is there already; return its id."""
    identity = definition_id(document)
    if identity not in transaction.tables.definitions:
        stored = StoredDefinition(identity, workflow.workflow_id, workflow.version, dump_json(document))
        transaction.changes.definitions[identity] = stored
    return identity


def register(transaction: Transaction, identity: str) -> None:
    """Make a stored definition available by its workflow id; it is the newest of those now."""
    stored = transaction.tables.definitions
    registrations = (definition.registration or 0 for definition in stored.values())
    newest = replace(stored[identity], registration=max(registrations) + 1)
    transaction.changes.definitions[identity] = newest


async def find_definition(transaction: Transaction, workflow_id: str, version: str | None) -> tuple[str, str]:
    """Return the id and version of the newest definition of a workflow. Raises UnknownWorkflow."""
    registered = [
        (definition.registration, definition)
        for definition in transaction.tables.definitions.values()
        if definition.workflow_id == workflow_id
        and definition.registration is not None
        and version in {None, definition.version}
    ]
    if not registered:
        which = f'"{workflow_id}"' + (f' version "{version}"' if version is not None else "")
        raise UnknownWorkflow(f"no workflow {which} is registered")
    _, newest = max(registered, key=lambda one: one[0])
    return newest.definition_id, newest.version


def load_definition(transaction: Transaction, identity: str) -> dict[str, Any]:
    """Return the document of a stored definition."""
    document: dict[str, Any] = json.loads(transaction.tables.definitions[identity].document)
    return document
