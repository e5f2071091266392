"""Where a dead letter came from and why, whoever put it there and whatever it holds."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from messaging.dead_letters import dead_letter
from messaging.port import DeadLetterReason, Delivery
from orchestrator.service.origins import LONGEST_MESSAGE, bare, to_dead_letters
from orchestrator.storage.dead_letters import NewDeadLetter

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUN = UUID(int=7)
REASON = DeadLetterReason("no_luck", "not to be")
FAILED = Delivery(
    queue="agent.a", exchange="orchestrator.tasks", routing_key="a", type="AgentTask", message_id="m-1",
    body=json.dumps({"run_id": str(RUN), "step_id": "one"}).encode(), correlation_id="c", reply_to="r",
    headers={"kept": 1}, redelivered=False, tag=(1, 1),
)  # fmt: skip
DEATH = {
    "count": 1, "reason": "delivery_limit", "queue": "agent.a", "time": NOW, "exchange": "orchestrator.tasks",
    "routing-keys": ["a"],
}  # fmt: skip


def by_us(reason: DeadLetterReason = REASON, serial: str = "1", **fields: Any) -> Delivery:
    """A delivery from the dead-letter queue of what a service dead-lettered."""
    message = dead_letter(FAILED._replace(**fields), reason, serial=serial, at=NOW)
    return arrived(
        type=message.type or None, message_id=message.message_id, body=message.body, headers=dict(message.headers),
        correlation_id=message.correlation_id, reply_to=message.reply_to,
    )  # fmt: skip


def arrived(**fields: Any) -> Delivery:
    place = {"queue": "orchestrator.dead-letters", "exchange": "orchestrator.dead-letters"}
    return FAILED._replace(**{**place, **fields})


def stored(delivery: Delivery) -> NewDeadLetter:
    [letter] = to_dead_letters([delivery])
    return letter


def test_what_a_service_dead_lettered_is_what_it_was_before() -> None:
    letter = stored(by_us())
    assert (letter.queue, letter.exchange, letter.routing_key) == ("agent.a", "orchestrator.tasks", "a")
    assert (letter.code, letter.message, letter.dead_lettered_at) == ("no_luck", "not to be", NOW)
    assert (letter.type, letter.message_id, letter.correlation_id, letter.reply_to) == ("AgentTask", "m-1", "c", "r")
    assert (json.loads(letter.headers), letter.body) == ({"kept": 1}, FAILED.body)
    assert (letter.run_id, letter.step_id) == (RUN, "one")


def test_the_key_is_that_of_the_dead_lettering() -> None:
    first, again = stored(by_us()), stored(by_us()._replace(redelivered=True))
    assert first.key == again.key
    assert first.key != stored(by_us(serial="2")).key
    assert not first.is_new, "its id is unique, so the same key is the same dead letter"


def test_a_count_of_deliveries_of_the_dead_letter_changes_nothing() -> None:
    for delivery in (by_us(), arrived(headers={"x-death": [DEATH]})):
        counted = delivery._replace(headers={**delivery.headers, "x-delivery-count": 3}, redelivered=True)
        assert replace(stored(counted), is_new=True) == replace(stored(delivery), is_new=True)


def test_what_the_broker_dead_lettered_says_so() -> None:
    letter = stored(arrived(headers={"kept": 1, "x-death": [DEATH]}))
    assert (letter.queue, letter.exchange, letter.routing_key) == ("agent.a", "orchestrator.tasks", "a")
    assert (letter.code, letter.dead_lettered_at, letter.message_id) == ("broker_delivery_limit", NOW, "m-1")
    assert 'queue "agent.a"' in letter.message
    assert letter.is_new
    assert not stored(arrived(headers={"x-death": [DEATH]}, redelivered=True)).is_new


def test_a_dead_letter_that_the_broker_dead_lettered_again_keeps_its_first_origin() -> None:
    circle = DEATH | {"queue": "orchestrator.dead-letters"}
    assert stored(arrived(headers={"x-death": [circle, DEATH]})).queue == "agent.a"
    ours = by_us()
    again = ours._replace(headers={**ours.headers, "x-death": [circle]})
    assert (stored(again).queue, stored(again).key) == ("agent.a", stored(ours).key)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-death": None},
        {"x-death": "text"},
        {"x-death": []},
        {"x-death": ["text", 3]},
        {"x-death": [DEATH | {"queue": "orchestrator.dead-letters"}]},
    ],
)
def test_what_says_nothing_of_its_origin_is_kept_all_the_same(headers: dict[str, Any]) -> None:
    letter = stored(arrived(headers=headers, message_id=None, type=None, reply_to=None, correlation_id=None))
    assert (letter.queue, letter.code, letter.body) == (None, "unknown_reason", FAILED.body)


def test_a_replay_would_never_go_to_the_dead_letters_themselves() -> None:
    assert stored(by_us(queue="orchestrator.dead-letters")).queue is None


@pytest.mark.parametrize(
    "death",
    [
        {},
        {"queue": b"\xff", "reason": 7, "time": "yesterday", "routing-keys": [], "exchange": None},
        {"queue": 1.5, "reason": None, "time": datetime.max.replace(tzinfo=UTC), "routing-keys": "a"},
        {"queue": "q" * 1_000, "reason": "r" * 1_000, "routing-keys": [None]},
    ],
)
def test_an_odd_death_is_stored(death: dict[str, Any]) -> None:
    letter = stored(arrived(headers={"x-death": [death]}))
    assert letter.code.startswith("broker_")
    assert len(letter.code) <= 100
    assert len((letter.queue or "").encode()) <= 255


def test_texts_that_postgres_or_amqp_cannot_hold_are_replaced_and_cut() -> None:
    odd = "a\0\ud800" + "ö" * 300
    letter = stored(by_us(DeadLetterReason("no_luck", "\0" * 20_000), correlation_id=odd, reply_to=odd, queue=odd))
    assert letter.message == "?" * LONGEST_MESSAGE
    for text in (letter.correlation_id, letter.reply_to, letter.queue):
        assert text is not None
        assert text.startswith("a??ö")
        assert len(text.encode()) in {254, 255}


def test_headers_that_json_cannot_hold_are_kept() -> None:
    letter = stored(by_us(headers={"nul": "\0", "bytes": b"\xff", "time": NOW}))
    assert json.loads(letter.headers) == {
        "nul": {"$text": "AA=="}, "bytes": {"$bytes": "/w=="}, "time": {"$time": "2026-01-02T03:04:05+00:00"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff", b"null", b"[1]", b'{"run_id":1,"step_id":2}', b'{"run_id":"me"}', b"[" * 100_000, b"9" * 5_000],
    ids=str,
)
def test_a_body_that_names_no_run_is_stored(body: bytes) -> None:
    letter = stored(by_us(body=body))
    assert (letter.run_id, letter.step_id, letter.body) == (None, None, body)


def test_messages_that_are_alike_have_different_keys_within_a_batch() -> None:
    alike = arrived(message_id=None)
    letters = to_dead_letters([alike, by_us(), alike, alike])
    assert len({letter.key for letter in letters}) == 4
    assert [letter.key for letter in letters] == [
        letter.key for letter in to_dead_letters([alike._replace(redelivered=True), by_us(), alike, alike])
    ]
    assert stored(alike).key != stored(alike._replace(body=b"other")).key


def test_the_same_dead_letter_twice_in_a_batch_has_one_key() -> None:
    first, second = to_dead_letters([by_us(), by_us()])
    assert first.key == second.key


def test_what_is_left_of_one_that_cannot_be_stored_is_its_body_and_its_reason() -> None:
    letter = bare(stored(by_us(headers={"odd": "?"})))
    assert (letter.body, letter.code, letter.queue, letter.headers) == (FAILED.body, "no_luck", "agent.a", "{}")
    assert (letter.type, letter.message_id, letter.correlation_id, letter.reply_to) == (None, None, None, None)
    assert bare(letter) == letter
