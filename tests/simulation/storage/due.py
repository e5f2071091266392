"""Whether anything is due."""

from orchestrator.storage.due import Due
from tests.simulation.storage.agents import agents_with_room
from tests.simulation.storage.transaction import Transaction


async def what_is_due(transaction: Transaction, replica_id: str) -> frozenset[Due]:
    """Return what a replica should look after."""
    tables, now = transaction.tables, transaction.now
    found = {
        Due.MESSAGES: any(entry.due_at <= now for entry in transaction.messages()),
        Due.TIMES: any(at <= now for times in (tables.due, tables.due_runs) for at in times.values()),
        Due.GATES: any(gate.holder == replica_id or gate.lease_until < now for gate in tables.gates.values()),
        Due.AGENTS: bool(await agents_with_room(transaction)),
    }
    return frozenset(kind for kind, is_due in found.items() if is_due)
