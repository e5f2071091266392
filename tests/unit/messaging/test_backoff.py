from itertools import pairwise

from messaging.rabbitmq.backoff import Pauses


def test_pauses_grow_while_nothing_stays_open_and_never_pass_ten_seconds() -> None:
    pauses = Pauses()
    drawn = [pauses.after(lived=0.0) for _ in range(2_000)]
    assert 0.1 <= drawn[0] <= 0.2
    assert max(drawn) <= 10
    assert min(drawn[-100:]) >= 5
    assert all(later > earlier / 2 for earlier, later in pairwise(drawn))


def test_a_long_life_makes_up_for_short_ones() -> None:
    pauses = Pauses()
    for _ in range(10):
        pauses.after(lived=0.0)
    assert pauses.after(lived=60.0) <= 0.1
