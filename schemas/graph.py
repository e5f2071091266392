"""Directed graphs of names: loops, reachability and order. It knows nothing of workflows.

Nothing here recurses and everything is about linear, because a graph may be a chain of 100,000 nodes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final

Successors = Mapping[str, Sequence[str]]  # every node is a key

_TARGETS_AT_ONCE: Final = 4096  # bits that each node carries during one pass; bounds the memory of `preceding`
_SHOWN_OF_LOOP: Final = 9


@dataclass(frozen=True, slots=True)
class Loop:
    """A way from a node back to itself, closed by the edge from `source` to `target`."""

    source: str
    target: str
    way: tuple[str, ...]  # from `target` towards `source`; cut when it is long
    length: int

    def __str__(self) -> str:
        hidden = self.length - len(self.way)
        shown = [*self.way, f"({hidden} more)"] if hidden else [*self.way]
        return " -> ".join([*shown, self.target])


def find_loops(successors: Successors) -> list[Loop]:
    """Return a loop for each edge that closes one on a depth-first walk; without these edges the graph has none."""
    return _Walk(successors).loops


def reached_from(start: str, successors: Successors) -> set[str]:
    """Return *start* and all nodes that a way leads to from there."""
    reached = {start}
    waiting = [start]
    while waiting:
        for node in successors[waiting.pop()]:
            if node not in reached:
                reached.add(node)
                waiting.append(node)
    return reached


def components(successors: Successors) -> list[list[str]]:
    """Return the strongly connected components, each before those that it leads to (Kosaraju's algorithm)."""
    predecessors = _reversed(successors)
    seen: set[str] = set()
    found: list[list[str]] = []
    for root in reversed(_Walk(successors).finished):
        if root in seen:
            continue
        component = [root]
        seen.add(root)
        for node in component:  # it grows while we go
            fresh = [before for before in dict.fromkeys(predecessors[node]) if before not in seen]
            seen.update(fresh)
            component.extend(fresh)
        found.append(component)
    return found


def preceding(pairs: Iterable[tuple[str, str]], successors: Successors) -> set[tuple[str, str]]:
    """Return those *pairs* whose first node has a way to the second; a node does not precede itself."""
    asked: dict[str, set[str]] = {}
    for one, two in pairs:
        asked.setdefault(one, set()).add(two)
    ordered = components(successors)
    number = {node: index for index, component in enumerate(ordered) for node in component}
    found: set[tuple[str, str]] = set()
    for targets in _chunks(list(asked)):
        passed = _passed(targets, ordered, number, successors)
        for index, one in enumerate(targets):
            found.update((one, two) for two in asked[one] if one != two and passed[number[two]] >> index & 1)
    return found


def first_unreached(reached: Set[str], successors: Successors) -> list[str]:
    """Return one node for each group of nodes outside *reached* that nothing outside of the group leads to."""
    left = {node: [to for to in ends if to not in reached] for node, ends in successors.items() if node not in reached}
    ordered = components(left)
    number = {node: index for index, component in enumerate(ordered) for node in component}
    led_to = {number[to] for node, ends in left.items() for to in ends if number[to] != number[node]}
    roots = {index for index in range(len(ordered)) if index not in led_to}
    firsts: dict[int, str] = {}
    for node in left:
        firsts.setdefault(number[node], node)
    return [node for index, node in firsts.items() if index in roots]


class _Walk:
    """One depth-first walk over the whole graph."""

    def __init__(self, successors: Successors) -> None:
        self.finished: list[str] = []  # a node stands behind all that it leads to, loops aside
        self.loops: list[Loop] = []
        self._successors = successors
        seen: set[str] = set()
        for root in successors:
            if root not in seen:
                self._walk_from(root, seen)

    def _walk_from(self, root: str, seen: set[str]) -> None:
        trail: list[str] = []
        position: dict[str, int] = {}
        ahead: list[Iterator[str]] = [iter((root,))]
        while ahead:
            for node in ahead[-1]:
                if node not in seen:
                    seen.add(node)
                    position[node] = len(trail)
                    trail.append(node)
                    ahead.append(iter(self._successors[node]))
                    break
                if node in position:
                    self.loops.append(_loop(trail, position[node]))
            else:
                ahead.pop()
                if trail:
                    del position[trail[-1]]
                    self.finished.append(trail.pop())


def _loop(trail: Sequence[str], start: int) -> Loop:
    way = tuple(trail[start : start + _SHOWN_OF_LOOP])
    return Loop(trail[-1], trail[start], way, len(trail) - start)


def _reversed(successors: Successors) -> dict[str, list[str]]:
    predecessors: dict[str, list[str]] = {node: [] for node in successors}
    for node, ends in successors.items():
        for end in ends:
            predecessors[end].append(node)
    return predecessors


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + _TARGETS_AT_ONCE] for start in range(0, len(names), _TARGETS_AT_ONCE))


def _passed(
    targets: Sequence[str], ordered: Sequence[Sequence[str]], number: Mapping[str, int], successors: Successors
) -> list[int]:
    """Return for each component which *targets* lie in it or before it, as bits."""
    passed = [0] * len(ordered)
    for index, target in enumerate(targets):
        passed[number[target]] |= 1 << index
    for component in ordered:
        bits = passed[number[component[0]]]
        for node in component:
            for end in successors[node]:
                passed[number[end]] |= bits
    return passed
