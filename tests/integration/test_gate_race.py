"""A block that ends between the moment its lease is read and the moment its gate is looked after."""

import asyncio
from collections.abc import Sequence
from typing import Any

from orchestrator.storage.gates import Lease
from tests.conftest import Eventually
from tests.integration.documents import one_block
from tests.integration.system import System


async def test_a_gate_whose_block_ends_while_it_is_taken_over_leaves_no_queue(
    system: System, eventually: Eventually
) -> None:
    go_on = asyncio.Event()

    async def held(input: Any) -> Any:
        await go_on.wait()
        return input

    first = await system.start_replica()
    await system.start_worker(held)
    run_id = await system.submit(one_block(3, agent_name="held", max_parallelism=2))
    await system.step_is(run_id, "b1", "RUNNING")
    await system.end(first, crash=False)
    successor = await system.start_replica()
    keeper: Any = successor.replica.gatekeeper
    take_leases = keeper._storage.take_leases

    async def slowly(replica_id: str) -> Sequence[Lease]:
        leases: Sequence[Lease] = await take_leases(replica_id)
        go_on.set()
        assert await system.ended(run_id) == "COMPLETED"

        async def gone() -> bool:
            return await system.count("gates") == 0

        await eventually(gone)
        keeper._storage.take_leases = take_leases
        return leases

    keeper._storage.take_leases = slowly
    # As the round of the successor does that takes the gate over: it knows nothing of it yet.
    await keeper._let_go((run_id, "block"))
    await keeper.run_once()
    await system.end(successor, crash=False)
    assert not await system.gate_exists(run_id, "block")
