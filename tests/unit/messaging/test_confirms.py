from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from messaging.port import OutgoingMessage, PublishOutcome
from messaging.rabbitmq.confirms import Batch, Confirms

CONFIRMED, RETURNED, UNKNOWN = PublishOutcome.CONFIRMED, PublishOutcome.RETURNED, PublishOutcome.UNKNOWN


def message(message_id: str, routing_key: str = "key", **fields: Any) -> OutgoingMessage:
    return OutgoingMessage("", routing_key, "AgentTask", message_id, b"", **fields)


def published(confirms: Confirms, *messages: OutgoingMessage) -> Batch:
    batch = Batch(messages)
    confirms.add(batch, 0, len(messages))
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


class Remembered:
    """The rules, message by message: what `Confirms` must come to for whole stretches."""

    def __init__(self) -> None:
        self.messages: list[OutgoingMessage] = []
        self.outcomes: list[PublishOutcome] = []
        self.answered: set[int] = set()

    def add(self, messages: list[OutgoingMessage]) -> None:
        self.messages += messages
        self.outcomes += [UNKNOWN] * len(messages)

    def confirm(self, tag: int, multiple: bool, outcome: PublishOutcome) -> None:
        for index in range(0 if multiple else tag - 1, min(tag, len(self.messages))):
            if index not in self.answered:
                self.answered.add(index)
                if self.outcomes[index] is not RETURNED:
                    self.outcomes[index] = outcome

    def returned(self, message_id: str) -> None:
        for index, known in enumerate(self.messages):
            fits = known.mandatory and known.message_id == message_id
            if fits and index not in self.answered and self.outcomes[index] is not RETURNED:
                self.outcomes[index] = RETURNED
                return


ids = st.sampled_from("ab")
sendings = st.lists(st.builds(message, ids, mandatory=st.booleans()), max_size=4)
answers = st.tuples(st.integers(1, 8), st.booleans(), st.sampled_from([CONFIRMED, UNKNOWN]))


@settings(max_examples=500)
@given(st.lists(sendings | answers | answers | ids, min_size=5, max_size=15))
def test_stretches_come_to_the_same_as_messages_one_by_one(
    happened: list[list[OutgoingMessage] | tuple[int, bool, PublishOutcome] | str],
) -> None:
    confirms, model, batches = Confirms(), Remembered(), list[Batch]()
    for event in happened:
        if isinstance(event, list):
            batches.append(published(confirms, *event))
            model.add(event)
        elif isinstance(event, str):
            confirms.returned(event, "", "key")
            model.returned(event)
        else:
            tag, multiple, outcome = event
            confirms.confirm(tag, multiple=multiple, outcome=outcome)
            model.confirm(tag, multiple, outcome)
        assert [outcome for batch in batches for outcome in batch.outcomes] == model.outcomes
        assert confirms.unanswered == len(model.messages) - len(model.answered)
    numbers = iter(range(len(model.messages)))
    for batch in batches:
        assert batch.is_answered == ({next(numbers) for _ in batch.messages} <= model.answered)


@pytest.mark.parametrize("again", [False, True])
def test_an_answer_that_overtook_others_counts_once(again: bool) -> None:
    confirms = Confirms()
    batch = published(confirms, message("a"), message("b"), message("c"))
    confirms.confirm(2, multiple=False, outcome=CONFIRMED)
    confirms.confirm(2, multiple=again, outcome=UNKNOWN)
    confirms.returned("b", "", "key")
    assert batch.outcomes == [UNKNOWN, CONFIRMED, UNKNOWN]
    assert confirms.unanswered == (1 if again else 2)


def test_a_batch_that_is_written_in_pieces_is_answered_when_all_are() -> None:
    confirms = Confirms()
    batch, other = Batch([message(str(number)) for number in range(4)]), Batch([message("other")])
    confirms.add(batch, 0, 2)
    confirms.add(other, 0, 1)
    confirms.add(batch, 2, 4)
    confirms.returned("3", "", "key")
    confirms.confirm(4, multiple=True, outcome=CONFIRMED)
    assert (batch.outcomes, other.is_answered) == ([CONFIRMED, CONFIRMED, CONFIRMED, RETURNED], True)
    assert not batch.is_answered
    confirms.confirm(5, multiple=False, outcome=CONFIRMED)
    assert batch.is_answered
