"""Gate leases: which replica holds which gate, until when."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from messaging import topology
from orchestrator.storage.gates import Lease
from orchestrator.storage.writes import GATE_LEASE_SECONDS
from tests.simulation.storage.rows import StepKey
from tests.simulation.storage.transaction import Transaction


async def take_leases(transaction: Transaction, replica_id: str) -> Sequence[Lease]:
    """Renew what this replica holds, take over what has lapsed, and return all that it holds now."""
    now = transaction.now
    mine = [
        (gate.lease_until, key)
        for key, gate in transaction.tables.gates.items()
        if (gate.holder == replica_id or gate.lease_until < now) and transaction.is_free("gate", *key)
    ]
    return [lease for _, key in sorted(mine) if (lease := _take(transaction, key, replica_id)) is not None]


async def release_leases(transaction: Transaction, replica_id: str) -> None:
    """Let the leases of this replica lapse at once."""
    for key in sorted(transaction.tables.gates):
        if transaction.tables.gates[key].holder != replica_id:
            continue
        await transaction.lock("gate", *key)
        gate = transaction.gate(key)
        if gate is not None and gate.holder == replica_id:
            transaction.changes.gates[key] = replace(gate, lease_until=transaction.now - timedelta(seconds=1))


async def delete_gate(transaction: Transaction, replica_id: str, run_id: UUID, block_id: str) -> None:
    """Forget a gate with its unsent tickets, if this replica still holds it."""
    key = (run_id, block_id)
    if transaction.gate(key) is None:
        return
    await transaction.lock("gate", *key)
    gate = transaction.gate(key)
    if gate is None or gate.holder != replica_id:
        return
    transaction.changes.gates[key] = None
    address = (run_id, topology.GATES_EXCHANGE, topology.gate_key(run_id, block_id))
    rows = [entry.row for entry in transaction.messages()]
    await transaction.delete_messages(
        row.message_id for row in rows if (row.run_id, row.exchange, row.routing_key) == address
    )


def _take(transaction: Transaction, key: StepKey, replica_id: str) -> Lease | None:
    gate, block = transaction.gate(key), transaction.step(key)
    if gate is None or block is None or block.record.branches is None:
        return None
    lease_until = transaction.now + timedelta(seconds=GATE_LEASE_SECONDS)
    transaction.changes.gates[key] = replace(gate, holder=replica_id, lease_until=lease_until)
    counters = block.record.branches
    has_free_slots = counters.dispatched < gate.max_parallelism and counters.passed < counters.total
    return Lease(*key, gate.max_parallelism, block.record.status, has_free_slots)
