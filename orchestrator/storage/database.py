"""The connection to Postgres: one pool, and which of its errors pass.

Tables and migrations are SQLAlchemy's. The statements that messages wait for go to asyncpg directly: through
SQLAlchemy each costs about half a millisecond more, and a message passes six of them.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import asyncpg
from sqlalchemy import NullPool
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from orchestrator.storage.connecting import as_text, connect, parse_url

Connection = asyncpg.pool.PoolConnectionProxy
Row = asyncpg.Record

# SQLSTATEs after which the same transaction may well succeed (PostgreSQL, appendix A).
# Connection exceptions; insufficient resources; shutdown; a session that was idle in its transaction for too long.
_SERVER_GONE: Final = ("08", "53", "57P", "25P03")
_TRANSACTION_UNLUCKY: Final = frozenset({
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available
})  # fmt: skip

# The statements of a service are planned once a connection and kept, often while its tables are still empty, or before
# anybody has taken their statistics. A plan that reads a whole table would be the cheapest then, and stay while the
# table grows. All of them have their index; and what is planned anew with each use costs more than it saves.
_STEADY_PLANS: Final = """
    SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
    SET jit = off  -- up to Postgres 17 a sequential scan that is off and needed all the same looks dear enough for it
"""


class Database:
    """A pool of connections to Postgres. Belongs to the event loop that first uses it."""

    def __init__(
        self, url: str, *, pool_size: int = 10, command_timeout: float = 60.0, steady_plans: bool = False
    ) -> None:
        """Prepare the pool; the first use connects.

        Args:
            url: ``postgresql://user:password@host:port/database``; a ``?host=/directory`` names a Unix socket, and
                libpq's ``sslmode``, ``sslrootcert``, ``sslcert`` and ``sslkey`` ask for TLS.
            pool_size: Connections at most.
            command_timeout: Seconds after which a statement counts as lost; a frozen backend would hang for ever.
            steady_plans: Go by the indexes, whatever the statistics say: for services, whose statements are always the
                same. Others ask once, and want what Postgres thinks best for that.

        Raises:
            WrongUse: The URL cannot be understood.
        """
        self._url = parse_url(url)
        self._pool_size = pool_size
        self._command_timeout = command_timeout
        self._init = _plan_steadily if steady_plans else None
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()
        self._releasing: set[asyncio.Future[None]] = set()

    @property
    def engine(self) -> AsyncEngine:
        """An engine on the same database, for migrations. It connects as `connecting.connect` does."""
        return create_async_engine(
            "postgresql+asyncpg://", async_creator=partial(connect, self._url), poolclass=NullPool
        )

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Yield a connection; each statement on it is a transaction of its own."""
        pool = await self._opened()
        connection = await pool.acquire()
        try:
            yield connection
        except asyncpg.InternalClientError:
            connection.terminate()  # it is out of step with its backend for good
            raise
        finally:
            # Not waited for: giving it back takes two turns of the event loop, and what was committed can be sent.
            releasing = asyncio.ensure_future(pool.release(connection))
            self._releasing.add(releasing)
            releasing.add_done_callback(self._releasing.discard)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Yield a connection in a transaction: committed at the end, rolled back on an exception."""
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def close(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            await self._pool.close()

    async def _opened(self) -> asyncpg.Pool:
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    as_text(self._url),
                    min_size=0,
                    max_size=self._pool_size,
                    command_timeout=self._command_timeout,
                    server_settings={"application_name": "forkjoin"},
                    init=self._init,
                    reset=_keep_as_it_is,
                )
            return self._pool


async def _plan_steadily(connection: asyncpg.Connection) -> None:
    await connection.execute(_STEADY_PLANS)


async def _keep_as_it_is(_: asyncpg.Connection) -> None:
    """Nothing to reset: session settings are for good, and a round trip for each transaction would be dear."""


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may well succeed when it is tried again."""
    if isinstance(error, asyncpg.UniqueViolationError):
        # Two replicas created the same run at once; the second look finds it.
        return error.constraint_name == "runs_pkey"
    return is_lost_connection(error) or _sqlstate(error) in _TRANSACTION_UNLUCKY


def is_lost_connection(error: BaseException) -> bool:
    """Whether it is the server that is out of reach, rather than this transaction that was unlucky."""
    match error:
        case DBAPIError(connection_invalidated=True) | OSError() | TimeoutError():
            return True
        case asyncpg.InterfaceError():
            return "closed" in str(error)  # the driver has no class of its own for it
        case asyncpg.InternalClientError():
            return "cannot switch to state" in str(error)  # the news that its backend had gone met its next statement
        case _:
            return _sqlstate(error).startswith(_SERVER_GONE)


def is_locked_out(error: BaseException) -> bool:
    """Whether somebody else kept one of the transaction's runs locked for too long."""
    return isinstance(error, asyncpg.LockNotAvailableError)


def _sqlstate(error: BaseException) -> str:
    origin = error.orig if isinstance(error, DBAPIError) else error
    return getattr(origin, "sqlstate", None) or ""
