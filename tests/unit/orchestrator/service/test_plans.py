"""Compiled plans: kept while they fit, made anew when they were dropped."""

from collections.abc import Mapping
from typing import Any

import pytest

from orchestrator.engine.compilation import compile_plan
from orchestrator.service.plans import PlanCache
from schemas.errors import WorkflowInvalid
from schemas.validation import parse_workflow


def document(name: str, steps: int) -> dict[str, Any]:
    chain = {
        f"s{place}": {"agent_name": "a", "next_step": f"s{place + 1}" if place + 1 < steps else None}
        for place in range(steps)
    }
    return {"name": name, "version": "1", "start_step": "s0", "steps": chain}


class Store:
    """Definitions of so many steps as their id says; notes what is loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []

    async def load(self, definition_id: str) -> Mapping[str, Any]:
        self.loaded.append(definition_id)
        return document(definition_id, int(definition_id.partition("-")[0]))


@pytest.fixture
def store() -> Store:
    return Store()


async def test_a_plan_is_loaded_once(store: Store) -> None:
    cache = PlanCache()
    first = await cache.get("3-a", store.load)
    assert await cache.get("3-a", store.load) is first
    assert (first.workflow_id, len(first.steps)) == ("3-a", 3)
    assert store.loaded == ["3-a"]


async def test_a_plan_that_was_put_is_not_loaded(store: Store) -> None:
    cache = PlanCache()
    plan = compile_plan(parse_workflow(document("mine", 2)))
    cache.put("2-mine", plan)
    cache.put("2-mine", compile_plan(parse_workflow(document("again", 2))))
    assert await cache.get("2-mine", store.load) is plan
    assert store.loaded == []


async def test_the_plan_that_was_used_least_recently_makes_room(store: Store) -> None:
    cache = PlanCache(max_steps=10)
    for name in ("4-a", "4-b", "4-a", "4-c"):
        await cache.get(name, store.load)
    for name in ("4-a", "4-c"):
        await cache.get(name, store.load)
    assert store.loaded == ["4-a", "4-b", "4-c"]
    await cache.get("4-b", store.load)
    assert store.loaded == ["4-a", "4-b", "4-c", "4-b"]


async def test_plans_that_fit_exactly_stay(store: Store) -> None:
    cache = PlanCache(max_steps=8)
    for name in ("4-a", "4-b", "4-a", "4-b"):
        await cache.get(name, store.load)
    assert store.loaded == ["4-a", "4-b"]


async def test_a_plan_that_is_larger_than_the_whole_cache_is_kept_while_nothing_else_is_asked_for(store: Store) -> None:
    cache = PlanCache(max_steps=5)
    for _ in range(3):
        await cache.get("50-large", store.load)
    assert store.loaded == ["50-large"]
    await cache.get("1-small", store.load)
    await cache.get("1-small", store.load)
    await cache.get("50-large", store.load)
    assert store.loaded == ["50-large", "1-small", "50-large"]


async def test_a_plan_that_cannot_be_made_is_not_kept(store: Store) -> None:
    async def broken(_: str) -> Mapping[str, Any]:
        return {}

    cache = PlanCache()
    with pytest.raises(WorkflowInvalid):
        await cache.get("1-a", broken)
    assert len((await cache.get("1-a", store.load)).steps) == 1
