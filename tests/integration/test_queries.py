"""What is asked about runs and workflows: the runs that match, and what is registered."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from orchestrator.errors import UnknownWorkflow
from orchestrator.storage.database import Database
from orchestrator.storage.definitions import NAMED, find_definition, get_workflow, register_workflow
from orchestrator.storage.queries import Selection, list_runs
from schemas.statuses import RunStatus
from schemas.validation import parse_workflow
from tests.integration.by_hand import driver_without_relay, reports, requested
from tests.integration.documents import agent, workflow

STEPS = {"one": agent("echo", input_mapping={"b": 1, "a": 2.50, "größe": "🐝"})}


async def start(database: Database, name: str = "tested", **labels: str) -> UUID:
    """Start a run that waits for its one step."""
    event = replace(await requested(database, workflow(STEPS, name=name)), labels=labels)
    await driver_without_relay(database).drive([event])
    return event.run_id


async def complete(database: Database, run_id: UUID) -> None:
    await driver_without_relay(database).drive(await reports(database, run_id, 1))


async def found(database: Database, *, limit: int = 20, **selection: Any) -> list[UUID]:
    return [run.run_id for run in await list_runs(database, Selection(**selection), limit=limit)]


async def test_runs_are_found_by_all_of_their_labels_that_are_asked_for_the_newest_first(database: Database) -> None:
    search = await start(database, team="search", env="live")
    ads = await start(database, team="ads", env="live")
    both = await start(database, team="search", env="test", größe="🐝")
    none = await start(database)

    assert await found(database) == [none, both, ads, search]
    assert await found(database, labels={"team": "search"}) == [both, search]
    assert await found(database, labels={"team": "search", "env": "live"}) == [search]
    assert await found(database, labels={"größe": "🐝"}) == [both]
    assert await found(database, labels={"team": "sea"}) == [], "a label matches as a whole"
    assert await found(database, labels={"search": "team"}) == []
    assert await found(database, labels={"team": "search"}, limit=1) == [both]


async def test_what_runs_are_asked_for_holds_together(database: Database) -> None:
    done = await start(database, team="search")
    await complete(database, done)
    going = await start(database, team="search")
    other = await start(database, "other", team="search")

    assert await found(database, workflow_id="other") == [other]
    assert await found(database, labels={"team": "search"}, status=RunStatus.COMPLETED) == [done]
    assert await found(database, labels={"team": "search"}, workflow_id="tested") == [going, done]
    assert await found(database, status=RunStatus.RUNNING, workflow_id="tested") == [going]
    assert await found(database, labels={"team": "ads"}, workflow_id="tested") == []


async def test_a_run_is_listed_with_its_labels(database: Database) -> None:
    await start(database, team="search", größe="🐝")
    [run] = await list_runs(database, Selection(), limit=1)
    assert run.labels == {"team": "search", "größe": "🐝"}


# Registered workflows


async def register(database: Database, name: str, version: str = "1.0", **more: Any) -> dict[str, Any]:
    document = workflow(STEPS, name=name, version=version, **more)
    await register_workflow(database, parse_workflow(document), document)
    return document


async def unknown(database: Database, name: str, version: str | None = None) -> str:
    """Return why a workflow is not found; whoever shows and whoever runs it are told the same."""
    with pytest.raises(UnknownWorkflow) as shown:
        await get_workflow(database, name, version)
    with pytest.raises(UnknownWorkflow) as run:
        await find_definition(database, name, version)
    assert str(shown.value) == str(run.value)
    return str(shown.value)


async def test_a_document_is_shown_to_the_letter_the_newest_unless_a_version_is_named(database: Database) -> None:
    first = await register(database, "greet", "1")
    await register(database, "greet", "2")
    changed = await register(database, "greet", "2", description="changed")

    newest, document = await get_workflow(database, "greet", None)
    older, named = await get_workflow(database, "greet", "1")

    assert (newest.workflow_id, newest.version, older.version) == ("greet", "2", "1")
    assert newest.registered_at > older.registered_at
    assert (json.dumps(document), json.dumps(named)) == (json.dumps(changed), json.dumps(first))


async def test_without_any_workflow_it_says_how_to_register_one(database: Database) -> None:
    await start(database, "started")  # its definition is stored, and not registered
    assert await unknown(database, "started") == (
        'no workflow "started" is registered: `forkjoin workflows register FILE` does that'
    )


async def test_an_unknown_workflow_is_told_with_those_that_there_are_and_the_nearest(database: Database) -> None:
    await register(database, "parallel-example")
    await register(database, "greet", "1")
    await register(database, "greet", "2")

    assert await unknown(database, "paralel-exampel", "1.0") == (
        'no workflow "paralel-exampel" version "1.0" is registered (did you mean "parallel-example"?); '
        'there are "greet", "parallel-example"'
    )
    assert await unknown(database, "xyz") == 'no workflow "xyz" is registered; there are "greet", "parallel-example"'


async def test_an_unknown_version_is_told_with_those_that_there_are_the_newest_first(database: Database) -> None:
    await register(database, "other", "2.1")
    for version in ("2.0", "1.0", "beta"):
        await register(database, "greet", version)
    await register(database, "greet", "2.0", description="changed")

    assert await unknown(database, "greet", "bata") == (
        'no workflow "greet" version "bata" is registered (did you mean "beta"?); '
        'there are versions "2.0", "beta", "1.0"'
    )


async def test_of_many_workflows_those_with_names_alike_are_told(database: Database) -> None:
    for number in range(NAMED + 20):
        await register(database, f"w{number:02}")

    for name, first in (("w15-x", 11), ("a", 0), ("z", 20)):
        names = ", ".join(f'"w{number:02}"' for number in range(first, first + NAMED))
        told = await unknown(database, name)
        assert told.endswith(f"; there are {names} and others: `forkjoin workflows list` shows them")
