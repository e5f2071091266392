from typing import Any

import pytest

from messaging.port import OutgoingMessage, PublishOutcome
from messaging.rabbitmq.confirms import Batch, Confirms

CONFIRMED, RETURNED, UNKNOWN = PublishOutcome.CONFIRMED, PublishOutcome.RETURNED, PublishOutcome.UNKNOWN


def message(message_id: str, routing_key: str = "key", **fields: Any) -> OutgoingMessage:
    return OutgoingMessage("", routing_key, "AgentTask", message_id, b"", **fields)


def published(confirms: Confirms, *messages: OutgoingMessage) -> Batch:
    batch = Batch(messages)
    for index in range(len(messages)):
        confirms.add(batch, index)
    return batch


def test_one_frame_confirms_everything_up_to_its_number() -> None:
    confirms = Confirms()
    batch = published(confirms, *(message(str(number)) for number in range(5)))
    confirms.confirm(3, multiple=True, outcome=CONFIRMED)
    assert batch.outcomes == [CONFIRMED, CONFIRMED, CONFIRMED, UNKNOWN, UNKNOWN]
    assert not batch.is_answered
    confirms.confirm(5, multiple=True, outcome=CONFIRMED)
    assert batch.is_answered
    assert confirms.unanswered == 0


def test_confirms_may_come_in_any_order() -> None:
    confirms = Confirms()
    batch = published(confirms, *(message(str(number)) for number in range(4)))
    confirms.confirm(4, multiple=False, outcome=CONFIRMED)
    confirms.confirm(2, multiple=False, outcome=CONFIRMED)
    confirms.confirm(3, multiple=True, outcome=UNKNOWN)
    assert batch.outcomes == [UNKNOWN, CONFIRMED, UNKNOWN, CONFIRMED]
    assert batch.is_answered


def test_several_batches_share_a_frame_and_not_their_outcomes() -> None:
    confirms = Confirms()
    first = published(confirms, message("a"), message("b"))
    second = published(confirms, message("c"), message("d"))
    confirms.confirm(3, multiple=True, outcome=CONFIRMED)
    assert first.is_answered
    assert not second.is_answered
    assert second.outcomes == [CONFIRMED, UNKNOWN]


def test_a_returned_message_stays_returned_when_its_ack_follows() -> None:
    confirms = Confirms()
    batch = published(confirms, message("a"), message("b"))
    confirms.returned("b", "", "key")
    assert not batch.is_answered
    confirms.confirm(2, multiple=True, outcome=CONFIRMED)
    assert batch.outcomes == [CONFIRMED, RETURNED]


def test_a_nacked_message_is_unknown() -> None:
    confirms = Confirms()
    batch = published(confirms, message("a"))
    confirms.confirm(1, multiple=False, outcome=UNKNOWN)
    assert batch.outcomes == [UNKNOWN]
    assert batch.is_answered


def test_of_messages_with_one_id_the_one_that_went_there_is_returned() -> None:
    confirms = Confirms()
    batch = published(confirms, message("same", "routable"), message("same", "nowhere"))
    confirms.returned("same", "", "nowhere")
    confirms.confirm(2, multiple=True, outcome=CONFIRMED)
    assert batch.outcomes == [CONFIRMED, RETURNED]


def test_of_equal_messages_each_is_returned_once() -> None:
    confirms = Confirms()
    batch = published(confirms, message("same"), message("same"), message("same"))
    confirms.returned("same", "", "key")
    confirms.confirm(1, multiple=False, outcome=CONFIRMED)
    confirms.returned("same", "", "key")
    confirms.returned("same", "", "key")
    confirms.confirm(3, multiple=True, outcome=CONFIRMED)
    assert batch.outcomes == [RETURNED, RETURNED, RETURNED]


def test_a_return_that_belongs_to_nothing_is_ignored() -> None:
    confirms = Confirms()
    batch = published(confirms, message("a", mandatory=False))
    confirms.returned("a", "", "key")
    confirms.returned("b", "", "key")
    assert batch.outcomes == [UNKNOWN]


def test_when_the_channel_is_lost_what_has_no_answer_is_unknown() -> None:
    confirms = Confirms()
    batch = published(confirms, message("a"), message("b"), message("c"))
    confirms.confirm(1, multiple=False, outcome=CONFIRMED)
    confirms.returned("b", "", "key")
    confirms.lost()
    assert batch.outcomes == [CONFIRMED, RETURNED, UNKNOWN]
    assert batch.is_answered
    assert confirms.unanswered == 0


@pytest.mark.parametrize("multiple", [False, True])
def test_a_number_that_was_answered_before_changes_nothing(multiple: bool) -> None:
    confirms = Confirms()
    batch = published(confirms, message("a"), message("b"))
    confirms.confirm(2, multiple=True, outcome=CONFIRMED)
    confirms.confirm(1, multiple=multiple, outcome=UNKNOWN)
    assert batch.outcomes == [CONFIRMED, CONFIRMED]


def test_an_empty_batch_is_answered() -> None:
    assert Batch([]).is_answered
