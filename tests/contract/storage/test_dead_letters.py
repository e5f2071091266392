"""Dead letters are stored once, and a replay that the broker does not take is a dead letter again."""

import json
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any
from uuid import UUID

from messaging import topology
from orchestrator.storage.changes import OutboxRow
from orchestrator.storage.dead_letters import NewDeadLetter, Undeliverable
from orchestrator.storage.port import Storage
from tests.contract.storage.backends import Backend
from tests.contract.storage.rows import TIME, add_run, message

RUN = UUID(int=1)
HEADERS = {"x": [1, {"y": None}]}
LETTER = NewDeadLetter(
    key="key",
    dead_lettered_at=TIME,
    queue="work",
    exchange="exchange",
    routing_key="routing",
    code="no_luck",
    message="it was not to be",
    type="AgentTask",
    message_id="m",
    correlation_id="c",
    reply_to="r",
    headers=json.dumps(HEADERS),
    body=b"\0body",
    run_id=RUN,
    step_id="one",
    is_new=False,
)


def told(letter: NewDeadLetter) -> dict[str, Any]:
    fields = {name: value for name, value in asdict(letter).items() if name not in {"key", "is_new"}}
    return fields | {"headers": json.loads(letter.headers)}


async def replayed(backend: Backend, storage: Storage, letter: NewDeadLetter = LETTER) -> OutboxRow:
    """Return the message of a dead letter that is replayed."""
    await storage.store_dead_letters([letter])
    await backend.replay()
    async with storage.outbox() as outbox:
        [row] = await outbox.lock_due(10)
    return row


async def put_back(storage: Storage, *rows: OutboxRow) -> None:
    async with storage.outbox() as outbox:
        await outbox.put_back([Undeliverable(row.message_id, "queue_missing", "no queue") for row in rows])


async def test_a_dead_letter_is_kept_with_all_that_it_was(backend: Backend, storage: Storage) -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        ["dead_lettered_at", "queue", "exchange", "routing_key", "type", "message_id", "correlation_id", "reply_to",
         "run_id", "step_id"]
    )  # fmt: skip
    letters = [LETTER, replace(LETTER, key="bare", body=b"", **nothing)]
    await storage.store_dead_letters(letters)
    assert await backend.letters() == [told(letter) for letter in letters]


async def test_a_dead_letter_that_comes_again_stays_as_it_is(
    backend: Backend, storage: Storage, other: Storage
) -> None:
    again = replace(LETTER, code="other")
    await storage.store_dead_letters([LETTER, again])
    await other.store_dead_letters([again, replace(LETTER, key="second")])
    assert [letter["code"] for letter in await backend.letters()] == ["no_luck", "no_luck"]


async def test_a_key_that_is_taken_does_not_hide_what_is_certainly_new(backend: Backend, storage: Storage) -> None:
    first = replace(LETTER, is_new=True)
    await storage.store_dead_letters([first])
    await storage.store_dead_letters([replace(first, code="second")])
    await storage.store_dead_letters([replace(LETTER, code="third")])
    assert [letter["code"] for letter in await backend.letters()] == ["no_luck", "second"]


async def test_a_replay_is_a_message_to_the_queue_that_it_came_from(backend: Backend, storage: Storage) -> None:
    row = await replayed(backend, storage)
    assert await backend.letters() == []
    assert (row.exchange, row.routing_key) == (topology.DEFAULT_EXCHANGE, "work")
    assert (row.type, row.correlation_id, row.body) == ("AgentTask", "c", b"\0body")
    assert (row.run_id, row.step_id, row.task_id) == (RUN, None, None)
    assert row.replay is not None
    assert json.loads(row.replay) == {
        "message_id": "m",
        "reply_to": "r",
        "headers": HEADERS,
        "exchange": "exchange",
        "routing_key": "routing",
        "step_id": "one",
    }


async def test_what_nobody_knows_the_queue_of_is_not_replayed(backend: Backend, storage: Storage) -> None:
    await storage.store_dead_letters([replace(LETTER, queue=None)])
    await backend.replay()
    assert len(await backend.letters()) == 1


async def test_a_replay_that_the_broker_does_not_take_is_put_back(backend: Backend, storage: Storage) -> None:
    row = await replayed(backend, storage, replace(LETTER, type=None))
    await put_back(storage, row)
    [letter] = await backend.letters()
    assert letter["dead_lettered_at"] != TIME
    expected = told(replace(LETTER, type=None, code="queue_missing", message="no queue"))
    assert {**letter, "dead_lettered_at": TIME} == expected
    async with storage.outbox() as outbox:
        assert await outbox.lock_due(10) == []


async def test_a_replay_is_put_back_once(backend: Backend, storage: Storage) -> None:
    row = await replayed(backend, storage)
    await put_back(storage, row)
    await put_back(storage, row)
    assert len(await backend.letters()) == 1


async def test_only_replays_are_put_back(backend: Backend, storage: Storage) -> None:
    row = message(RUN)
    await add_run(storage, run_id=RUN, outbox=[(row, 0.0)])
    await put_back(storage, row)
    assert await backend.letters() == []
    async with storage.outbox() as outbox:
        assert await outbox.lock_due(10) == [row]


async def test_putting_back_is_undone_with_its_transaction(backend: Backend, storage: Storage) -> None:
    row = await replayed(backend, storage)
    with suppress(ZeroDivisionError):
        async with storage.outbox() as outbox:
            await outbox.put_back([Undeliverable(row.message_id, "queue_missing", "no queue")])
            raise ZeroDivisionError
    assert await backend.letters() == []
    async with storage.outbox() as outbox:
        assert await outbox.lock_due(10) == [row]
