"""A replica that has just started is as fast as one that has worked for a while."""

from contextlib import AsyncExitStack

from orchestrator.storage.database import Database
from orchestrator.storage.postgres import WARM_CONNECTIONS, PostgresStorage

PREPARED = "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE $1"


async def test_the_first_transactions_find_connections_open_and_their_statements_prepared(database: Database) -> None:
    await PostgresStorage(database).warm_up()

    async with AsyncExitStack() as taken:
        for _ in range(WARM_CONNECTIONS):
            connection = await taken.enter_async_context(database.connection())
            assert await connection.fetchval(PREPARED, "%clock_timestamp() AS now%") == 1
            assert await connection.fetchval(PREPARED, "%UPDATE step_executions%INSERT INTO outbox%") == 1


async def test_a_database_that_is_out_of_reach_is_for_those_to_hear_of_who_need_it() -> None:
    nowhere = Database("postgresql://nobody@127.0.0.1:1/nothing")

    await PostgresStorage(nowhere).warm_up()
