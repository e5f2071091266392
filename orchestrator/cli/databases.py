"""Which database a command looks at: the one that the settings name, else the one that `forkjoin run` keeps."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from orchestrator.errors import WrongUse
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.storage.database import Database


@asynccontextmanager
async def named_database(settings: Settings) -> "AsyncIterator[Database]":
    """Yield the database at FORKJOIN_DATABASE_URL.

    Raises:
        WrongUse: The settings name none.
        SchemaMismatch: It is not migrated to this version.
    """
    from orchestrator.bootstrap import make_database
    from orchestrator.storage.schema import check_schema

    database = make_database(settings)
    try:
        await check_schema(database.engine)
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def any_database(settings: Settings) -> "AsyncIterator[Database]":
    """Yield the database that the settings name, else the embedded one in the data directory.

    Raises:
        WrongUse: There is neither.
        SchemaMismatch: It is not migrated to this version.
    """
    from orchestrator.storage.embedded import embedded_postgres

    if settings.database_url is not None:
        async with named_database(settings) as database:
            yield database
        return
    if not (settings.data_dir / "postgres").is_dir():
        raise WrongUse(
            "there are no runs: FORKJOIN_DATABASE_URL is not set, "
            f"and `forkjoin run` has kept none in {settings.data_dir}"
        )
    with embedded_postgres(settings.data_dir) as url:
        from orchestrator.storage.database import Database
        from orchestrator.storage.schema import check_schema

        database = Database(url)
        try:
            await check_schema(database.engine)
            yield database
        finally:
            await database.close()
