"""The whole system in one process: replicas, workers and a client, over either broker, on a real Postgres."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from agent_worker import AgentRegistry
from agent_worker.options import WorkerOptions
from agent_worker.tracing import AttemptTracing
from agent_worker.worker import Worker
from messaging import topology
from messaging.port import Broker, OutgoingMessage, PublishOutcome, QueueMissing
from orchestrator.client import Client
from orchestrator.service.replica import Replica
from orchestrator.storage.database import Database
from orchestrator.storage.postgres import PostgresStorage
from schemas.codec import encode
from schemas.messages import AgentResult, CancelRun, RetryRun, RunRequest, RunResult
from schemas.statuses import ReportStatus
from tests.integration.replicas import Brokers, RunningReplica, start
from tests.services.waiting import eventually

SECONDS = 120.0
_JSON_COLUMNS = ("input", "output", "error", "labels", "document")


class System:
    """What a test plays with. Everything that it starts ends with `close`, and a task that is left over fails."""

    def __init__(self, brokers: Brokers, database_url: str) -> None:
        self.brokers = brokers
        self.database_url = database_url
        self.replicas: list[RunningReplica] = []
        self._workers: list[Worker] = []
        self._brokers: list[Broker] = []
        self._looking = asyncio.Lock()

    async def open(self) -> "System":
        """Connect the client, and the connection that looks into the tables."""
        self.broker = await self.connect("client")
        self.client = Client(self.broker)
        self.connection: asyncpg.Connection = await asyncpg.connect(self.database_url)
        self.database = Database(self.database_url, pool_size=4)
        return self

    async def connect(self, name: str, **options: Any) -> Broker:
        """Return another client of the broker."""
        broker = await self.brokers.connect(name, **options)
        self._brokers.append(broker)
        return broker

    async def start_replica(
        self, name: str | None = None, *, broker: Any = None, brokers: Brokers | None = None, **options: Any
    ) -> RunningReplica:
        """Start a replica with connections of its own; *broker* holds options of its client.

        Its way to the broker is that of everybody, unless it has *brokers* of its own.
        """
        name = name or f"replica-{len(self.replicas) + 1}"
        database = Database(self.database_url, steady_plans=True)
        client = await (brokers or self.brokers).connect(name, **(broker or {}))
        replica = Replica(PostgresStorage(database), client, name, **options)
        running = RunningReplica(name, replica, client, database, await start(replica, name))
        self.replicas.append(running)
        return running

    async def end(self, running: RunningReplica, *, crash: bool) -> None:
        """End a replica, in order or by a crash; what it had committed and not sent is due at once then."""
        self.replicas.remove(running)
        await (running.crash() if crash else running.stop())
        if crash:
            await self.make_due()

    async def make_due(self) -> None:
        """Let the seconds pass for which sweepers leave messages to the process that wrote them."""
        await self.fetch("UPDATE outbox SET due_at = now() WHERE held_at IS NULL")

    async def start_worker(
        self,
        *functions: Callable[..., Any],
        concurrency: int = 10,
        tracing: AttemptTracing | None = None,
        **options: Any,
    ) -> Worker:
        """Start a worker whose agents are *functions*, under their own names."""
        registry = AgentRegistry()
        for function in functions:
            registry.agent(function.__name__)(function)
        chosen = WorkerOptions(concurrency=concurrency, **options)
        worker = Worker(await self.connect("worker"), registry, chosen, tracing=tracing)
        await worker.start()
        self._workers.append(worker)
        return worker

    # Runs

    async def run(self, document: Any, input: Any = None, *, seconds: float = SECONDS, **fields: Any) -> RunResult:
        """Submit a run and return its result; *document* is a workflow, or None where *fields* name one."""
        async with asyncio.timeout(seconds):
            return await self.client.run(_request(document, input, fields))

    async def retry(
        self, run_id: UUID | None, *, new_run_id: UUID | None = None, seconds: float = SECONDS
    ) -> RunResult:
        """Retry a run, and return the result of the new one."""
        assert run_id is not None, "a run that was refused is not retried"
        async with asyncio.timeout(seconds):
            return await self.client.run(RetryRun(run_id=run_id, new_run_id=new_run_id or uuid4()))

    async def submit(self, document: Any, input: Any = None, **fields: Any) -> UUID:
        """Submit a run and return its id."""
        request = _request(document, input, fields)
        await self.client.submit(request)
        assert request.run_id is not None
        return request.run_id

    async def status(self, run_id: UUID) -> str | None:
        """Return the run's status; None while there is no such run."""
        rows = await self.fetch("SELECT status FROM runs WHERE id = $1", run_id)
        return rows[0]["status"] if rows else None

    async def ended(self, run_id: UUID, *, seconds: float = SECONDS) -> str:
        """Wait until the run is final, and return its status."""

        async def final() -> str | None:
            status = await self.status(run_id)
            return status if status in {"COMPLETED", "FAILED", "CANCELLED"} else None

        return str(await eventually(final, timeout=seconds))

    async def run_row(self, run_id: UUID) -> dict[str, Any]:
        """Return the run's row."""
        return _plain((await self.fetch("SELECT * FROM runs WHERE id = $1", run_id))[0])

    async def steps(self, run_id: UUID) -> dict[str, dict[str, Any]]:
        """Return the run's step executions by step id, as they came to be."""
        rows = await self.fetch("SELECT * FROM step_executions WHERE run_id = $1 ORDER BY created_at, position", run_id)
        return {row["step_id"]: _plain(row) for row in rows}

    async def statuses(self, run_id: UUID) -> dict[str, str]:
        """Return the status of each step."""
        rows = await self.fetch("SELECT step_id, status FROM step_executions WHERE run_id = $1", run_id)
        return {row["step_id"]: row["status"] for row in rows}

    async def step_is(self, run_id: UUID, step_id: str, status: str, *, seconds: float = SECONDS) -> None:
        """Wait until a step has a status."""

        async def reached() -> bool:
            return (await self.statuses(run_id)).get(step_id) == status

        await eventually(reached, timeout=seconds)

    # What lies beneath

    async def fetch(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Run one statement on a connection that is the test's own."""
        async with self._looking:
            return list(await self.connection.fetch(statement, *arguments))

    async def count(self, table: str) -> int:
        """Return how many rows a table has."""
        return int((await self.fetch(f"SELECT count(*) FROM {table}"))[0][0])

    async def somebody_waits_for_a_lock(self) -> None:
        """Wait until a transaction waits for a lock."""
        statement = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"

        async def waits() -> bool:
            # The view is a snapshot within a transaction, so this looks from another one.
            async with self.database.connection() as connection:
                return bool(await connection.fetch(statement))

        await eventually(waits)

    async def publish(self, queue: str, body: bytes, **fields: Any) -> None:
        """Put a message into a queue by its name, as any client in any language may."""
        properties = {"exchange": "", "type": "", "message_id": str(uuid4())} | fields
        outcome = await self.broker.publish([OutgoingMessage(routing_key=queue, body=body, **properties)])
        assert outcome == [PublishOutcome.CONFIRMED]

    async def report(self, *reports: AgentResult) -> None:
        """Send reports as a worker does."""
        messages = [
            OutgoingMessage(topology.RESULTS_EXCHANGE, "result.any", "AgentResult", str(uuid4()), encode(report))
            for report in reports
        ]
        assert set(await self.broker.publish(messages)) == {PublishOutcome.CONFIRMED}

    async def cancel(self, run_id: UUID, reason: str | None = None) -> None:
        """Ask that a run stop."""
        await self.publish(topology.COMMANDS_QUEUE.name, encode(CancelRun(run_id=run_id, reason=reason)))

    async def task_ids(self, run_id: UUID) -> dict[str, UUID]:
        """Return the task ids of the current attempts."""
        statement = "SELECT step_id, task_id FROM step_executions WHERE run_id = $1 AND task_id IS NOT NULL"
        return {row["step_id"]: row["task_id"] for row in await self.fetch(statement, run_id)}

    def verdicts(self) -> dict[str, int]:
        """Return how many inputs all replicas together answered with each verdict and code."""
        counted: dict[str, int] = {}
        for running in self.replicas:
            for (verdict, code), number in running.replica.driver.verdicts.items():
                key = f"{verdict.value} {code}".strip()
                counted[key] = counted.get(key, 0) + number
        return counted

    async def stored_dead_letters(self, count: int) -> list[asyncpg.Record]:
        """Wait for *count* dead letters in the table and return them, the oldest first; more than that is an error."""

        async def stored() -> list[asyncpg.Record] | None:
            rows = await self.fetch("SELECT * FROM dead_letters ORDER BY id")
            return rows if len(rows) >= count else None

        letters: list[asyncpg.Record] = await eventually(stored, timeout=SECONDS)
        assert len(letters) == count
        return letters

    async def dead_letters(self, count: int) -> list[asyncpg.Record]:
        """Wait for *count* dead letters, return them and drop them; more than that is an error."""
        letters = await self.stored_dead_letters(count)
        await self.fetch("DELETE FROM dead_letters WHERE id = ANY($1)", [letter["id"] for letter in letters])
        return letters

    async def gate_exists(self, run_id: UUID, block_id: str) -> bool:
        """Whether the block's gate queue exists."""
        try:
            await self.broker.check_queue(topology.gate_queue(run_id, block_id).name)
        except QueueMissing:
            return False
        return True

    async def quiet(self, *, dead_letters: int = 0, seconds: float = 60) -> None:
        """Wait until nothing is left to do: no message, no outbox row, no gate; so many dead letters."""
        queues = (topology.RUNS_QUEUE, topology.RESULTS_QUEUE, topology.COMMANDS_QUEUE, topology.DEAD_LETTERS_QUEUE)

        async def left() -> dict[str, int]:
            found = {table: await self.count(table) for table in ("outbox", "gates", "dead_letters")}
            for queue in queues:
                found[queue.name] = (await self.broker.check_queue(queue.name)).ready
            return {name: number for name, number in found.items() if number}

        expected = {"dead_letters": dead_letters} if dead_letters else {}
        last: dict[str, int] = {}

        async def nothing() -> bool:
            nonlocal last
            last = await left()
            return last == expected

        try:
            await eventually(nothing, timeout=seconds)
        except AssertionError:
            raise AssertionError(f"left over: {last}; expected: {expected}") from None

    async def close(self) -> None:
        """End everything; a task that is left over, or a replica whose loop failed, is an error."""
        failures: list[BaseException] = []
        for worker in self._workers:
            await worker.close()
        for running in self.replicas:
            try:
                await running.stop()
            except Exception as failure:
                failures.append(failure)
        for broker in self._brokers:
            await broker.close()
        await self.connection.close()
        await self.database.close()
        await no_tasks_left()
        if failures:
            raise failures[0]


async def no_tasks_left() -> None:
    """Fail when a task still runs, other than the caller."""

    def left() -> list[str]:
        return [str(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]

    with suppress(AssertionError):
        await eventually(lambda: not left())
    assert left() == []


def completed(run_id: UUID, task_id: UUID, output: Any = None, worker_id: str = "by-hand") -> AgentResult:
    """Return the report of an attempt that succeeded."""
    return AgentResult(
        run_id=run_id, task_id=task_id, status=ReportStatus.COMPLETED, output=output, worker_id=worker_id
    )


def children(steps: dict[str, dict[str, Any]], block_id: str) -> Sequence[dict[str, Any]]:
    """Return the rows of a block's branches."""
    return [row for row in steps.values() if row["parent_step_id"] == block_id]


def _request(document: Any, input: Any, fields: dict[str, Any]) -> RunRequest:
    return RunRequest(**{"run_id": uuid4(), "workflow": document, "input": input} | fields)


def _plain(row: asyncpg.Record) -> dict[str, Any]:
    return {
        name: json.loads(value) if name in _JSON_COLUMNS and value is not None else value for name, value in row.items()
    }
