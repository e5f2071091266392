"""The dead letters: stored, sent again, and put back when the broker does not take them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID

from messaging import topology
from orchestrator.storage.changes import OutboxRow
from orchestrator.storage.dead_letters import NewDeadLetter, Undeliverable
from tests.simulation.storage.rows import StoredLetter
from tests.simulation.storage.transaction import Transaction
from tests.simulation.storage.writes import insert_message

Number = Callable[[], int]  # draws the id of a new dead letter


async def store(transaction: Transaction, letters: Sequence[NewDeadLetter], number: Number) -> None:
    """Store dead letters; those that are stored already stay as they are."""
    taken = frozenset(transaction.tables.letters)  # an INSERT sees what was there when it began
    for letter in letters:
        identity = number()
        if letter.is_new and letter.key in taken:
            letter = replace(letter, key=f"{letter.key}.{identity}")
        await transaction.insert_letter(StoredLetter(identity, transaction.now, letter))


async def put_back(transaction: Transaction, undeliverable: Sequence[Undeliverable], number: Number) -> None:
    """Make replays dead letters again."""
    replays = {one.message_id: one for one in undeliverable}
    entries = (transaction.message(message_id) for message_id in replays)
    ids = [entry.row.message_id for entry in entries if entry is not None and entry.row.replay is not None]
    for entry in await transaction.delete_messages(ids):
        letter = _from_replay(entry.row, replays[entry.row.message_id], transaction)
        await transaction.insert_letter(StoredLetter(number(), transaction.now, letter))


def replay(transaction: Transaction, ids: Sequence[int], new_id: Callable[[], UUID]) -> frozenset[int]:
    """Put the original messages of dead letters into the outbox; return whose."""
    chosen = [
        stored for stored in transaction.tables.letters.values() if stored.id in ids and stored.letter.queue is not None
    ]
    for stored in sorted(chosen, key=lambda stored: stored.id):
        transaction.changes.letters[stored.letter.key] = None
        insert_message(transaction, _to_replay(stored.letter, new_id()), 0.0)
    return frozenset(stored.id for stored in chosen)


def _to_replay(letter: NewDeadLetter, message_id: UUID) -> OutboxRow:
    assert letter.queue is not None, "nobody knows where it came from"
    properties = {
        "message_id": letter.message_id,
        "reply_to": letter.reply_to,
        "headers": json.loads(letter.headers),
        "exchange": letter.exchange,
        "routing_key": letter.routing_key,
        "step_id": letter.step_id,
    }
    return OutboxRow(
        message_id=message_id,
        run_id=letter.run_id,
        step_id=None,
        task_id=None,
        exchange=topology.DEFAULT_EXCHANGE,
        routing_key=letter.queue,
        type=letter.type or "",
        correlation_id=letter.correlation_id,
        body=letter.body,
        replay=json.dumps(properties),
    )


def _from_replay(row: OutboxRow, why: Undeliverable, transaction: Transaction) -> NewDeadLetter:
    assert row.replay is not None, "only replays are put back"
    properties = json.loads(row.replay)
    return NewDeadLetter(
        key=f"replay.{row.message_id}",
        dead_lettered_at=transaction.now,
        queue=row.routing_key,
        exchange=properties["exchange"],
        routing_key=properties["routing_key"],
        code=why.code,
        message=why.message,
        type=row.type or None,
        message_id=properties["message_id"],
        correlation_id=row.correlation_id,
        reply_to=properties["reply_to"],
        headers=json.dumps(properties["headers"]),
        body=row.body,
        run_id=row.run_id,
        step_id=properties["step_id"],
        is_new=False,
    )
