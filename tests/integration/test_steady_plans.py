"""What a service reads of a large block does not depend on statistics, which a young database does not have."""

from tests.integration.documents import agent, loop, one_block, workflow
from tests.integration.system import System

BRANCHES = 400
GROWING = ["runs", "step_executions", "step_attempts", "loop_items", "outbox"]  # the others are as long as what is open


async def echo(input: dict[str, object]) -> dict[str, object]:
    return input


async def test_no_statement_of_a_service_reads_more_of_a_table_the_larger_it_is(system: System) -> None:
    replica = await system.start_replica()
    await system.start_worker(echo, concurrency=50)
    iterations = {
        "loop": loop("x", execution_mode="parallel", max_parallelism=20, max_iterations=BRANCHES),
        "x": agent("echo"),
    }
    results = [
        await system.run(one_block(BRANCHES)),
        await system.run(one_block(BRANCHES, max_parallelism=20)),
        await system.run(workflow(iterations), list(range(BRANCHES))),
    ]
    assert [result.status for result in results] == ["COMPLETED"] * 3
    await system.end(replica, crash=False)  # its connections tell what they have read when they end

    read = await system.fetch(
        "SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE seq_tup_read > 0 AND relname = ANY($1)", GROWING
    )
    assert read == []
    [row] = await system.fetch(
        "SELECT sum(idx_tup_read) AS read FROM pg_stat_user_indexes WHERE relname = 'step_executions'"
    )
    assert row["read"] < 15 * 3 * BRANCHES
