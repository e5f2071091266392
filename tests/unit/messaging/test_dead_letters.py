from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from messaging.dead_letters import dead_letter, require_confirmed
from messaging.limits import check_addressable
from messaging.port import BrokerUnavailable, DeadLetterReason, Delivery, PublishOutcome
from messaging.topology import DEAD_LETTERS_EXCHANGE

NOW = datetime(2026, 3, 1, 13, 0, tzinfo=timezone(timedelta(hours=1)))
REASON = DeadLetterReason("malformed_message", "the body is not JSON")


def delivery(**fields: Any) -> Delivery:
    complete = {
        "queue": "work",
        "exchange": "direct",
        "routing_key": "key",
        "type": "AgentTask",
        "message_id": "the-id",
        "body": b"body",
        "correlation_id": "c",
        "reply_to": "r",
        "headers": {},
        "redelivered": True,
        "tag": (1, 1),
    }
    return Delivery(**(complete | fields))


def test_a_dead_letter_goes_to_its_exchange_and_must_be_taken() -> None:
    letter = dead_letter(delivery(), REASON, serial="s", at=NOW)
    assert (letter.exchange, letter.mandatory, letter.persistent) == (DEAD_LETTERS_EXCHANGE, True, True)


def test_the_time_is_in_utc() -> None:
    letter = dead_letter(delivery(), REASON, serial="s", at=NOW)
    assert letter.headers["x-forkjoin-time"] == "2026-03-01T12:00:00+00:00"


def test_counts_of_the_broker_are_left_out_and_an_earlier_reason_is_replaced() -> None:
    headers = {"x-delivery-count": 3, "x-acquired-count": 3, "x-forkjoin-reason": "earlier", "own": 1}
    letter = dead_letter(delivery(headers=headers), REASON, serial="s", at=NOW)
    assert "x-delivery-count" not in letter.headers
    assert "x-acquired-count" not in letter.headers
    assert (letter.headers["x-forkjoin-reason"], letter.headers["own"]) == ("malformed_message", 1)


@pytest.mark.parametrize("message_id", [None, "", "the-id", "x" * 255, "\U0001f600" * 63])
def test_the_new_id_is_different_and_short_enough_for_amqp(message_id: str | None) -> None:
    one = dead_letter(delivery(message_id=message_id), REASON, serial="a" * 32, at=NOW)
    two = dead_letter(delivery(message_id=message_id), REASON, serial="b" * 32, at=NOW)
    assert len({one.message_id, two.message_id, message_id}) == 3
    check_addressable(one)


def test_a_message_without_type_and_id_can_be_dead_lettered() -> None:
    letter = dead_letter(delivery(type=None, message_id=None), REASON, serial="s", at=NOW)
    assert (letter.type, letter.headers["x-forkjoin-message-id"]) == ("", "")


@pytest.mark.parametrize("outcome", [one for one in PublishOutcome if one is not PublishOutcome.CONFIRMED])
def test_anything_but_a_confirm_is_an_error_that_names_queue_and_message(outcome: PublishOutcome) -> None:
    require_confirmed(PublishOutcome.CONFIRMED, delivery())
    with pytest.raises(BrokerUnavailable, match=f'"the-id" from queue "work".*{outcome}'):
        require_confirmed(outcome, delivery())
