"""Results that arrive faster than they are applied: they wait with the broker, not with us."""

import asyncio

from messaging import topology
from orchestrator.service.batch import Committed
from orchestrator.service.intake import PREFETCH
from tests.conftest import Eventually
from tests.integration.documents import one_block
from tests.integration.system import System, completed

BRANCHES = 3 * PREFETCH


async def test_of_a_flood_of_results_a_replica_holds_no_more_than_its_window(
    system: System, eventually: Eventually
) -> None:
    running = await system.start_replica()
    await system.broker.declare([], [topology.agent_queue("by-hand")])
    run_id = await system.submit(one_block(BRANCHES, agent_name="by-hand"))

    async def queued() -> bool:
        return (await system.broker.check_queue("agent.by-hand")).ready == BRANCHES

    await eventually(queued)
    tasks = await system.task_ids(run_id)
    turn = asyncio.Event()

    async def stuck(_: Committed) -> None:
        await turn.wait()

    running.replica.driver.follow(stuck)
    await system.report(*(completed(run_id, task, name) for name, task in tasks.items()))

    async def window_is_full() -> bool:
        return (await system.broker.check_queue(topology.RESULTS_QUEUE.name)).ready == BRANCHES - PREFETCH

    await eventually(window_is_full)
    turn.set()
    assert await system.ended(run_id) == "COMPLETED"
    assert len((await system.run_row(run_id))["output"]) == BRANCHES
    await system.quiet()
