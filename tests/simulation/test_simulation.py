"""Seeds of the simulation, each in virtual time. `python -m tests.simulation --help` says how to run one."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.simulation.bugs import BUGS
from tests.simulation.clock import Stuck, VirtualLoop

ROOT = Path(__file__).parents[2]
SEEDS = 3_000  # shared by as many processes as there are cores
SEEDS_FOR_A_BUG = 3_000


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
    )


def output_of(process: "subprocess.Popen[str]", code: int) -> str:
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == code, printed
    return printed


def test_no_seed_violates_an_oracle() -> None:
    share = SEEDS // (processes := os.cpu_count() or 1)
    running = [start(f"{number * share}:{(number + 1) * share}") for number in range(processes)]
    for process in running:
        print(output_of(process, code=0).strip())


@pytest.mark.parametrize("bug", BUGS)
def test_a_known_bug_is_found(bug: str) -> None:
    printed = output_of(start(f"0:{SEEDS_FOR_A_BUG}", "--bug", bug), code=1)
    assert " FAILED: Violation: O" in printed


def test_a_seed_takes_the_same_course_every_time() -> None:
    courses = []
    for process in [start("7:10", "--trace"), start("7:10", "--trace")]:
        *lines, _ = output_of(process, code=0).splitlines()
        courses.append(lines)
    assert courses[0] == courses[1]
    assert len(courses[0]) > 100


def test_a_wrong_seed_is_told() -> None:
    assert "one seed, or FIRST:END" in output_of(start("many"), code=2)


def test_hours_pass_at_once() -> None:
    loop = VirtualLoop()
    started = time.monotonic()
    loop.run_until_complete(asyncio.sleep(3_600))
    assert loop.time() == pytest.approx(3_600)
    assert time.monotonic() - started < 60
    loop.close()


def test_a_deadlock_is_told() -> None:
    loop = VirtualLoop()
    with pytest.raises(Stuck, match="waits for another"):
        loop.run_until_complete(asyncio.Event().wait())
    loop.close()
