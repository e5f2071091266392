"""The graph algorithms against the plainest ones that do the same."""

from collections.abc import Mapping
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from schemas.graph import components, find_loops, first_unreached, preceding, reached_from

NODES = "abcdefgh"
GRAPHS = st.lists(st.tuples(st.sampled_from(NODES), st.sampled_from(NODES)), unique=True, max_size=20).map(
    lambda edges: {node: [end for start, end in edges if start == node] for node in NODES}
)

Graph = Mapping[str, list[str]]


def leads(graph: Graph, start: str, end: str) -> bool:
    """Tell whether a way of at least one edge leads from *start* to *end*."""
    reached = set(graph[start])
    for _ in NODES:
        reached |= {further for node in reached for further in graph[node]}
    return end in reached


@given(GRAPHS)
def test_a_node_is_reached_when_a_way_leads_to_it(graph: Graph) -> None:
    assert reached_from("a", graph) == {"a"} | {node for node in NODES if leads(graph, "a", node)}


@given(GRAPHS)
def test_a_node_precedes_those_that_it_leads_to(graph: Graph) -> None:
    pairs = {(one, two) for one in NODES for two in NODES}

    assert preceding(pairs, graph) == {(one, two) for one, two in pairs if one != two and leads(graph, one, two)}


@given(GRAPHS)
def test_components_come_before_those_that_they_lead_to(graph: Graph) -> None:
    ordered = components(graph)
    number = {node: index for index, component in enumerate(ordered) for node in component}

    assert sorted(number) == sorted(NODES)
    for one in NODES:
        assert all(number[one] <= number[end] for end in graph[one])
        for two in NODES:
            both_ways = one == two or (leads(graph, one, two) and leads(graph, two, one))
            assert both_ways == (number[one] == number[two])


@given(GRAPHS)
def test_without_the_edges_that_close_loops_there_is_none(graph: Graph) -> None:
    loops = find_loops(graph)
    closing = {(loop.source, loop.target) for loop in loops}
    rest = {node: [end for end in ends if (node, end) not in closing] for node, ends in graph.items()}

    assert not any(leads(rest, node, node) for node in NODES)
    for loop in loops:
        way = [*loop.way, loop.target]
        assert loop.length == len(loop.way)
        assert loop.way[-1] == loop.source
        assert all(end in graph[start] for start, end in pairwise(way))


@given(GRAPHS)
def test_one_node_of_each_group_that_nothing_leads_to_is_named(graph: Graph) -> None:
    reached = reached_from("a", graph)

    firsts = first_unreached(reached, graph)

    left = set(NODES) - reached
    assert {node for node in left if any(node == first or leads(graph, first, node) for first in firsts)} == left
    assert not any(leads(graph, one, two) for one in firsts for two in firsts if one != two)
