"""Dead letters: kept once with all that they were, and replayed with the effect that they should have had, once."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

import pika
import pytest
from structlog.testing import capture_logs

from messaging import topology
from messaging.port import (
    Consumer,
    DeadLetterReason,
    Delivery,
    Exchange,
    ExchangeKind,
    OutgoingMessage,
    PublishOutcome,
    Queue,
    QueueKind,
)
from orchestrator.service.batch import Batch
from orchestrator.service.dead_letters import DeadLetterIntake
from orchestrator.service.lost_tasks import LostTasks
from orchestrator.storage.dead_letters import (
    Selection,
    drop,
    get_dead_letter,
    list_dead_letters,
    measure,
    page,
    replay,
)
from orchestrator.storage.headers import headers_from_json
from orchestrator.storage.postgres import PostgresStorage
from schemas.codec import decode, encode
from schemas.messages import RunRequest, RunResult
from schemas.statuses import ResultStatus
from tests.conftest import Eventually
from tests.integration.by_hand import driver_without_relay
from tests.integration.documents import agent, block, workflow
from tests.integration.system import SECONDS, System
from tests.services.rabbitmq import RabbitMQ

RUNS = topology.RUNS_QUEUE.name
DEAD = topology.DEAD_LETTERS_QUEUE.name
HELLO = workflow({"one": agent("echo", input_mapping={"said": "${workflow.input}"})})
MINE = Queue("mine", QueueKind.QUORUM)
REASON = DeadLetterReason("no_luck", "it was not to be")
HEADERS = {
    "text": "größe", "nul": "a\0b", "flag": True, "number": 7, "share": 0.5, "bytes": bytearray(b"\xff\0"),
    "nothing": None, "time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "price": Decimal("1.25"),
    "table": {"$text": "a", "list": [1, "b"]},
}  # fmt: skip


async def echo(input: Any) -> Any:
    return input


@asynccontextmanager
async def consuming(system: System, queue: Queue) -> AsyncIterator[Consumer]:
    consumer = await system.broker.consume(queue, prefetch=0)
    yield consumer
    await consumer.close()


async def received(consumer: Consumer, count: int = 1) -> list[Delivery]:
    found: list[Delivery] = []
    async with asyncio.timeout(SECONDS):
        while len(found) < count:
            found += await consumer.receive(100)
    assert len(found) == count
    return found


async def dead_lettered(system: System, queue: Queue, **fields: Any) -> None:
    """Let somebody dead-letter a message of *queue*."""
    async with consuming(system, queue) as consumer:
        await system.publish(queue.name, fields.pop("body", b"body"), **fields)
        [delivery] = await received(consumer)
        await consumer.dead_letter(delivery, REASON)


def lost_tasks(system: System) -> LostTasks:
    return LostTasks(driver_without_relay(system.database))


@asynccontextmanager
async def intake(system: System, **options: Any) -> AsyncIterator[DeadLetterIntake]:
    """The loop alone, without the rest of a replica."""
    await system.broker.declare(topology.EXCHANGES, topology.QUEUES)
    taking = DeadLetterIntake(PostgresStorage(system.database), system.broker, lost_tasks(system), **options)
    await taking.start()
    running = asyncio.create_task(taking.run())
    yield taking
    await taking.close()
    await running


# Replays


async def test_a_request_that_met_a_bug_has_its_effect_once_when_it_is_replayed(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    await system.start_replica()
    await system.start_worker(echo)
    decided = Batch.run

    async def buggy(self: Batch, inputs: Any) -> Any:
        raise ArithmeticError("a bug")

    monkeypatch.setattr(Batch, "run", buggy)
    run_id = uuid4()
    async with consuming(system, topology.reply_queue("test")) as replies:
        request = encode(RunRequest(run_id=run_id, workflow=HELLO, input="hi"))
        address = {"reply_to": topology.reply_queue("test").name, "correlation_id": "mine"}
        await system.publish(RUNS, request, type="RunRequest", message_id="request-1", **address)
        [letter] = await system.stored_dead_letters(1)
        assert (letter["code"], letter["message"]) == ("internal_error", "ArithmeticError: a bug")
        assert (letter["queue"], letter["type"], letter["message_id"]) == (RUNS, "RunRequest", "request-1")
        assert (letter["run_id"], letter["body"]) == (run_id, request)
        assert await system.status(run_id) is None
        [refusal] = await received(replies)  # whoever waits must not wait for ever
        await replies.ack([refusal])
        refused = decode(RunResult, refusal.body)
        assert (refused.status, refusal.correlation_id) == (ResultStatus.REJECTED, "mine")

        monkeypatch.setattr(Batch, "run", decided)
        assert await replay(system.database, [letter["id"]]) == {letter["id"]}
        [reply] = await received(replies)
        await replies.ack([reply])
    result = decode(RunResult, reply.body)
    assert (result.status, result.output, reply.correlation_id) == (ResultStatus.COMPLETED, {"said": "hi"}, "mine")
    await system.quiet()
    assert await system.count("runs") == 1


async def test_a_task_that_a_worker_refused_is_done_once_when_it_is_replayed(system: System) -> None:
    calls: list[Any] = []

    async def note(input: Any) -> str:
        calls.append(input)
        return "noted"

    await system.start_replica()
    async with consuming(system, topology.agent_queue("note")) as old_worker:
        run_id = await system.submit(workflow({"one": agent("note")}))
        [task] = await received(old_worker)
        await old_worker.dead_letter(task, DeadLetterReason("unsupported_version", "this worker is too old for it"))
    [letter] = await system.stored_dead_letters(1)
    assert (letter["run_id"], letter["step_id"], letter["code"]) == (run_id, "one", "unsupported_version")
    assert letter["message_id"] == task.message_id
    await system.start_worker(note)
    assert await system.status(run_id) == "RUNNING"

    await replay(system.database, [letter["id"]])
    assert await system.ended(run_id) == "COMPLETED"
    assert len(calls) == 1
    await system.quiet()


async def test_of_two_operators_who_replay_at_once_one_does_it_and_the_other_is_told(system: System) -> None:
    async with intake(system):
        for number in range(5):
            await dead_lettered(system, MINE, body=str(number).encode())
        ids = [letter["id"] for letter in await system.stored_dead_letters(5)]
    taken = await asyncio.gather(replay(system.database, ids), replay(system.database, ids[::-1]))
    assert sorted(map(len, taken)) == [0, 5]
    assert await system.count("outbox") == 5
    assert await system.count("dead_letters") == 0
    assert await drop(system.database, ids) == frozenset()


async def test_a_replayed_message_is_what_it_was(system: System) -> None:
    fields = {
        "type": "Anything", "message_id": "id-7", "correlation_id": "c", "reply_to": "r", "headers": HEADERS,
        "body": b"\xff\0{",
    }  # fmt: skip
    await system.start_replica()
    await dead_lettered(system, MINE, **fields)
    [letter] = await system.stored_dead_letters(1)
    stored = await get_dead_letter(system.database, letter["id"])
    assert headers_from_json(stored.headers) == HEADERS
    await replay(system.database, [letter["id"]])
    async with consuming(system, MINE) as consumer:
        [again] = await received(consumer)
        await consumer.ack([again])
    assert {name: getattr(again, name) for name in fields} == fields
    await system.quiet()


async def test_a_message_without_an_id_gets_one_when_it_is_replayed(system: System) -> None:
    await system.start_replica()
    await dead_lettered(system, MINE, message_id="")
    [letter] = await system.stored_dead_letters(1)
    assert letter["message_id"] is None
    await replay(system.database, [letter["id"]])
    async with consuming(system, MINE) as consumer:
        [again] = await received(consumer)
    assert again.message_id, "the relay may send it twice, and whoever gets it must be able to tell"


async def test_a_message_that_fails_again_is_one_dead_letter_again(system: System) -> None:
    await system.start_replica()
    await system.publish(RUNS, b"{", message_id="bad")
    [first] = await system.stored_dead_letters(1)
    for _ in range(2):
        [letter] = await system.stored_dead_letters(1)
        await replay(system.database, [letter["id"]])
        await system.quiet(dead_letters=1)
    [last] = await system.stored_dead_letters(1)
    assert last["id"] > first["id"]
    assert {name: last[name] for name in ("message_id", "body", "queue", "code")} == {
        "message_id": "bad", "body": b"{", "queue": RUNS, "code": "malformed_message",
    }  # fmt: skip


async def test_replaying_all_leaves_those_alone_that_come_meanwhile(system: System) -> None:
    async with intake(system):
        for number in range(3):
            await dead_lettered(system, MINE, body=str(number).encode())
        await system.stored_dead_letters(3)
        extent = await measure(system.database, Selection(queue="mine", code="no_luck"))
        await dead_lettered(system, MINE, body=b"later")
        ids = [letter["id"] for letter in await system.stored_dead_letters(4)]
    assert (extent.number, extent.addressed) == (3, 3)
    assert list(await page(system.database, Selection(), extent, 0)) == ids[:3]
    assert list(await page(system.database, Selection(), extent, ids[1])) == ids[2:3]
    await system.fetch("UPDATE dead_letters SET received_at = now() - interval '2 hours' WHERE id = $1", ids[0])
    old = Selection(older_than=timedelta(hours=1))
    assert list(await page(system.database, old, await measure(system.database, old), 0)) == ids[:1]
    for other in (Selection(queue="other"), Selection(code="other")):
        assert (await measure(system.database, other)).number == 0
        assert await page(system.database, other, extent, 0) == []
        assert await list_dead_letters(system.database, other, 10) == []
    newest = await list_dead_letters(system.database, Selection(queue="mine"), 2)
    assert [letter.id for letter in newest] == [ids[3], ids[2]]


async def test_a_replay_to_a_queue_that_is_gone_is_a_dead_letter_again_that_says_so(system: System) -> None:
    await system.start_replica()
    await dead_lettered(system, MINE, type="T", message_id="m", reply_to="r", correlation_id="c", headers=HEADERS)
    [before] = await system.stored_dead_letters(1)
    await system.broker.delete_queue(MINE.name)
    with capture_logs() as lines:
        await replay(system.database, [before["id"]])
        await system.quiet(dead_letters=1)
    [after] = await system.stored_dead_letters(1)
    assert after["id"] > before["id"]
    assert after["code"] == "queue_missing"
    assert 'no queue "mine"' in after["message"]
    changed = {"id", "key", "received_at", "dead_lettered_at", "code", "message"}
    assert {name: value for name, value in after.items() if name not in changed} == {
        name: value for name, value in before.items() if name not in changed
    }
    assert len([line for line in lines if line.get("action") == "replay_unroutable"]) == 1

    await system.broker.declare([], [MINE])
    await replay(system.database, [after["id"]])
    async with consuming(system, MINE) as consumer:
        [again] = await received(consumer)
    assert (again.message_id, again.reply_to, again.headers["nul"]) == ("m", "r", "a\0b")


async def test_a_replay_that_the_broker_did_not_confirm_is_sent_again(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await system.start_replica()
    await dead_lettered(system, MINE, message_id="m")
    [letter] = await system.stored_dead_letters(1)
    publish = running.replica.relay._publish
    outcomes = iter([PublishOutcome.UNKNOWN])

    async def doubtful(rows: Any, **options: Any) -> Any:
        sent = await publish(rows, **options)
        return [next(outcomes, outcome) for outcome in sent]

    monkeypatch.setattr(running.replica.relay, "_publish", doubtful)
    await replay(system.database, [letter["id"]])
    async with consuming(system, MINE) as consumer:
        both = await received(consumer, 2)
        await consumer.ack(both)
    assert [delivery.message_id for delivery in both] == ["m", "m"]
    await system.quiet()


# Storing


async def test_what_is_delivered_again_is_stored_once(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    await system.broker.declare(topology.EXCHANGES, topology.QUEUES)
    await dead_lettered(system, MINE)
    await system.publish(DEAD, b"from anybody", message_id="")
    for acked in (False, True):
        taking = DeadLetterIntake(PostgresStorage(system.database), system.broker, lost_tasks(system))
        await taking.start()
        if not acked:  # as a process that dies between its commit and its ack
            assert taking._consumer is not None
            monkeypatch.setattr(taking._consumer, "ack", lose)
        while await system.count("dead_letters") < 2:
            await taking.run_once()
        if acked:
            while (await system.broker.check_queue(DEAD)).ready:
                await taking.run_once()
        await taking.close()
    assert sorted(letter["body"] for letter in await system.stored_dead_letters(2)) == [b"body", b"from anybody"]


async def lose(deliveries: Any) -> None:
    """Do nothing with an ack."""


async def test_messages_without_an_id_that_are_alike_are_all_stored(system: System) -> None:
    async with intake(system):
        for _ in range(2):  # within a batch, and one batch after another
            message = OutgoingMessage("", DEAD, "", "", b"like the others")
            await system.broker.publish([message, message])
        letters = await system.stored_dead_letters(4)
    assert len({letter["key"] for letter in letters}) == 4
    assert {(letter["queue"], letter["code"]) for letter in letters} == {(None, "unknown_reason")}
    assert await replay(system.database, [letter["id"] for letter in letters]) == frozenset()
    assert await system.count("dead_letters") == 4, "nobody knows where they should go"


async def test_dead_letters_wait_with_us_for_a_postgres_that_is_away_for_a_short_time(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = fail_storing(monkeypatch, [ConnectionError("away")] * 4)
    async with intake(system) as taking:
        consumer = taking._consumer
        await dead_lettered(system, MINE)
        await system.stored_dead_letters(1)
        assert taking._consumer is consumer, "nothing was given back"
    assert len(tried) == 5
    assert (await system.broker.check_queue(DEAD)).ready == 0


async def test_dead_letters_wait_with_the_broker_for_a_postgres_that_stays_away(
    system: System, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    tried = fail_storing(monkeypatch, [ConnectionError("away")])
    probed: list[int] = []

    async def ready() -> int:
        return (await system.broker.check_queue(DEAD)).ready

    async def probe(_: PostgresStorage) -> None:
        probed.append(await eventually(ready))
        if len(probed) < 3:
            raise ConnectionError("still away")

    monkeypatch.setattr(PostgresStorage, "check", probe)
    async with intake(system, hold_seconds=0) as taking:
        consumer = taking._consumer
        await dead_lettered(system, MINE)
        await system.stored_dead_letters(1)
        assert taking._consumer is not consumer
    assert probed == [1, 1, 1], "nothing is taken before Postgres answers"
    assert len(tried) == 2
    assert (await system.broker.check_queue(DEAD)).ready == 0


async def test_a_commit_whose_confirmation_was_lost_stores_a_dead_letter_once(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_storing(monkeypatch, [ConnectionError("cut")], after=True)
    async with intake(system):
        await dead_lettered(system, MINE)
        await dead_lettered(system, MINE)
        await system.stored_dead_letters(2)
        await system.quiet(dead_letters=2)


async def test_one_that_the_database_refuses_is_stored_without_its_properties_and_its_neighbours_with_theirs(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    await system.broker.declare(topology.EXCHANGES, topology.QUEUES)
    for name in ("good", "bad", "fine"):
        await dead_lettered(system, MINE, headers={"name": name}, body=name.encode(), correlation_id=name)
    refuse_storing(monkeypatch, lambda letter: "bad" in letter.headers)
    async with intake(system):
        letters = {letter["body"]: letter for letter in await system.stored_dead_letters(3)}
    assert {body: letter["correlation_id"] for body, letter in letters.items()} == {
        b"good": "good", b"bad": None, b"fine": "fine",
    }  # fmt: skip
    assert json.loads(letters[b"bad"]["headers"]) == {}
    assert {(letter["code"], letter["queue"]) for letter in letters.values()} == {("no_luck", "mine")}


async def test_one_that_cannot_be_stored_at_all_is_held_and_ends_no_replica(
    system: System, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    tried = refuse_storing(monkeypatch, lambda letter: letter.body == b"bad")
    await system.start_replica()
    with capture_logs() as lines:
        await dead_lettered(system, MINE, body=b"bad")
        await eventually(lambda: any(line.get("action") == "dead_letter_held" for line in lines))
        await dead_lettered(system, MINE, body=b"good")
        await system.quiet(dead_letters=1)
    assert len([letter for letter in tried if letter.body == b"bad"]) == 2, "with its properties, and without"
    await system.end(system.replicas[0], crash=False)
    monkeypatch.undo()
    async with intake(system):
        assert [letter["body"] for letter in await system.stored_dead_letters(2)] == [b"good", b"bad"]


def fail_storing(monkeypatch: pytest.MonkeyPatch, errors: list[Exception], *, after: bool = False) -> list[Any]:
    """Let storing fail with *errors*, one after the other, before or after it is done; return what was tried."""
    stored, left, tried = PostgresStorage.store_dead_letters, iter(errors), list[Any]()

    async def failing(storage: PostgresStorage, letters: Any) -> None:
        tried.append(letters)
        error = next(left, None)
        if after or error is None:
            await stored(storage, letters)
        if error is not None:
            raise error

    monkeypatch.setattr(PostgresStorage, "store_dead_letters", failing)
    return tried


def refuse_storing(monkeypatch: pytest.MonkeyPatch, is_refused: Any) -> list[Any]:
    """Let storing fail for good where a letter is refused; return all letters that were tried."""
    stored, tried = PostgresStorage.store_dead_letters, list[Any]()

    async def refusing(storage: PostgresStorage, letters: Any) -> None:
        tried.extend(letters)
        if any(map(is_refused, letters)):
            raise ValueError("the database does not take it")
        await stored(storage, letters)

    monkeypatch.setattr(PostgresStorage, "store_dead_letters", refusing)
    return tried


# What RabbitMQ itself dead-letters


@pytest.mark.parametrize("brokers", ["rabbitmq"], indirect=True)
async def test_what_a_policy_of_the_broker_dead_letters_can_be_replayed_too(
    system: System, rabbitmq: RabbitMQ, amqp_url: str
) -> None:
    await system.start_replica()
    await system.broker.declare([Exchange("mine", ExchangeKind.DIRECT)], [MINE])
    await set_policy(rabbitmq, amqp_url, "mine", {"message-ttl": 1})
    await asyncio.to_thread(publish_with_pika, amqp_url, "mine", b"late", type="T", headers={"kept": b"\xff\0"})
    [letter] = await system.stored_dead_letters(1)
    await set_policy(rabbitmq, amqp_url, "mine", None)
    assert (letter["queue"], letter["routing_key"], letter["code"]) == ("mine", "mine", "broker_expired")
    assert letter["dead_lettered_at"] is not None
    assert "x-death" in letter["headers"]

    await replay(system.database, [letter["id"]])
    async with consuming(system, MINE) as consumer:
        [again] = await received(consumer)
        await consumer.ack([again])
    assert (again.body, again.type, again.headers) == (b"late", "T", {"kept": b"\xff\0"})
    await system.quiet()


@pytest.mark.parametrize("brokers", ["rabbitmq"], indirect=True)
async def test_a_branch_whose_task_the_broker_gives_up_fails_as_worker_lost_and_its_sibling_completes(
    system: System, rabbitmq: RabbitMQ, amqp_url: str
) -> None:
    queue = topology.agent_queue("lost")
    await system.start_replica()
    await system.start_worker(echo)
    await system.broker.declare(topology.EXCHANGES, [queue])
    await set_policy(rabbitmq, amqp_url, queue.name, {"delivery-limit": 2})
    steps = {"block": block(["gone", "done"]), "gone": agent("lost"), "done": agent("echo")}
    run_id = await system.submit(workflow(steps))
    for _ in range(3):  # once, and twice more
        async with consuming(system, queue) as consumer:
            await received(consumer)  # and its worker dies: it goes back unsettled
    assert await system.ended(run_id) == "FAILED"
    rows = await system.steps(run_id)
    assert (rows["gone"]["status"], rows["gone"]["error"]["code"]) == ("FAILED", "worker_lost")
    assert rows["done"]["status"] == "COMPLETED"
    [letter] = await system.stored_dead_letters(1)
    assert (letter["queue"], letter["code"]) == (queue.name, "broker_delivery_limit")


async def set_policy(rabbitmq: RabbitMQ, url: str, queue: str, definition: dict[str, Any] | None) -> None:
    """Have the broker dead-letter what a queue gives up, or no more."""
    if rabbitmq.management is None:
        pytest.skip("needs RabbitMQ's management API")
    path = f"/policies/{quote(unquote(urlsplit(url).path[1:]), safe='')}/tested"
    if definition is None:
        await asyncio.to_thread(rabbitmq.management.call, "DELETE", path)
        return
    policy = {
        "pattern": f"^{re.escape(queue)}$",
        "definition": {"dead-letter-exchange": topology.DEAD_LETTERS_EXCHANGE, **definition},
        "apply-to": "queues",
    }
    await asyncio.to_thread(rabbitmq.management.call, "PUT", path, policy)


def publish_with_pika(url: str, queue: str, body: bytes, **properties: Any) -> None:
    """Publish as another client does, which can write headers that we only read, and gives no message id."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("", queue, body, pika.BasicProperties(**properties))
    finally:
        connection.close()
