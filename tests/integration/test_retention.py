"""Runs that ended long ago are forgotten with all that belongs to them, and no others."""

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest

from orchestrator.cli.retention import read_age
from orchestrator.errors import WrongUse
from orchestrator.storage.database import Database
from orchestrator.storage.retention import Old, count_old, prune
from schemas.statuses import RunStatus
from tests.integration.by_hand import driver_without_relay, reports, requested
from tests.integration.documents import agent, workflow

BLOCK = {"block": {"type": "parallel", "parallel_steps": ["a", "b", "c"]}, "a": agent(), "b": agent(), "c": agent()}
OLD = Old(timedelta(days=30))


async def ended(database: Database, days: float, *, is_failed: bool = False) -> UUID:
    """Return a run that ended so many days ago."""
    event = await requested(database, workflow(BLOCK))
    driver = driver_without_relay(database)
    await driver.drive([event])
    await driver.drive(await reports(database, event.run_id, 3))
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE runs SET finished_at = now() - $2::interval, status = $3 WHERE id = $1 AND finished_at IS NOT NULL",
            event.run_id,
            timedelta(days=days),
            RunStatus.FAILED if is_failed else RunStatus.COMPLETED,
        )
    return event.run_id


async def forget(database: Database, old: Old = OLD, *, rows: int = 5_000) -> list[int]:
    return [gone async for gone in prune(database, old, rows=rows)]


async def left(database: Database) -> dict[str, set[UUID]]:
    async with database.connection() as connection:
        steps = await connection.fetch("SELECT DISTINCT run_id FROM step_executions")
        runs = await connection.fetch("SELECT id FROM runs")
    return {"runs": {row["id"] for row in runs}, "steps": {row["run_id"] for row in steps}}


async def test_old_runs_are_forgotten_with_their_steps_and_younger_and_unfinished_ones_stay(database: Database) -> None:
    await ended(database, 31)
    young = await ended(database, 29)
    going = await requested(database, workflow(BLOCK))
    await driver_without_relay(database).drive([going])

    assert await count_old(database, OLD) == 1
    assert await forget(database) == [1]
    assert await left(database) == {"runs": {young, going.run_id}, "steps": {young, going.run_id}}
    assert await forget(database) == []


async def test_only_runs_of_the_status_that_is_asked_for_are_forgotten(database: Database) -> None:
    await ended(database, 40)
    failed = await ended(database, 40, is_failed=True)

    assert await forget(database, Old(timedelta(days=30), RunStatus.COMPLETED)) == [1]
    assert (await left(database))["runs"] == {failed}


async def test_the_steps_of_a_large_run_go_a_piece_at_a_time_and_the_run_last(database: Database) -> None:
    await ended(database, 40)

    pieces = [(gone, await left(database)) async for gone in prune(database, OLD, rows=2)]

    assert [gone for gone, _ in pieces] == [0, 0, 1], "four rows, two at a time"
    assert [len(there["runs"]) for _, there in pieces] == [1, 1, 0]


async def test_a_run_that_somebody_keeps_locked_is_left_and_the_others_go(database: Database) -> None:
    locked, _ = await ended(database, 50), await ended(database, 40)
    async with database.transaction() as connection:
        await connection.execute("SELECT 1 FROM runs WHERE id = $1 FOR UPDATE", locked)
        assert sum(await forget(database)) == 1
    assert (await left(database))["runs"] == {locked}
    assert sum(await forget(database)) == 1


async def test_a_run_with_rows_that_somebody_else_is_at_is_left_with_them(database: Database) -> None:
    shared, _ = await ended(database, 50), await ended(database, 40)
    async with database.transaction() as connection:
        await connection.execute("SELECT 1 FROM step_executions WHERE run_id = $1 AND step_id = 'a' FOR UPDATE", shared)
        assert await asyncio.wait_for(forget(database), 30) == [1]
    assert (await left(database))["runs"] == {shared}
    assert sum(await forget(database)) == 1


@pytest.mark.parametrize(
    ("text", "age"),
    [("90m", timedelta(minutes=90)), ("12h", timedelta(hours=12)), ("30d", timedelta(30)), (" 8w", timedelta(56))],
)
def test_an_age_is_a_number_with_a_unit(text: str, age: timedelta) -> None:
    assert read_age(text) == age


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1.5d", "30 d", "30y", "1000000d", ""])
def test_anything_else_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(WrongUse, match="a number with m, h, d or w, such as 30d"):
        read_age(text)
