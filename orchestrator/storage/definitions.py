"""Workflow definitions: stored under the digest of their content, registered under their id."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator.errors import UnknownWorkflow
from orchestrator.storage.database import Database
from orchestrator.storage.rows import to_value
from schemas.codec import dump_json
from schemas.workflow import Workflow

_STORE: Final = text("""
    INSERT INTO workflows (definition_id, workflow_id, version, document)
    VALUES (:definition_id, :workflow_id, :version, CAST(CAST(:document AS text) AS json))
    ON CONFLICT (definition_id) DO NOTHING
""")
_REGISTER: Final = text("UPDATE workflows SET registered_at = clock_timestamp() WHERE definition_id = :definition_id")
_FIND: Final = text("""
    SELECT definition_id FROM workflows
    WHERE workflow_id = :workflow_id AND registered_at IS NOT NULL
        AND (CAST(:version AS text) IS NULL OR version = :version)
    ORDER BY registered_at DESC LIMIT 1
""")
_DOCUMENT: Final = text("SELECT CAST(document AS text) AS document FROM workflows WHERE definition_id = :definition_id")
_LIST: Final = text("""
    SELECT workflow_id, version, registered_at FROM workflows WHERE registered_at IS NOT NULL
    ORDER BY workflow_id, registered_at DESC
""")


@dataclass(frozen=True, slots=True)
class RegisteredWorkflow:
    """A workflow that a request may name by its id."""

    workflow_id: str
    version: str
    registered_at: datetime


def digest(document: Any) -> str:
    """Return the identity of a JSON value: equal values have equal digests, whatever the order of keys."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def definition_id(document: Mapping[str, Any]) -> str:
    """Return the id of a definition. Here the order of keys counts: a branch's place is part of the definition."""
    return hashlib.sha256(dump_json(document).encode()).hexdigest()


async def store_definition(database: Database, workflow: Workflow, document: Mapping[str, Any]) -> str:
    """Store a definition unless it is there already; return its id."""
    identity = definition_id(document)
    async with database.transaction() as connection:
        await connection.execute(
            _STORE,
            {
                "definition_id": identity,
                "workflow_id": workflow.workflow_id,
                "version": workflow.version,
                "document": dump_json(document),
            },
        )
    return identity


async def register_workflow(database: Database, workflow: Workflow, document: Mapping[str, Any]) -> str:
    """Make a definition available by its workflow id; runs that are active keep the one they started with."""
    identity = await store_definition(database, workflow, document)
    async with database.transaction() as connection:
        await connection.execute(_REGISTER, {"definition_id": identity})
    return identity


async def find_definition(database: Database, workflow_id: str, version: str | None) -> str:
    """Return the id of the newest definition registered under *workflow_id* (and *version*).

    Raises:
        UnknownWorkflow: There is none.
    """
    async with database.transaction() as connection:
        row = (await connection.execute(_FIND, {"workflow_id": workflow_id, "version": version})).first()
    if row is None:
        which = f'"{workflow_id}"' + (f' version "{version}"' if version is not None else "")
        raise UnknownWorkflow(f"no workflow {which} is registered: `forkjoin workflows register FILE` does that")
    return str(row.definition_id)


async def load_definition(connection: AsyncConnection, identity: str) -> dict[str, Any]:
    """Return the document of a stored definition."""
    row = (await connection.execute(_DOCUMENT, {"definition_id": identity})).one()
    document: dict[str, Any] = to_value(row.document)
    return document


async def list_workflows(database: Database) -> Sequence[RegisteredWorkflow]:
    """Return the registered workflows, the newest of each id first."""
    async with database.transaction() as connection:
        rows = await connection.execute(_LIST)
        return [RegisteredWorkflow(row.workflow_id, row.version, row.registered_at) for row in rows]
