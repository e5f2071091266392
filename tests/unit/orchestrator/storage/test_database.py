"""Which errors pass: the predicate by which transactions are tried again."""

import asyncio
import socket
import ssl

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from orchestrator.errors import WrongUse
from orchestrator.storage.database import Database, is_lost_connection, is_transient


def invalidated() -> DBAPIError:
    error = OperationalError("SELECT 1", None, ConnectionResetError("reset"))
    error.connection_invalidated = True
    return error


def unique(constraint: str) -> asyncpg.UniqueViolationError:
    error = asyncpg.UniqueViolationError("duplicate key value violates unique constraint")
    error.constraint_name = constraint
    return error


GONE = [
    ConnectionRefusedError(111, "refused"),
    ConnectionResetError(104, "reset"),
    BrokenPipeError(32, "broken pipe"),
    socket.gaierror(-2, "no such host"),
    TimeoutError(),
    asyncio.TimeoutError(),  # noqa: UP041 - what asyncpg raises at its command_timeout
    ssl.SSLError("eof"),
    invalidated(),
    asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),  # 08003
    asyncpg.ConnectionFailureError("failed"),  # 08006
    asyncpg.CannotConnectNowError("the database system is starting up"),  # 57P03
    asyncpg.AdminShutdownError("terminating connection due to administrator command"),  # 57P01
    asyncpg.CrashShutdownError("terminating connection because of crash"),  # 57P02
    asyncpg.IdleInTransactionSessionTimeoutError("terminating connection due to idle-in-transaction timeout"),  # 25P03
    asyncpg.TooManyConnectionsError("sorry, too many clients already"),  # 53300
    asyncpg.DiskFullError("no space left on device"),  # 53100
    asyncpg.InterfaceError("cannot perform operation: connection is closed"),
    asyncpg.InterfaceError("cannot call Transaction.__aexit__(): the underlying connection is closed"),
    OperationalError("SELECT 1", None, asyncpg.AdminShutdownError("bye")),
    # After a backend was terminated while its connection was idle, asyncpg meets the news in the next statement.
    asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"),
]
UNLUCKY = [
    asyncpg.DeadlockDetectedError("deadlock detected"),
    asyncpg.SerializationError("could not serialize access"),
    asyncpg.LockNotAvailableError("canceling statement due to lock timeout"),
    unique("runs_pkey"),
    OperationalError("SELECT 1", None, asyncpg.DeadlockDetectedError("deadlock detected")),
]
PERMANENT = [
    ValueError("a bug"),
    KeyError("x"),
    AssertionError(),
    RecursionError(),
    unique("uq_step_executions_task_id"),
    asyncpg.InvalidTextRepresentationError("invalid input syntax for type json"),  # 22P02
    asyncpg.CharacterNotInRepertoireError("invalid byte sequence for encoding UTF8: 0x00"),  # 22021
    asyncpg.UntranslatableCharacterError("unsupported Unicode escape sequence"),  # 22P05
    asyncpg.NumericValueOutOfRangeError("integer out of range"),  # 22003
    asyncpg.ProgramLimitExceededError("row is too big"),  # 54000
    asyncpg.StatementTooComplexError("stack depth limit exceeded"),  # 54001
    asyncpg.UndefinedTableError('relation "runs" does not exist'),
    asyncpg.CheckViolationError("violates check constraint"),
    asyncpg.ForeignKeyViolationError("violates foreign key constraint"),
    asyncpg.InsufficientPrivilegeError("permission denied"),
    asyncpg.InvalidPasswordError("password authentication failed"),
    asyncpg.InvalidCatalogNameError("database does not exist"),
    asyncpg.InterfaceError("cannot perform operation: another operation is in progress"),
    ProgrammingError("SELECT", None, asyncpg.UndefinedTableError("no")),
]


def name(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:80]


@pytest.mark.parametrize("error", GONE, ids=name)
def test_what_says_that_the_server_is_out_of_reach_passes(error: BaseException) -> None:
    assert is_lost_connection(error)
    assert is_transient(error)


@pytest.mark.parametrize("error", UNLUCKY, ids=name)
def test_what_says_that_a_transaction_was_unlucky_passes_though_the_server_is_there(error: BaseException) -> None:
    assert is_transient(error)
    assert not is_lost_connection(error)


@pytest.mark.parametrize("error", PERMANENT, ids=name)
def test_what_would_happen_again_does_not_pass(error: BaseException) -> None:
    assert not is_transient(error)


def test_a_cancellation_is_no_error_that_passes() -> None:
    assert not is_transient(asyncio.CancelledError())


@pytest.mark.parametrize("url", ["", "localhost", "mysql://u:hush@h/d", "postgres//hush", "http://u:hush@h"])
def test_a_url_that_is_not_of_postgres_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(WrongUse, match="postgresql://") as refused:
        Database(url)
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("url", ["postgresql://u:p@h/d", "postgresql+asyncpg://h/d", "postgresql:///d?host=/run"])
def test_making_a_database_connects_nowhere(url: str) -> None:
    assert Database(url)
