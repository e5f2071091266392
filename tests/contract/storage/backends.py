"""What the contract suite needs of each storage, beside the port: clients, time, operators, and sudden ends."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from orchestrator.engine.agent_limit import AgentLimit
from orchestrator.storage import agent_limits, dead_letters, definitions
from orchestrator.storage.database import Database
from orchestrator.storage.dead_letters import DeadLetter, Selection
from orchestrator.storage.port import Storage
from orchestrator.storage.postgres import PostgresStorage
from schemas.workflow import Workflow
from tests.simulation.storage import MemoryStorage
from tests.simulation.storage.rows import StoredLetter

_IN_SUMMARY: Final = ("dead_lettered_at", "queue", "code", "message", "type", "message_id", "run_id", "step_id")
_BESIDE_IT: Final = ("exchange", "routing_key", "correlation_id", "reply_to", "body")
_AGE: Final = """
    UPDATE outbox SET due_at = due_at - $1::interval, returned_at = returned_at - $1::interval;
    UPDATE gates SET lease_until = lease_until - $1::interval;
    UPDATE agent_limits SET refilled_at = refilled_at - $1::interval, changed_at = changed_at - $1::interval,
        counted_at = counted_at - $1::interval
"""
_WAITING: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
_KILL: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
"""


class Backend(Protocol):
    """A storage under test, as its clients, the clock and its operators see it."""

    def client(self, name: str) -> Storage:
        """Return the storage as another process sees it."""

    def now(self) -> datetime:
        """Return the storage's time, about."""

    async def pass_time(self, seconds: float) -> None:
        """Let gates, messages and limits grow older."""

    async def waiting(self) -> int:
        """Return how many transactions wait for a lock."""

    async def kill(self, client: Storage) -> None:
        """End a process that is in a transaction."""

    async def register(self, workflow: Workflow, document: Mapping[str, Any]) -> str:
        """Make a definition available by its workflow id."""

    async def limit(self, agent_name: str, max_concurrency: int | None = None, rate: float | None = None) -> None:
        """Limit an agent."""

    async def letters(self) -> Sequence[Mapping[str, Any]]:
        """Return the dead letters, the oldest first, as far as both kinds can tell of them."""

    async def replay(self) -> None:
        """Send all dead letters again."""

    async def close(self) -> None:
        """Close every client."""


class MemoryBackend:
    """Storage in memory, with a clock that stands still."""

    def __init__(self) -> None:
        self._now = datetime.now(UTC)
        self.storage = MemoryStorage(self.now)

    def client(self, name: str) -> Storage:
        return self.storage.client(name)

    def now(self) -> datetime:
        return self._now

    async def pass_time(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)

    async def waiting(self) -> int:
        return self.storage.waiting

    async def kill(self, client: Any) -> None:
        client.kill()

    async def register(self, workflow: Workflow, document: Mapping[str, Any]) -> str:
        await self.client("operator").store_definition(workflow, document)
        return self.storage.register_workflow(workflow, document)

    async def limit(self, agent_name: str, max_concurrency: int | None = None, rate: float | None = None) -> None:
        await self.storage.limit_agent(agent_name, AgentLimit(max_concurrency, rate))

    async def letters(self) -> Sequence[Mapping[str, Any]]:
        return [_told_by_memory(stored) for stored in self.storage.dead_letter_rows]

    async def replay(self) -> None:
        self.storage.replay([stored.id for stored in self.storage.dead_letter_rows])

    async def close(self) -> None:
        """There is nothing to close."""


class PostgresBackend:
    """A migrated database. Its clock cannot be set, so rows are made older."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._operator = Database(url)
        self._databases = [self._operator]

    def client(self, name: str) -> Storage:
        database = Database(self._url, steady_plans=True)
        self._databases.append(database)
        return PostgresStorage(database)

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def pass_time(self, seconds: float) -> None:
        async with self._operator.connection() as connection:
            for statement in _AGE.split(";"):
                await connection.execute(statement, timedelta(seconds=seconds))

    async def waiting(self) -> int:
        async with self._operator.connection() as connection:
            return int(await connection.fetchval(_WAITING))

    async def kill(self, client: Storage) -> None:
        async with self._operator.connection() as connection:
            await connection.execute(_KILL)

    async def register(self, workflow: Workflow, document: Mapping[str, Any]) -> str:
        return await definitions.register_workflow(self._operator, workflow, document)

    async def limit(self, agent_name: str, max_concurrency: int | None = None, rate: float | None = None) -> None:
        await agent_limits.change_limit(self._operator, agent_name, lambda _: AgentLimit(max_concurrency, rate))

    async def letters(self) -> Sequence[Mapping[str, Any]]:
        summaries = await dead_letters.list_dead_letters(self._operator, Selection(), 100)
        return [
            _told_by_postgres(await dead_letters.get_dead_letter(self._operator, one.id)) for one in reversed(summaries)
        ]

    async def replay(self) -> None:
        await dead_letters.replay(self._operator, await self._numbers())

    async def close(self) -> None:
        await asyncio.gather(*(database.close() for database in self._databases))

    async def _numbers(self) -> Sequence[int]:
        newest_first = await dead_letters.list_dead_letters(self._operator, Selection(), 100)
        return [letter.id for letter in reversed(newest_first)]


def _told_by_memory(stored: StoredLetter) -> Mapping[str, Any]:
    letter = stored.letter
    told = {name: getattr(letter, name) for name in (*_IN_SUMMARY, *_BESIDE_IT)}
    return told | {"headers": json.loads(letter.headers)}


def _told_by_postgres(letter: DeadLetter) -> Mapping[str, Any]:
    told = {name: getattr(letter.summary, name) for name in _IN_SUMMARY}
    return told | {name: getattr(letter, name) for name in _BESIDE_IT} | {"headers": letter.headers}
