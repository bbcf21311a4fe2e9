"""The graph of a secure sum: regular, the same for all who look, and as large as tail bounds say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.errors import RefusedError
from hansa.secagg.graph import Graph
from hansa.secagg.parameters import GraphParameters, smallest_graph
from hansa.testing.secagg import Federation


def graph_of(clients, neighbours, *, gone=(), number=1):
    settings = {"neighbours": neighbours, "threshold": 2, "round": number}
    task = Federation(clients, protocol="secagg-plus", settings=settings).task
    return Graph(task, tuple(each for each in range(clients) if each not in gone))


@given(st.integers(3, 30), st.integers(1, 15), st.sets(st.integers(0, 29), max_size=5))
def test_neighbours_are_mutual_and_as_many_as_asked(clients, half, gone):
    graph = graph_of(clients, 2 * half, gone=gone)
    present = graph.advertised
    for client in present:
        around = graph.neighbours(client)
        assert len(around) == len(set(around)) == min(2 * half, len(present) - 1)
        assert client not in around
        assert set(around) <= set(present)
        assert all(client in graph.neighbours(other) for other in around)
        assert len(graph.holders_within(client, present)) == graph.holders


def test_each_round_and_each_set_of_clients_has_its_own_graph():
    rows = {
        tuple(graph_of(30, 6, number=number, gone=gone).neighbours(0)) for number in range(5) for gone in ((), (7,))
    }
    assert len(rows) == 10


def test_everybody_meets_everybody_over_rounds():
    met = {other for number in range(60) for other in graph_of(20, 4, number=number).neighbours(0)}
    assert met == set(range(1, 20))


TABLE = {
    # clients: (curious 5%/10%, malicious 5%/5%, 5%/10%, 10%/10%, 10%/30%), each (neighbours, threshold)
    100: ((16, 7), (16, 11), (26, 16), (32, 22), (72, 42)),
    500: ((32, 17), (44, 31), (66, 44), (82, 57), (276, 164)),
    1000: ((36, 19), (52, 37), (74, 49), (96, 67), (414, 247)),
    10000: ((42, 22), (62, 44), (94, 62), (122, 85), None),
}


@pytest.mark.parametrize("clients", TABLE)
def test_the_smallest_graphs_are_those_of_the_table(clients):
    cases = [("curious", 0.05, 0.1), *(("malicious", *each) for each in ((0.05, 0.05), (0.05, 0.1), (0.1, 0.1)))]
    if clients <= 500:
        cases.append(("malicious", 0.1, 0.3))
    for expected, (server, corrupt, dropped) in zip(TABLE[clients], cases, strict=False):
        found = smallest_graph(clients, corrupt=corrupt, dropped=dropped, server=server)
        assert found == GraphParameters(*expected)


@pytest.mark.slow
def test_the_largest_graph_of_the_table():
    assert smallest_graph(1000, corrupt=0.1, dropped=0.3, server="malicious") == GraphParameters(414, 247)


def test_where_no_sparse_graph_protects_that_is_said():
    with pytest.raises(RefusedError, match="No sparse graph of 10 clients"):
        smallest_graph(10, corrupt=0.3, dropped=0.3, server="malicious")
    with pytest.raises(RefusedError, match="2 clients"):
        smallest_graph(2, corrupt=0, dropped=0)
