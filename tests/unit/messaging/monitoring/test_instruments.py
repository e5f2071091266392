"""Counts and spreads: what they add up to, and that they stay small."""

from messaging.monitoring.instruments import OTHER, Count, Spread, bounded


def test_a_count_adds_up_each_series_by_itself() -> None:
    count = Count("seen", "What was seen.", "queue")
    count.add(2, "a")
    count.add(1, "b")
    count.add(3, "a")
    assert count.values == {("a",): 5, ("b",): 1}


def test_a_count_without_labels_is_there_before_anything_happened() -> None:
    assert Count("seen", "What was seen.").values == {(): 0}


def test_a_spread_puts_each_value_into_the_first_range_that_it_does_not_exceed() -> None:
    spread = Spread("size", "How large.", bounds=(1, 10))
    for value in (0.5, 1, 2, 10, 11, 1_000):
        spread.observe(value)
    assert spread.tallies[()].counts == [2, 2, 2]
    assert spread.tallies[()].sum == 1_024.5


def test_series_beyond_the_limit_are_counted_together() -> None:
    count, spread = Count("seen", "", "agent", max_series=2), Spread("took", "", "agent", bounds=(1,), max_series=2)
    for agent in ("a", "b", "c", "d", "a"):
        count.add(1, agent)
        spread.observe(0.5, agent)
    assert count.values == {("a",): 2, ("b",): 1, (OTHER,): 2}
    assert {labels: sum(tally.counts) for labels, tally in spread.tallies.items()} == {
        ("a",): 2,
        ("b",): 1,
        (OTHER,): 2,
    }


def test_the_largest_of_too_many_numbers_keep_their_names() -> None:
    found = bounded({("a", "x"): 1, ("b", "x"): 5, ("c", "x"): 2, ("d", "x"): 3}, max_series=2)
    assert found == {("b", "x"): 5, ("d", "x"): 3, (OTHER, OTHER): 3}
    assert bounded({("a",): 1, ("b",): 2}, max_series=2) == {("a",): 1, ("b",): 2}
