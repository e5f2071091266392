"""Gate leases: which replica holds which gate, until when."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from sqlalchemy import text

from orchestrator.storage.database import Database
from orchestrator.storage.unit_of_work import GATE_LEASE_SECONDS
from schemas.statuses import StepStatus

# Ours are renewed, lapsed ones taken over. A row that another replica is looking at just now is left to it.
_LEASE: Final = text("""
    WITH mine AS (
        SELECT run_id, block_id FROM gates WHERE holder = :holder OR lease_until < now()
        ORDER BY lease_until FOR UPDATE SKIP LOCKED
    )
    UPDATE gates AS g SET holder = :holder, lease_until = now() + make_interval(secs => :lease)
    FROM mine, step_executions AS s
    WHERE g.run_id = mine.run_id AND g.block_id = mine.block_id AND s.run_id = g.run_id AND s.step_id = g.block_id
    RETURNING g.run_id, g.block_id, g.max_parallelism, s.status
""")
_RELEASE: Final = text("UPDATE gates SET lease_until = now() - interval '1 second' WHERE holder = :holder")
_DELETE: Final = text("DELETE FROM gates WHERE run_id = :run_id AND block_id = :block_id AND holder = :holder")
_OVER: Final = text("""
    SELECT step_id FROM step_executions
    WHERE run_id = :run_id AND step_id = ANY(CAST(:steps AS text[]))
        AND status IN ('COMPLETED', 'FAILED', 'CANCELLED', 'SKIPPED')
""")


@dataclass(frozen=True, slots=True)
class Lease:
    """A gate that this replica holds."""

    run_id: UUID
    block_id: str
    max_parallelism: int
    block_status: StepStatus

    @property
    def key(self) -> tuple[UUID, str]:
        """Which gate it is: its run and its block."""
        return self.run_id, self.block_id


async def take_leases(database: Database, replica_id: str) -> Sequence[Lease]:
    """Renew what this replica holds, take over what has lapsed, and return all that it holds now."""
    async with database.transaction() as connection:
        rows = await connection.execute(_LEASE, {"holder": replica_id, "lease": GATE_LEASE_SECONDS})
        return [Lease(row.run_id, row.block_id, row.max_parallelism, StepStatus(row.status)) for row in rows]


async def release_leases(database: Database, replica_id: str) -> None:
    """Let the leases of this replica lapse at once, so that others need not wait."""
    async with database.transaction() as connection:
        await connection.execute(_RELEASE, {"holder": replica_id})


async def delete_gate(database: Database, replica_id: str, run_id: UUID, block_id: str) -> None:
    """Forget a gate whose queue is gone, if this replica still holds it."""
    async with database.transaction() as connection:
        await connection.execute(_DELETE, {"run_id": run_id, "block_id": block_id, "holder": replica_id})


async def branches_over(database: Database, run_id: UUID, step_ids: Sequence[str]) -> frozenset[str]:
    """Return those of *step_ids* that are final."""
    async with database.transaction() as connection:
        rows = await connection.execute(_OVER, {"run_id": run_id, "steps": list(step_ids)})
        return frozenset(row.step_id for row in rows)
