"""Definitions of workflows: stored under their content, found under the id that they were registered with."""

import json
from typing import Any
from uuid import UUID

import pytest

from orchestrator.errors import UnknownWorkflow
from orchestrator.storage.port import Storage
from schemas.validation import parse_workflow
from tests.contract.storage.backends import Backend
from tests.contract.storage.rows import DEFINITION, DOCUMENT, NOTHING, WORKFLOW


def versioned(version: str, **more: Any) -> dict[str, Any]:
    return {**DOCUMENT, "version": version, **more}


async def register(backend: Backend, document: dict[str, Any]) -> str:
    return await backend.register(parse_workflow(document), document)


async def test_a_definition_is_stored_once_under_its_content(storage: Storage, other: Storage) -> None:
    assert await storage.store_definition(WORKFLOW, DOCUMENT) == DEFINITION
    assert await other.store_definition(WORKFLOW, dict(DOCUMENT)) == DEFINITION
    reordered = dict(reversed(DOCUMENT.items()))
    assert await storage.store_definition(WORKFLOW, reordered) != DEFINITION


async def test_a_definition_is_loaded_to_the_letter(storage: Storage) -> None:
    await storage.store_definition(WORKFLOW, DOCUMENT)
    async with storage.session() as session:
        await session.first_look({UUID(int=1): NOTHING})
        loaded = await session.load_definition(DEFINITION)
        assert json.dumps(loaded) == json.dumps(DOCUMENT)
        loaded["steps"].clear()
        assert await session.load_definition(DEFINITION) == DOCUMENT


async def test_what_is_stored_but_not_registered_is_not_found(storage: Storage) -> None:
    await storage.store_definition(WORKFLOW, DOCUMENT)
    with pytest.raises(UnknownWorkflow, match='no workflow "small" is registered'):
        await storage.find_definition("small", None)


async def test_the_newest_registration_is_found(backend: Backend, storage: Storage) -> None:
    first, second = await register(backend, versioned("1")), await register(backend, versioned("2"))
    assert await storage.find_definition("small", None) == (second, "2")
    assert await storage.find_definition("small", "1") == (first, "1")
    assert await register(backend, versioned("1")) == first
    assert await storage.find_definition("small", None) == (first, "1")


async def test_the_newest_registration_of_a_version_is_found(backend: Backend, storage: Storage) -> None:
    await register(backend, versioned("1"))
    changed = await register(backend, versioned("1", description="changed"))
    await register(backend, versioned("2"))
    assert await storage.find_definition("small", "1") == (changed, "1")


async def test_an_unknown_version_or_workflow_is_named(backend: Backend, storage: Storage) -> None:
    await register(backend, versioned("1"))
    with pytest.raises(UnknownWorkflow, match='no workflow "small" version "3" is registered'):
        await storage.find_definition("small", "3")
    with pytest.raises(UnknownWorkflow, match='no workflow "large" is registered'):
        await storage.find_definition("large", None)


async def test_storage_answers(storage: Storage) -> None:
    await storage.check()
