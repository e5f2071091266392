"""Fresh ids."""

import os
from uuid import RFC_4122

import pytest

from orchestrator.service.ids import DRAWN_AT_ONCE, RandomIds


def test_every_id_is_another_one_and_random() -> None:
    sources = RandomIds(), RandomIds()
    drawn = [new_id() for new_id in sources for _ in range(2 * DRAWN_AT_ONCE + 1)]
    assert len(set(drawn)) == len(drawn)
    assert {(one.version, one.variant) for one in drawn} == {(4, RFC_4122)}


def test_many_ids_cost_one_call_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def urandom(size: int, draw=os.urandom) -> bytes:  # type: ignore[no-untyped-def]
        asked.append(size)
        return draw(size)

    monkeypatch.setattr(os, "urandom", urandom)
    new_id = RandomIds()
    for _ in range(DRAWN_AT_ONCE):
        new_id()
    assert asked == [16 * DRAWN_AT_ONCE]
