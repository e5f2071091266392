"""A process that uses the storage: what befalls its calls on the way, and its end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, NoReturn, Protocol, TypeVar
from uuid import UUID

from orchestrator.engine.inputs import DueInput
from orchestrator.storage.agent_limits import LetThrough
from orchestrator.storage.dead_letters import NewDeadLetter
from orchestrator.storage.due import Due
from orchestrator.storage.gates import Lease
from orchestrator.storage.silent import Silence, SilentAttempt
from orchestrator.storage.strays import Stray
from schemas.workflow import Workflow
from tests.simulation.storage import agents, attempts, definitions, due, leases, letters, strays
from tests.simulation.storage.locks import LockTimeout
from tests.simulation.storage.operations import Operation, Scheduler
from tests.simulation.storage.sessions import MemoryOutbox, MemorySession
from tests.simulation.storage.transaction import COMMAND_TIMEOUT, Transaction, TransactionOver

T = TypeVar("T")

TURN_TIMEOUT = 0.5  # seconds to wait for whoever lets tasks of the same agent through


class Server(Protocol):
    """What a client needs of the storage."""

    def clock(self) -> datetime:
        """Return the storage's time."""

    def number(self) -> int:
        """Draw the id of a new dead letter."""

    def begin(self, client: str, lock_timeout: float) -> Transaction:
        """Begin a transaction."""


class MemoryConnection:
    """A client's way to the storage, with one transaction at a time."""

    def __init__(self, client: "MemoryClient", server: Server) -> None:
        self._client = client
        self._server = server
        self._transaction: Transaction | None = None
        self.clock = server.clock
        self.number = server.number

    @property
    def transaction(self) -> Transaction:
        """The transaction that was begun, and is not over."""
        if self._transaction is None:
            raise TransactionOver("no transaction was begun: a session begins with its first look")
        self._transaction.require_open()
        return self._transaction

    def begin(self, lock_timeout: float = COMMAND_TIMEOUT) -> Transaction:
        """Begin the transaction."""
        assert self._transaction is None, "a connection is for one transaction"
        self._transaction = self._server.begin(self._client.name, lock_timeout)
        return self._transaction

    async def perform(self, operation: Operation, work: Callable[[], Awaitable[T]]) -> T:
        """Do one thing, with whatever befalls it on the way; an error undoes the transaction."""
        try:
            return await self._client.perform(operation, work)
        except BaseException:
            self.rollback()
            raise

    async def commit(self, operation: Operation) -> None:
        """Commit, if anything was begun."""

        async def work() -> None:
            self.transaction.commit()

        if self._transaction is not None:
            await self.perform(operation, work)

    def rollback(self) -> None:
        """Undo the transaction, unless it is over already."""
        if self._transaction is not None:
            self._transaction.rollback()


