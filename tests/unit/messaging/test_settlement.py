from hypothesis import given
from hypothesis import strategies as st

from messaging.rabbitmq.settlement import Unsettled


class Channel:
    """Acks as AMQP defines them: `multiple` means everything delivered up to the tag; an unknown tag is an error."""

    def __init__(self, tags: range) -> None:
        self.unsettled = set(tags)
        self.frames = 0

    def encode(self, tag: int, multiple: bool) -> bytes:
        assert tag in self.unsettled, "RabbitMQ would close the channel"
        self.unsettled -= {other for other in self.unsettled if other <= tag} if multiple else {tag}
        self.frames += 1
        return b"."


def ledger(count: int) -> tuple[Unsettled, Channel]:
    unsettled = Unsettled()
    for tag in range(1, count + 1):
        unsettled.add(tag)
    return unsettled, Channel(range(1, count + 1))


def test_the_oldest_tags_share_one_frame() -> None:
    unsettled, channel = ledger(100)
    assert unsettled.settle(set(range(1, 100)), channel.encode) == (99, b".")
    assert channel.unsettled == {100}


def test_tags_behind_an_unsettled_one_have_a_frame_each() -> None:
    unsettled, channel = ledger(5)
    assert unsettled.settle({1, 3, 5}, channel.encode) == (3, b"...")
    assert channel.unsettled == {2, 4}


def test_a_gap_that_was_settled_before_does_not_end_the_shared_frame() -> None:
    unsettled, channel = ledger(5)
    unsettled.settle({2, 4}, channel.encode)
    assert unsettled.settle({1, 3}, channel.encode) == (2, b".")
    assert channel.unsettled == {5}


def test_what_is_settled_already_is_left_out() -> None:
    unsettled, channel = ledger(3)
    unsettled.settle({1}, channel.encode)
    assert unsettled.settle({1, 99}, channel.encode) == (0, b"")
    assert len(unsettled) == 2


@given(st.lists(st.sets(st.integers(1, 12)), max_size=8))
def test_exactly_the_given_tags_are_settled_whatever_the_order(batches: list[set[int]]) -> None:
    unsettled, channel = ledger(12)
    left = set(range(1, 13))
    for batch in batches:
        count, _ = unsettled.settle(batch, channel.encode)
        assert count == len(left & batch)
        left -= batch
        assert channel.unsettled == left
        assert len(unsettled) == len(left)
