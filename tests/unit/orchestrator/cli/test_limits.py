"""Limits of agents as people write and read them."""

import pytest

from orchestrator.cli.limits import MOST, limit_words, rate_words, read_concurrency, read_rate
from orchestrator.engine.agent_limit import AgentLimit
from orchestrator.errors import WrongUse


@pytest.mark.parametrize(("text", "most"), [("5", 5), ("0", 0), ("1000000", MOST), ("none", None)])
def test_attempts_at_once_are_a_number_or_none(text: str, most: int | None) -> None:
    assert read_concurrency(text) == most


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "1000001", "²", "None", "٣"])
def test_what_is_no_number_of_attempts_is_refused(text: str) -> None:
    with pytest.raises(WrongUse, match=r"--concurrency .*: write a number from 0"):
        read_concurrency(text)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("10/s", 10), ("0.5/s", 0.5), ("600/m", 10), ("100/h", 100 / 3600), ("1000000/s", MOST), ("none", None)],
)
def test_a_rate_is_a_number_per_second_minute_or_hour(text: str, rate: float | None) -> None:
    assert read_rate(text) == rate


@pytest.mark.parametrize("text", ["", "10", "/s", "10/d", "-1/s", "1e3/s", "10 /s", "10/s ", "1./s", ".5/s", "inf/s"])
def test_what_is_no_rate_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(WrongUse, match="write a number per second, minute or hour, as in 10/s"):
        read_rate(text)


@pytest.mark.parametrize("text", ["0/s", "0.0/h", "1000001/s", "99999999999/h"])
def test_a_rate_out_of_bounds_is_refused(text: str) -> None:
    with pytest.raises(WrongUse, match="a rate is above 0 and at most 1000000/s"):
        read_rate(text)


@pytest.mark.parametrize("text", ["10/s", "0.5/s", "1.5/s", "1/m", "100/h", "7/h", "0.1/s", "2500/s"])
def test_a_rate_is_read_as_it_was_written(text: str) -> None:
    rate = read_rate(text)
    assert rate is not None
    assert rate_words(rate) == text


def test_a_rate_in_too_small_a_unit_is_read_in_a_larger_one() -> None:
    assert rate_words(0.05) == "3/m"
    assert rate_words(600 / 60) == "10/s"
    assert rate_words(1 / 7) == "0.1429/s"


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        (AgentLimit(3, 10.0), "3 at once, 10/s"),
        (AgentLimit(0), "0 at once"),
        (AgentLimit(None, 2.0), "2/s"),
        (AgentLimit(), ""),
    ],
)
def test_a_limit_says_what_it_allows(limit: AgentLimit, said: str) -> None:
    assert limit_words(limit) == said
