"""The failure contract names a test in each line, and each of these exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CONTRACT = ROOT / "orchestrator" / "FAILURES.md"
NAMED = re.compile(r"`([a-z_/]+\.py)::(test_\w+)`")
HEADINGS = {"Fault", "---", "Layer"}

LINES = [
    line
    for line in CONTRACT.read_text().partition("## How this is proven")[0].splitlines()
    if line.startswith("|") and line.split("|")[1].strip() not in HEADINGS
]
# What lies outside of the promises has nothing to be proven.
PROVEN = [line for line in LINES if "Not survived" not in line]


@pytest.mark.parametrize("line", PROVEN, ids=lambda line: line.split("|")[1].strip()[:60])
def test_a_line_of_the_failure_contract_names_tests_that_exist(line: str) -> None:
    named = NAMED.findall(line.split("|")[-2])
    assert named, "every line is backed by a test"
    for file, name in named:
        text = (ROOT / "tests" / file).read_text()
        assert re.search(rf"def {name}\(", text), f"{file} has no {name}"


def test_the_failure_contract_has_its_lines() -> None:
    assert len(PROVEN) > 30
