import pytest

from schemas.suggestions import NameIndex, nearest


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_paralellism", "max_parallelism"),
        ("maxParallelism", "max_parallelism"),
        ("NEXT_STEP", "next_step"),
        ("next", "next_step"),
        ("colour", None),
        ("", None),
        ("max_parallelism" * 100, None),
    ],
)
def test_the_nearest_name_is_suggested_where_one_is_near(name: str, meant: str | None) -> None:
    assert nearest(name, ["next_step", "max_parallelism"]) == meant


def test_there_is_nothing_to_suggest_from_nothing() -> None:
    assert nearest("a", []) is None
    assert NameIndex([]).nearest("a") is None


def test_a_near_name_is_found_among_very_many() -> None:
    index = NameIndex(f"branch-{number}" for number in range(100_000))

    assert index.nearest("branch-77777x") == "branch-77777"


def test_an_index_has_no_suggestions_any_more_when_it_was_asked_very_often() -> None:
    index = NameIndex(f"branch-{number}" for number in range(200))

    answers = [index.nearest(f"branch-x{number}") for number in range(500)]

    assert answers[0] is not None
    assert answers[-1] is None
