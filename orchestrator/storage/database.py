"""The connection to Postgres: one engine, and which of its errors pass."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from orchestrator.errors import WrongUse

# SQLSTATEs after which the same transaction may well succeed (PostgreSQL, appendix A).
_TRANSIENT_CLASSES: Final = ("08", "53")  # connection exceptions; insufficient resources
_TRANSIENT_STATES: Final = frozenset({
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "55P03",  # lock_not_available
    "23505",  # unique_violation: two replicas created the same run; the second look finds it
})  # fmt: skip


class Database:
    """A pool of connections to Postgres."""

    def __init__(self, url: str, *, pool_size: int = 10, command_timeout: float = 60.0) -> None:
        """Prepare the pool; the first use connects.

        Args:
            url: ``postgresql://user:password@host:port/database``; a ``?host=/directory`` names a Unix socket.
            pool_size: Connections at most.
            command_timeout: Seconds after which a statement counts as lost; a frozen backend would hang for ever.

        Raises:
            WrongUse: The URL cannot be understood.
        """
        self.engine: AsyncEngine = create_async_engine(
            _with_driver(url),
            pool_size=pool_size,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={"command_timeout": command_timeout, "server_settings": {"application_name": "forkjoin"}},
        )

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection in a transaction: committed at the end, rolled back on an exception."""
        async with self.engine.begin() as connection:
            yield connection

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


def is_transient(error: BaseException) -> bool:
    """Whether the same transaction may well succeed when it is tried again."""
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None) or ""
        return error.connection_invalidated or state.startswith(_TRANSIENT_CLASSES) or state in _TRANSIENT_STATES
    return isinstance(error, OSError | socket.gaierror | TimeoutError | ConnectionError)


def is_lost_connection(error: BaseException) -> bool:
    """Whether it is the server that is out of reach, rather than this transaction that was unlucky."""
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None) or ""
        return error.connection_invalidated or state.startswith((*_TRANSIENT_CLASSES, "57P"))
    return is_transient(error)


def _with_driver(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise WrongUse("the database URL cannot be read; it looks like postgresql://user:password@host/name") from error
    if parsed.get_backend_name() not in {"postgresql", "postgres"}:
        raise WrongUse(f"the database must be Postgres (postgresql://…), not {parsed.get_backend_name()}")
    return parsed.set(drivername="postgresql+asyncpg")
