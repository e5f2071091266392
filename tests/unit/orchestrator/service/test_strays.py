"""What is done about sub-workflows and steps that have lost sight of each other, and how often."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

from orchestrator.engine.decision import Verdict
from orchestrator.engine.inputs import CancelRequested, ExternalInput, TaskMissing
from orchestrator.errors import RunLocked
from orchestrator.service.batch import Answer
from orchestrator.service.strays import Strays
from orchestrator.storage.strays import Stray

SILENT_AFTER = 10.0
MISSING = TaskMissing(UUID(int=1), "calls", UUID(int=2), datetime(2026, 1, 1, tzinfo=UTC))
NOT_AWAITED = CancelRequested(UUID(int=3), "nobody waits")


class Found:
    """Storage that finds what the test says."""

    def __init__(self, *strays: Stray) -> None:
        self.strays = strays

    async def find_strays(self, seconds: float, limit: int) -> Sequence[Stray]:
        return self.strays


class Driven:
    """A driver that answers what the test says, and keeps what it was asked."""

    def __init__(self, *answers: Verdict | Exception) -> None:
        self.answers = list(answers)
        self.events: list[ExternalInput] = []

    async def drive(self, events: Sequence[ExternalInput]) -> list[Answer]:
        self.events += events
        answer = self.answers.pop(0) if self.answers else Verdict.APPLIED
        if isinstance(answer, Exception):
            raise answer
        return [Answer(answer, "")]


def strays(found: Found, driven: Driven) -> Strays:
    return Strays(cast(Any, found), cast(Any, driven), silent_after=SILENT_AFTER)


def silent(seconds: float) -> Stray:
    return Stray(MISSING, timedelta(seconds=seconds))


async def test_each_stray_is_made_up_for_by_itself() -> None:
    driven = Driven(RunLocked("somebody keeps it locked"))
    both = Found(silent(SILENT_AFTER), Stray(NOT_AWAITED, timedelta(0)))
    assert await strays(both, driven).run_once() == 1
    assert driven.events == [MISSING, NOT_AWAITED]


async def test_what_turns_out_to_be_no_stray_does_not_count() -> None:
    assert await strays(Found(silent(SILENT_AFTER)), Driven(Verdict.STALE)).run_once() == 0


async def test_a_request_that_stays_missing_is_sent_again_after_pauses_that_double() -> None:
    found, driven = Found(), Driven()
    looking = strays(found, driven)
    for seconds, sent in ((10, 1), (19, 1), (20, 2), (39, 2), (40, 3)):
        found.strays = (silent(seconds),)
        await looking.run_once()
        assert len(driven.events) == sent, seconds
