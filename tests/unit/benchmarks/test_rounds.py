"""What becomes of systems that hang, break, are slow, or do not start, and of those beside them."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.benchmarks.loads import Group, Load
from tests.benchmarks.measurement import Role
from tests.benchmarks.rounds import SLOW_SECONDS, Rounds
from tests.benchmarks.systems.port import Outcome, WrongResults

LOAD = Load(Group.BLOCK, 10, seconds=0.05)
OTHER = Load(Group.BLOCK, 20, seconds=5)


@dataclass
class Fake:
    """A system that does what it is told, and notes it."""

    name: str
    turns: list[str]
    wall_seconds: float = 0.1
    misbehave: Callable[[Load], None] | None = None
    hangs: bool = False
    starts: list[Exception | None] = field(default_factory=list)  # what start raises, in turn
    settings: str = "none"

    def takes(self, load: Load) -> bool:
        return True

    def processes(self) -> Mapping[Role, Sequence[int]]:
        return {}

    async def start(self) -> None:
        self.turns.append(f"{self.name} starts")
        failure = self.starts.pop(0) if self.starts else None
        if failure is not None:
            raise failure

    async def run(self, load: Load) -> Outcome:
        self.turns.append(self.name)
        if self.hangs and load is LOAD:
            await asyncio.Event().wait()
        if self.misbehave is not None:
            self.misbehave(load)
        return Outcome(self.wall_seconds)

    async def stop(self) -> None:
        self.turns.append(f"{self.name} stops")


def rounds_of(*systems: Fake) -> Rounds:
    return Rounds(systems, {}, lambda line: None, pause=0.0)


async def test_systems_take_turns_within_a_round() -> None:
    turns: list[str] = []
    rounds = rounds_of(Fake("a", turns), Fake("b", turns))
    await rounds.measure(LOAD, 3)
    assert turns == ["a", "b", "a", "b", "a", "b"]
    assert [(sample.system, sample.round, sample.rate) for sample in rounds.samples[:3]] == [
        ("a", 1, 100.0),
        ("b", 1, 100.0),
        ("a", 2, 100.0),
    ]


async def test_a_system_that_hangs_is_cut_off_and_started_anew_while_the_others_go_on() -> None:
    turns: list[str] = []
    rounds = rounds_of(Fake("a", turns, hangs=True), Fake("b", turns))
    await rounds.measure(LOAD, 2)
    assert turns == ["a", "a stops", "a starts", "b", "b"]
    assert [(failure.system, failure.reason) for failure in rounds.failures] == [("a", "not done within 0.05 s")]
    await rounds.measure(OTHER, 1)
    assert rounds.samples[-2].system == "a"


async def test_wrong_results_are_a_failure_and_no_sample() -> None:
    def lose_one(load: Load) -> None:
        raise WrongResults("9 results of 10")

    rounds = rounds_of(Fake("a", [], misbehave=lose_one))
    await rounds.measure(LOAD, 3)
    assert rounds.samples == []
    assert [failure.reason for failure in rounds.failures] == ["WrongResults: 9 results of 10"]


async def test_what_is_slow_is_kept_and_not_repeated() -> None:
    turns: list[str] = []
    rounds = rounds_of(Fake("a", turns, wall_seconds=SLOW_SECONDS + 1), Fake("b", turns))
    await rounds.measure(LOAD, 3)
    assert turns == ["a", "b", "b", "b"]
    assert len(rounds.samples) == 4


async def test_a_system_that_does_not_start_fails_each_load_with_that_reason() -> None:
    turns: list[str] = []
    rounds = rounds_of(Fake("a", turns, starts=[OSError("no such thing")]), Fake("b", turns))
    await rounds.start(OTHER)
    await rounds.measure(LOAD, 1)
    assert [failure.reason for failure in rounds.failures] == ["does not start: OSError: no such thing"]
    assert [sample.system for sample in rounds.samples] == ["b"]


async def test_the_warm_up_is_not_measured() -> None:
    turns: list[str] = []
    rounds = rounds_of(Fake("a", turns))
    await rounds.start(LOAD)
    await rounds.stop()
    assert turns == ["a starts", "a", "a stops"]
    assert rounds.samples == []
