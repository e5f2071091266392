"""A replica with nothing to do asks Postgres once a second."""

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from orchestrator.storage import due
from schemas.statuses import ResultStatus
from tests.conftest import Eventually
from tests.integration.documents import one_block
from tests.integration.system import System

LOOKS = 3


class Statements:
    """What this process sends to Postgres, and what begins and ends transactions with it."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def looks_alone(self, count: int) -> bool:
        """Whether the latest statements were so many looks."""
        return self.seen[-count:] == [due._DUE] * count

    def noting(self, send: Callable[..., Any]) -> Callable[..., Any]:
        """Return *send* with a note of what is sent."""

        async def noted(connection: Any, query: str, *arguments: Any, **options: Any) -> Any:
            self.seen.append(query)
            return await send(connection, query, *arguments, **options)

        return noted


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    statements = Statements()
    for name in ("execute", "_execute"):  # the first for BEGIN and COMMIT, the second for what has arguments
        monkeypatch.setattr(asyncpg.Connection, name, statements.noting(getattr(asyncpg.Connection, name)))
    return statements


async def echo(input: Any) -> Any:
    return input


async def test_an_idle_replica_sends_one_statement_for_each_look_and_no_other(
    system: System, statements: Statements, eventually: Eventually
) -> None:
    await system.start_replica(silent_after=600.0)  # the reconciler has a statement of its own, three times in that
    await system.start_worker(echo)
    assert (await system.run(one_block(4, max_parallelism=2))).status is ResultStatus.COMPLETED
    await system.quiet()
    assert any(sent.startswith("COMMIT") for sent in statements.seen), "or it would not be seen in what follows either"
    await eventually(lambda: statements.looks_alone(2))
    statements.seen.clear()
    await eventually(lambda: statements.seen.count(due._DUE) == LOOKS)
    assert statements.looks_alone(LOOKS)
    assert len(statements.seen) == LOOKS
