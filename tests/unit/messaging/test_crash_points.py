"""The crash points: nothing unless armed, and each is passed somewhere."""

import re
import timeit
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import messaging.crash_points
from messaging.crash_points import CRASH_POINTS, CrashPoint, arm, reach

ROOT = Path(__file__).parents[3]
CALL = re.compile(r'\breach\("([\w.]+)"')


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    """Leave nothing armed behind."""
    yield
    arm(None)


def test_a_point_that_nobody_armed_does_nothing_and_costs_next_to_nothing() -> None:
    passages = 100_000
    seconds = min(timeit.repeat(lambda: reach("intake.taken", "queue"), number=passages, repeat=5))
    print(f"{seconds / passages * 1e9:.0f} ns for each passage")
    assert seconds / passages < 2e-6, "twenty times what it takes on an idle machine"


def test_an_armed_point_tells_which_it_is_and_what_it_is_about() -> None:
    passed: list[tuple[CrashPoint, object]] = []
    arm(lambda point, about: passed.append((point, about)))
    reach("gate.opened", "block")
    reach("outbox.forgotten")
    arm(None)
    reach("gate.opened", "another")
    assert passed == [("gate.opened", "block"), ("outbox.forgotten", None)]


def test_the_services_pass_every_point_at_one_place_and_no_others() -> None:
    places = Counter(
        name
        for package in ("orchestrator", "agent_worker")
        for module in sorted((ROOT / package).rglob("*.py"))
        for name in CALL.findall(module.read_text())
    )
    assert places == dict.fromkeys(CRASH_POINTS, 1)


def test_no_product_code_arms_the_points() -> None:
    arming = [
        module
        for package in ("orchestrator", "agent_worker", "messaging", "schemas")
        for module in sorted((ROOT / package).rglob("*.py"))
        if re.search(r"import [^\n]*\barm\b|crash_points\.arm", module.read_text())
    ]
    assert arming == []


def test_the_table_has_a_line_for_every_point() -> None:
    documented = re.findall(r"^\| (\w+\.\w+) \|", messaging.crash_points.__doc__ or "", re.MULTILINE)
    assert documented == list(CRASH_POINTS)
