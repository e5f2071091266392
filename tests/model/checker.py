"""Explores every state that a protocol can reach, breadth first, and looks for what must not be.

Safety: no state, and no step into it, breaks an oracle. Liveness: from every state a quiet end can still be reached
without more faults. A state from which there is no way is *stuck*, whether it stops there or goes round in circles; an
end in which nothing can happen and that is not quiet is a special case.

How to read a trace: it is the shortest way from the start, one atomic action a line. A line that begins with FAULT is
something that the model chose to let go wrong there. The last line is the action that broke the oracle, or after which
all was lost, and the oracle follows. Of a stuck state it says, too, where things end if all goes well from there on.
Look there for what is missing: a row that says QUEUED whose task is nowhere, a message that nobody will take.
"""

import gc
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Generic, NamedTuple, Protocol, TypeVar

StateT = TypeVar("StateT")


class Move(NamedTuple):
    """What the checker keeps of a step."""

    before: int
    words: str


class Explorable(Protocol[StateT]):
    """A graph of states with oracles."""

    def initial(self) -> StateT:
        """Return where it starts."""

    def steps(self, state: StateT) -> Iterator[tuple[str, StateT]]:
        """Yield what can happen without a fault, in words, and the state after it."""

    def faults(self, state: StateT) -> Iterator[tuple[str, StateT]]:
        """Yield what can go wrong."""

    def key(self, state: StateT) -> Hashable:
        """Return what states have in common that need not be told apart."""

    def broken(self, state: StateT) -> str | None:
        """Return the oracle that a state breaks."""

    def broken_by_step(self, before: StateT, after: StateT) -> str | None:
        """Return the oracle that a step breaks."""

    def is_complete(self, state: StateT) -> bool:
        """Whether it is a good end (O1)."""

    def is_quiet(self, state: StateT) -> bool:
        """Whether it is a good end with nothing left over (O5)."""

    def describe(self, state: StateT) -> str:
        """Return a state in words."""


@dataclass(frozen=True)
class Finding:
    """An oracle that does not hold, and the shortest way there."""

    oracle: str
    trace: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((*(f"{number:3} {words}" for number, words in enumerate(self.trace, 1)), f"==> {self.oracle}"))


@dataclass(frozen=True)
class Report:
    """What an exploration found."""

    states: int
    finding: Finding | None


def explore(graph: Explorable[StateT]) -> Report:
    """Explore everything; stop at the first state that breaks an oracle, else look for stuck states."""
    # Nothing that it makes is garbage before its end, so looking for garbage would only double the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return _Exploration(graph).run()
    finally:
        if was_enabled:
            gc.enable()


class _Exploration(Generic[StateT]):
    def __init__(self, graph: Explorable[StateT]) -> None:
        self._graph = graph
        self._ids: dict[Hashable, int] = {}
        self._states: list[StateT] = []
        self._moves: list[Move | None] = []  # by state: how it was reached first
        self._next: list[tuple[int, ...]] = []  # by state: what can follow without a fault

    def run(self) -> Report:
        start = self._graph.initial()
        self._reach(None, start)
        for index in count():
            if index == len(self._states):
                return Report(len(self._states), self._stuck())
            finding = self._expand(index)
            if finding is not None:
                return Report(len(self._states), finding)
        raise AssertionError("count() does not end")

    def _expand(self, index: int) -> Finding | None:
        graph, state = self._graph, self._states[index]
        steps = tuple(graph.steps(state))
        reached = [self._reach(Move(index, words), after) for words, after in steps]
        self._next.append(tuple(reached))
        faults = tuple(graph.faults(state))
        for words, after in faults:
            self._reach(Move(index, words), after)
        for words, after in (*steps, *faults):
            oracle = graph.broken(after) or graph.broken_by_step(state, after)
            if oracle is not None:
                return Finding(oracle, (*self._trace(index), words))
        return None

    def _reach(self, move: Move | None, state: StateT) -> int:
        index = self._ids.setdefault(self._graph.key(state), len(self._states))
        if index == len(self._states):
            self._states.append(state)
            self._moves.append(move)
        return index

    def _stuck(self) -> Finding | None:
        """Find the first state from which there is no way to a good end; the states are in breadth-first order."""
        for oracle, is_good in (
            ("O1 complete: the run can never end, whatever happens next", self._graph.is_complete),
            ("O5 quiet: the run ended, and something is left over for ever", self._graph.is_quiet),
        ):
            alive = self._from_which(is_good)
            lost = next((index for index, lives in enumerate(alive) if not lives), None)
            if lost is not None:
                end = self._graph.describe(self._states[self._farthest(lost)])
                return Finding(f"{oracle}. At the end {end}", self._trace(lost))
        return None

    def _from_which(self, is_good: Callable[[StateT], bool]) -> list[bool]:
        """Return of each state whether a good one can be reached from it without faults."""
        before: list[list[int]] = [[] for _ in self._states]
        for index, reached in enumerate(self._next):
            for after in reached:
                before[after].append(index)
        alive = [is_good(state) for state in self._states]
        waiting = [index for index, lives in enumerate(alive) if lives]
        while waiting:
            for index in before[waiting.pop()]:
                if not alive[index]:
                    alive[index] = True
                    waiting.append(index)
        return alive

    def _farthest(self, start: int) -> int:
        """Return the state that a breadth-first walk without faults meets last."""
        seen, waiting, last = {start}, deque([start]), start
        while waiting:
            last = waiting.popleft()
            new = [index for index in self._next[last] if index not in seen]
            seen.update(new)
            waiting.extend(new)
        return last

    def _trace(self, index: int) -> tuple[str, ...]:
        words: list[str] = []
        move = self._moves[index]
        while move is not None:
            words.append(move.words)
            move = self._moves[move.before]
        return tuple(reversed(words))