class MemoryClient:
    """A process's view of the storage; see `orchestrator.storage.port.Storage`, and the package for more."""

    def __init__(self, server: Server, name: str, scheduler: Scheduler | None) -> None:
        self.name = name
        self._is_dead = False
        self._server = server
        self._scheduler = scheduler
        self._connections: dict[MemoryConnection, None] = {}
        self._calls_in_limbo: list[asyncio.Future[None]] = []

    def kill(self) -> None:
        """End it at once: its transactions are undone, and none of its calls ever returns."""
        self._is_dead = True
        for connection in self._connections:
            connection.rollback()

    def is_dead(self) -> bool:
        """Whether it was killed."""
        return self._is_dead

    # The port

    @asynccontextmanager
    async def session(self) -> AsyncIterator[MemorySession]:
        """Begin a transaction on runs: committed at the end, rolled back on an exception."""
        async with self._connection(Operation.COMMIT) as connection:
            yield MemorySession(connection)

    @asynccontextmanager
    async def outbox(self) -> AsyncIterator[MemoryOutbox]:
        """Begin a transaction on the outbox: committed at the end, rolled back on an exception."""
        async with self._connection(Operation.COMMIT_OUTBOX) as connection:

            async def begin() -> None:
                connection.begin()

            await connection.perform(Operation.BEGIN_OUTBOX, begin)
            yield MemoryOutbox(connection)

    async def what_is_due(self, replica_id: str) -> frozenset[Due]:
        """Return what a replica should look after."""
        return await self._alone(Operation.WHAT_IS_DUE, lambda begun: due.what_is_due(begun, replica_id))

    async def take_leases(self, replica_id: str) -> Sequence[Lease]:
        """Renew what this replica holds, take over what has lapsed, and return all that it holds now."""
        return await self._alone(Operation.TAKE_LEASES, lambda begun: leases.take_leases(begun, replica_id))

    async def release_leases(self, replica_id: str) -> None:
        """Let the leases of this replica lapse at once."""
        await self._alone(Operation.RELEASE_LEASES, lambda begun: leases.release_leases(begun, replica_id))

    async def delete_gate(self, replica_id: str, run_id: UUID, block_id: str) -> None:
        """Forget a gate whose queue is gone, with its unsent tickets, if this replica still holds it."""
        await self._alone(Operation.DELETE_GATE, lambda begun: leases.delete_gate(begun, replica_id, run_id, block_id))

    async def agents_with_room(self) -> Sequence[str]:
        """Return the agents of which held tasks may go out now, or are to be dropped."""
        return await self._alone(Operation.AGENTS_WITH_ROOM, agents.agents_with_room)

    async def let_tasks_through(self, agent_name: str, page: int) -> LetThrough:
        """Let the next of an agent's held tasks through, as far as its limit has room."""
        try:
            async with self._connection(Operation.COMMIT_LET_THROUGH) as connection:
                begun = connection.begin(TURN_TIMEOUT)
                await connection.perform(Operation.LOCK_AGENT, lambda: agents.lock(begun, agent_name))
                return await connection.perform(
                    Operation.LET_THROUGH,
                    lambda: agents.let_tasks_through(connection.transaction, agent_name, page, connection.clock()),
                )
        except LockTimeout:
            return LetThrough()

    async def block_over(self, run_id: UUID, block_id: str) -> bool:
        """Return whether a block is final."""
        return await self._alone(Operation.BLOCK_OVER, lambda begun: attempts.block_over(begun, run_id, block_id))

    async def branches_over(self, run_id: UUID, step_ids: Sequence[str]) -> frozenset[str]:
        """Return those of *step_ids* that are final."""
        return await self._alone(Operation.BRANCHES_OVER, lambda begun: attempts.branches_over(begun, run_id, step_ids))

    async def due_inputs(self, limit: int) -> Sequence[DueInput]:
        """Return what is due, the longest first."""
        return await self._alone(Operation.DUE_INPUTS, lambda begun: attempts.due_inputs(begun, limit))

    async def count_silent(self, seconds: float) -> Sequence[Silence]:
        """Return the agents that have attempts without a sign of life for *seconds*, by name."""
        return await self._alone(Operation.COUNT_SILENT, lambda begun: attempts.count_silent(begun, seconds))

    async def oldest_silent(self, agent_name: str, seconds: float, limit: int) -> Sequence[SilentAttempt]:
        """Return up to *limit* silent attempts of an agent, those that were sent first."""
        return await self._alone(
            Operation.OLDEST_SILENT, lambda begun: attempts.oldest_silent(begun, agent_name, seconds, limit)
        )

    async def find_strays(self, seconds: float, limit: int) -> Sequence[Stray]:
        """Return up to *limit* sub-workflows of each kind whose step and run do not fit together any more."""
        return await self._alone(Operation.FIND_STRAYS, lambda begun: strays.find_strays(begun, seconds, limit))

    async def store_definition(self, workflow: Workflow, document: Mapping[str, Any]) -> str:
        """Store a definition unless it is there already; return its id."""
        return await self._alone(
            Operation.STORE_DEFINITION, lambda begun: definitions.store_definition(begun, workflow, document)
        )

    async def find_definition(self, workflow_id: str, version: str | None) -> tuple[str, str]:
        """Return the id and version of the newest definition of a workflow. Raises UnknownWorkflow."""
        return await self._alone(
            Operation.FIND_DEFINITION, lambda begun: definitions.find_definition(begun, workflow_id, version)
        )

    async def store_dead_letters(self, dead_letters: Sequence[NewDeadLetter]) -> None:
        """Store dead letters; those that are stored already stay as they are."""
        await self._alone(
            Operation.STORE_DEAD_LETTERS, lambda begun: letters.store(begun, dead_letters, self._server.number)
        )

    async def check(self) -> None:
        """Make sure that storage answers."""

        async def nothing(_: Transaction) -> None: ...

        await self._alone(Operation.CHECK, nothing)

    # What befalls a call

    async def perform(self, operation: Operation, work: Callable[[], Awaitable[T]]) -> T:
        """Do one thing, with whatever the scheduler has in store for it; never return once the client is dead."""
        try:
            await self._outward(operation)
            if not self.is_dead():
                result = await work()
                await self._homeward(operation)
                if not self.is_dead():
                    return result
        except Exception:
            if not self.is_dead():
                raise
        return await self._limbo()

    async def _outward(self, operation: Operation) -> None:
        if self._scheduler is None or self.is_dead():
            return
        await self._scheduler.before(operation)
        if not self.is_dead() and self._scheduler.fails(operation):
            raise ConnectionResetError(f"the connection was lost before: {operation}")

    async def _homeward(self, operation: Operation) -> None:
        if self._scheduler is None or self.is_dead():
            return
        await self._scheduler.after(operation)
        if not self.is_dead() and self._scheduler.fails(f"answer to {operation}"):
            raise ConnectionResetError(f"the connection was lost after: {operation}")

    async def _limbo(self) -> NoReturn:
        forever = asyncio.get_running_loop().create_future()
        self._calls_in_limbo.append(forever)  # kept, so that nobody collects the task that waits
        await forever
        raise AssertionError("the dead do not return")

    @asynccontextmanager
    async def _connection(self, commit: Operation) -> AsyncIterator[MemoryConnection]:
        connection = MemoryConnection(self, self._server)
        self._connections[connection] = None
        try:
            yield connection
            await connection.commit(commit)
        finally:
            connection.rollback()
            del self._connections[connection]

    async def _alone(self, operation: Operation, work: Callable[[Transaction], Awaitable[T]]) -> T:
        """Do one thing in a transaction of its own, as one statement."""
        connection = MemoryConnection(self, self._server)

        async def statement() -> T:
            result = await work(connection.begin())
            connection.transaction.commit()
            return result

        self._connections[connection] = None
        try:
            return await connection.perform(operation, statement)
        finally:
            del self._connections[connection]
