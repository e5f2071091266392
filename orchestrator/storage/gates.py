"""Gate leases: which replica holds which gate, until when."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from messaging import topology
from orchestrator.storage.database import Database
from orchestrator.storage.writes import GATE_LEASE_SECONDS
from schemas.statuses import StepStatus

# Ours are renewed, lapsed ones taken over. A row that another replica is looking at just now is left to it.
_LEASE: Final = """
    WITH mine AS (
        SELECT run_id, block_id FROM gates WHERE holder = $1 OR lease_until < now()
        ORDER BY lease_until FOR UPDATE SKIP LOCKED
    )
    UPDATE gates AS g SET holder = $1, lease_until = now() + make_interval(secs => $2)
    FROM mine, step_executions AS s
    WHERE g.run_id = mine.run_id AND g.block_id = mine.block_id AND s.run_id = g.run_id AND s.step_id = g.block_id
    RETURNING g.run_id, g.block_id, g.max_parallelism, s.status,
        s.branches_dispatched < g.max_parallelism AND s.branches_passed < s.branches_total AS has_free_slots
"""
_RELEASE: Final = "UPDATE gates SET lease_until = now() - interval '1 second' WHERE holder = $1"
# Tickets that are still to be sent go with their gate: no queue would ever take them.
_DELETE: Final = """
    WITH gone AS (
        DELETE FROM gates WHERE run_id = $1 AND block_id = $2 AND holder = $3 RETURNING run_id
    )
    DELETE FROM outbox USING gone WHERE outbox.run_id = gone.run_id AND exchange = $4 AND routing_key = $5
"""
_BLOCK_OVER: Final = """
    SELECT status IN ('COMPLETED', 'FAILED', 'CANCELLED', 'SKIPPED') FROM step_executions
    WHERE run_id = $1 AND step_id = $2
"""
_OVER: Final = """
    SELECT step_id FROM step_executions AS s
    WHERE run_id = $1 AND step_id = ANY($2::text[])
        AND status IN ('COMPLETED', 'FAILED', 'CANCELLED', 'SKIPPED')
        AND NOT EXISTS (
            SELECT FROM step_executions AS other
            WHERE other.run_id = s.run_id AND other.parent_step_id = s.parent_step_id AND other.position = s.position
                AND other.status IN ('PENDING', 'QUEUED', 'RUNNING')
        )
"""


@dataclass(frozen=True, slots=True)
class Lease:
    """A gate that this replica holds."""

    run_id: UUID
    block_id: str
    max_parallelism: int
    block_status: StepStatus
    has_free_slots: bool

    @property
    def key(self) -> tuple[UUID, str]:
        """Which gate it is: its run and its block."""
        return self.run_id, self.block_id


async def take_leases(database: Database, replica_id: str) -> Sequence[Lease]:
    """Renew what this replica holds, take over what has lapsed, and return all that it holds now."""
    async with database.connection() as connection:
        rows = await connection.fetch(_LEASE, replica_id, GATE_LEASE_SECONDS)
    return [
        Lease(row["run_id"], row["block_id"], row["max_parallelism"], StepStatus(row["status"]), row["has_free_slots"])
        for row in rows
    ]


async def release_leases(database: Database, replica_id: str) -> None:
    """Let the leases of this replica lapse at once, so that others need not wait."""
    async with database.connection() as connection:
        await connection.execute(_RELEASE, replica_id)


async def delete_gate(database: Database, replica_id: str, run_id: UUID, block_id: str) -> None:
    """Forget a gate whose queue is gone, with its unsent tickets, if this replica still holds it."""
    key = topology.gate_key(run_id, block_id)
    async with database.connection() as connection:
        await connection.execute(_DELETE, run_id, block_id, replica_id, topology.GATES_EXCHANGE, key)


async def block_over(database: Database, run_id: UUID, block_id: str) -> bool:
    """Return whether a block is final; its branch of another block may go on behind it."""
    async with database.connection() as connection:
        return bool(await connection.fetchval(_BLOCK_OVER, run_id, block_id))


async def branches_over(database: Database, run_id: UUID, step_ids: Sequence[str]) -> frozenset[str]:
    """Return those of *step_ids* whose branches are over: it is final, and so are those that followed it."""
    async with database.connection() as connection:
        return frozenset(row["step_id"] for row in await connection.fetch(_OVER, run_id, step_ids))
