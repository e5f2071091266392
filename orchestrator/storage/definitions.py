"""Workflow definitions: stored under the digest of their content, registered under their id."""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from orchestrator.errors import UnknownWorkflow
from orchestrator.storage.database import Connection, Database, Row
from orchestrator.storage.rows import to_value
from schemas.codec import dump_checked
from schemas.display import quoted
from schemas.suggestions import nearest
from schemas.workflow import Workflow

NEIGHBOURS: Final = 100  # among which a name that was misspelt is looked for
NAMED: Final = 10  # of them in an error

_STORE: Final = """
    INSERT INTO workflows (definition_id, workflow_id, version, document)
    VALUES ($1, $2, $3, $4::text::json)
    ON CONFLICT (definition_id) DO NOTHING
"""
_REGISTER: Final = "UPDATE workflows SET registered_at = clock_timestamp() WHERE definition_id = $1"
_FIND: Final = """
    SELECT definition_id, workflow_id, version, registered_at FROM workflows
    WHERE workflow_id = $1 AND registered_at IS NOT NULL
        AND ($2::text IS NULL OR version = $2)
    ORDER BY registered_at DESC LIMIT 1
"""
_DOCUMENT: Final = "SELECT document::text FROM workflows WHERE definition_id = $1"
_LIST: Final = """
    SELECT workflow_id, version, registered_at FROM workflows WHERE registered_at IS NOT NULL
    ORDER BY workflow_id, registered_at DESC
"""
# Whoever asks for what is not there is told what is; of that no more than costs little, whatever is registered.
_VERSIONS: Final = """
    SELECT version FROM workflows WHERE workflow_id = $1 AND registered_at IS NOT NULL
    GROUP BY version ORDER BY max(registered_at) DESC LIMIT $2
"""
_IDS: Final = """
    (SELECT DISTINCT workflow_id FROM workflows WHERE registered_at IS NOT NULL AND workflow_id >= $1
    ORDER BY workflow_id LIMIT $2)
    UNION ALL
    (SELECT DISTINCT workflow_id FROM workflows WHERE registered_at IS NOT NULL AND workflow_id < $1
    ORDER BY workflow_id DESC LIMIT $2)
"""


@dataclass(frozen=True, slots=True)
class RegisteredWorkflow:
    """A workflow that a request may name by its id."""

    workflow_id: str
    version: str
    registered_at: datetime


def digest(document: Any) -> str:
    """Return the identity of a JSON value: equal values have equal digests, whatever the order of keys."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return _digest(canonical.encode())


def definition_id(document: Mapping[str, Any]) -> str:
    """Return the id of a definition. Here the order of keys counts: a branch's place is part of the definition."""
    return _digest(dump_checked(document))


async def store_definition(database: Database, workflow: Workflow, document: Mapping[str, Any]) -> str:
    """Store a definition unless it is there already; return its id."""
    text = dump_checked(document)
    identity = _digest(text)
    async with database.connection() as connection:
        await connection.execute(_STORE, identity, workflow.workflow_id, workflow.version, text.decode())
    return identity


async def register_workflow(database: Database, workflow: Workflow, document: Mapping[str, Any]) -> str:
    """Make a definition available by its workflow id; runs that are active keep the one they started with."""
    identity = await store_definition(database, workflow, document)
    async with database.connection() as connection:
        await connection.execute(_REGISTER, identity)
    return identity


async def find_definition(database: Database, workflow_id: str, version: str | None) -> tuple[str, str]:
    """Return the id and version of the newest definition registered under *workflow_id* (and *version*).

    Raises:
        UnknownWorkflow: There is none; the message names those that there are.
    """
    async with database.connection() as connection:
        row = await _find(connection, workflow_id, version)
    return row["definition_id"], row["version"]


async def get_workflow(
    database: Database, workflow_id: str, version: str | None
) -> tuple[RegisteredWorkflow, dict[str, Any]]:
    """Return what `find_definition` finds, with its document as it was given; raises as that does."""
    async with database.connection() as connection:
        row = await _find(connection, workflow_id, version)
        document = await load_definition(connection, row["definition_id"])
    return RegisteredWorkflow(row["workflow_id"], row["version"], row["registered_at"]), document


async def load_definition(connection: Connection, identity: str) -> dict[str, Any]:
    """Return the document of a stored definition."""
    document: dict[str, Any] = to_value(await connection.fetchval(_DOCUMENT, identity))
    return document


async def list_workflows(database: Database) -> Sequence[RegisteredWorkflow]:
    """Return the registered workflows, the newest of each id first."""
    async with database.connection() as connection:
        return [RegisteredWorkflow(*row) for row in await connection.fetch(_LIST)]


async def _find(connection: Connection, workflow_id: str, version: str | None) -> Row:
    row = await connection.fetchrow(_FIND, workflow_id, version)
    if row is None:
        raise UnknownWorkflow(await _what_there_is(connection, workflow_id, version))
    return row


async def _what_there_is(connection: Connection, workflow_id: str, version: str | None) -> str:
    """Say that there is no such workflow, and which versions or workflows there are."""
    which = f'no workflow "{workflow_id}"' + (f' version "{version}"' if version is not None else "") + " is registered"
    if version is not None:
        versions = [row["version"] for row in await connection.fetch(_VERSIONS, workflow_id, NEIGHBOURS)]
        if versions:
            return f"{which}{_meant(version, versions)}; there are versions {_named(versions)}"
    ids = sorted(row["workflow_id"] for row in await connection.fetch(_IDS, workflow_id, NEIGHBOURS))
    if not ids:
        return f"{which}: `forkjoin workflows register FILE` does that"
    return f"{which}{_meant(workflow_id, ids)}; there are {_named(ids, around=bisect_left(ids, workflow_id))}"


def _meant(name: str, names: Sequence[str]) -> str:
    found = nearest(name, names)
    return f" (did you mean {quoted(found)}?)" if found is not None else ""


def _named(names: Sequence[str], *, around: int = 0) -> str:
    first = max(min(around - NAMED // 2, len(names) - NAMED), 0)
    named = ", ".join(map(quoted, names[first : first + NAMED]))
    return named if len(names) <= NAMED else f"{named} and others: `forkjoin workflows list` shows them"


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
