"""The graph of a secure sum: regular, the same for all who look, and as large as tail bounds say."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.errors import RefusedError
from hansa.core.ring import Ring, Segment
from hansa.core.secure_aggregation import SecureAggregation
from hansa.secagg import planned
from hansa.secagg.graph import Graph
from hansa.secagg.parameters import GraphParameters, fewest_clients, protects, smallest_graph
from hansa.secagg.planned import task_of
from hansa.secagg.roster import Roster
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
    # clients: (curious 5%/10%, malicious 5%/5%, 5%/10%, 10%/10%), each (neighbours, threshold)
    100: ((16, 7), (36, 31), (56, 46), (66, 56)),
    500: ((32, 17), (126, 106), (216, 175), (258, 214)),
    1000: ((36, 19), (154, 129), (292, 236), (364, 300)),
    10000: ((42, 22), (208, 173), (454, 365), (606, 496)),
}


@pytest.mark.parametrize("clients", [100, 500, 1000, pytest.param(10000, marks=pytest.mark.slow)])
def test_the_smallest_graphs_are_those_of_the_table(clients):
    cases = [("curious", 0.05, 0.1), *(("malicious", *each) for each in ((0.05, 0.05), (0.05, 0.1), (0.1, 0.1)))]
    for expected, (server, corrupt, dropped) in zip(TABLE[clients], cases, strict=True):
        found = smallest_graph(clients, corrupt=corrupt, dropped=dropped, server=server)
        assert found == GraphParameters(*expected)


def spread(marked, others, drawn):
    """Return the chance of each number of marked ones among those drawn, by its definition."""
    whole = comb(others, drawn)
    return [Fraction(comb(marked, each) * comb(others - marked, drawn - each), whole) for each in range(drawn + 1)]


@pytest.mark.parametrize(
    ("clients", "corrupt", "dropped"), [(20, 1, 0.1), (100, 1, 0.1), (100, 5, 0.1), (300, 30, 0.05)]
)
def test_against_a_server_that_lies_nobody_gives_away_two_secrets_and_no_piece_of_the_circle_is_cut_off(
    clients, corrupt, dropped
):
    """Both chances by their definition, for the graph that is found and for one of two neighbours fewer."""
    found = smallest_graph(clients, corrupt=Fraction(corrupt, clients), dropped=dropped, server="malicious")

    def exposed(k, t):
        # honest holders of a client's secrets, itself among them: k + 1 - c; each gives one share of one kind
        both = sum(chance for c, chance in enumerate(spread(corrupt, clients - 1, k)) if 2 * (t - c) <= k + 1 - c)
        # at the end of a piece: itself, the k/2 on its own side, colluders beyond, and those whom it believes gone
        cut = sum(
            chance for c, chance in enumerate(spread(corrupt, clients - 1, k // 2)) if 1 + k // 2 + c + (k + 1 - t) >= t
        )
        return clients * both + 2 * clients * cut

    def lost(k, t):
        gone = spread(int(clients * dropped), clients - 1, k)
        return clients * sum(chance for many, chance in enumerate(gone) if k - many < t)

    k, t = found.neighbours, found.threshold
    assert exposed(k, t) < Fraction(1, 2**40)
    assert lost(k, t) < Fraction(1, 2**20)
    assert not any(
        exposed(k - 2, less) < Fraction(1, 2**40) and lost(k - 2, less) < Fraction(1, 2**20) for less in range(2, k - 1)
    )
    assert protects(found, clients, corrupt=corrupt, server="malicious")


def test_among_so_few_that_all_are_neighbours_the_share_of_colluders_decides():
    assert protects(GraphParameters(8, 8), 9, corrupt=6, server="malicious")
    assert not protects(GraphParameters(8, 8), 9, corrupt=7, server="malicious")
    assert protects(GraphParameters(8, 8), 9, corrupt=7)
    assert not protects(GraphParameters(8, 8), 9, corrupt=8)


def test_where_no_sparse_graph_protects_that_is_said():
    with pytest.raises(RefusedError, match="No sparse graph of 10 clients"):
        smallest_graph(10, corrupt=0.3, dropped=0.3, server="malicious")
    with pytest.raises(RefusedError, match="2 clients"):
        smallest_graph(2, corrupt=0, dropped=0)


@pytest.mark.parametrize(("clients", "colluding", "dropped"), [(300, 15, 0.1), (300, 30, 0.1), (400, 20, 0.3)])
def test_a_graph_that_was_sized_for_a_cohort_protects_no_small_part_of_it(clients, colluding, dropped):
    """As many colluding clients among fewer who share keys are a larger share of each one's neighbours."""
    graph = smallest_graph(clients, corrupt=Fraction(colluding, clients), dropped=dropped)
    fewest = fewest_clients(graph, clients, corrupt=colluding, dropped=dropped)
    assert graph.neighbours + 1 < fewest <= clients

    def exposed(count):
        """Return the chance that t of some client's neighbours collude, by its definition."""
        draws = comb(count - 1, graph.neighbours)
        fatal = [comb(colluding, bad) * comb(count - 1 - colluding, graph.neighbours - bad)
                 for bad in range(graph.threshold, graph.neighbours + 1)]  # fmt: skip
        return Fraction(count * sum(fatal), draws)

    assert all(exposed(count) < Fraction(1, 2**40) for count in range(fewest, clients + 1))
    assert exposed(fewest // 2) > Fraction(1, 2**30)


@pytest.mark.parametrize(("clients", "colluding", "dropped"), [(100, 20, 0.02), (150, 50, 0.05), (300, 50, 0.1)])
def test_from_the_fewest_on_every_number_is_safe_though_fewer_with_everybody_as_neighbours_are(
    clients, colluding, dropped
):
    corrupt = Fraction(colluding, clients - int(clients * dropped))
    graph = smallest_graph(clients, corrupt=corrupt, dropped=dropped, server="malicious")

    def safe(count):
        return protects(graph, count, corrupt=colluding, server="malicious")

    fewest = fewest_clients(graph, clients, corrupt=colluding, dropped=dropped, server="malicious")
    assert safe(graph.neighbours + 1)
    assert not safe(graph.neighbours + 2)
    assert graph.neighbours + 2 < fewest <= clients
    assert all(map(safe, range(fewest, clients + 1)))
    assert not safe(fewest - 1)


@pytest.mark.parametrize("server", ["curious", "malicious"])
def test_where_more_are_suspected_than_there_are_no_graph_protects(server):
    assert not protects(GraphParameters(8, 8), 20, corrupt=25, server=server)
    with pytest.raises(RefusedError, match="No sparse graph"):
        smallest_graph(12, corrupt=2, dropped=0.6, server=server)


def test_the_task_of_a_sparse_graph_begins_with_as_many_as_it_was_sized_for():
    identities = tuple(number.to_bytes(32, "big") for number in range(1000))
    ring, names = Ring((Segment("params", 3, 20),)), {"plan_sha256": "00" * 32, "model_sha256": "11" * 32}
    for colluding, fewest in ((1, 60), (50, 812)):
        section = SecureAggregation(
            protocol="secagg-plus", server="curious", registrar="server", minimum_cohort=60, maximum_cohort=1000,
            assumed_colluding=colluding, minimum_survivors=60,
        )  # fmt: skip
        task = task_of(section, ring, Roster(identities), run="r", round_number=1, attempt=1, **names)
        assert task.protocol == "secagg-plus"
        assert task.minimum_cohort == fewest


@pytest.mark.parametrize("clients", [20, 100, 400])
def test_clients_that_suspect_as_many_as_the_plan_accept_what_is_derived_from_it(clients):
    """Every graph that a plan gives protects the fewest who may begin, and all numbers of clients from there on."""
    identities = tuple(number.to_bytes(32, "big") for number in range(clients))
    ring, names = Ring((Segment("params", 3, 20),)), {"plan_sha256": "00" * 32, "model_sha256": "11" * 32}
    section = SecureAggregation(
        protocol="secagg-plus", server="malicious", registrar="authority", beacon="authority", maximum_cohort=clients
    )
    task = task_of(section, ring, Roster(identities), run="r", round_number=1, attempt=1, **names)
    task.check()
    assert (task.protocol, task.beacon) == ("secagg-plus", "authority")
    assert task.threshold <= task.minimum_survivors <= task.minimum_cohort < clients
    graph = GraphParameters(task.neighbours, task.threshold)
    assert all(
        protects(graph, count, corrupt=1, server="malicious") for count in range(task.minimum_cohort, clients + 1)
    )


def test_a_cohort_too_small_for_a_beacon_has_a_full_graph_and_with_too_many_colluders_none():
    identities = tuple(number.to_bytes(32, "big") for number in range(9))
    ring, names = Ring((Segment("params", 3, 20),)), {"plan_sha256": "00" * 32, "model_sha256": "11" * 32}

    def task(colluding):
        section = SecureAggregation(
            protocol="secagg-plus", server="malicious", registrar="authority", beacon="authority", maximum_cohort=9,
            minimum_cohort=8, minimum_survivors=8, assumed_colluding=colluding,
        )  # fmt: skip
        return task_of(section, ring, Roster(identities), run="r", round_number=1, attempt=1, **names)

    assert (task(4).protocol, task(4).beacon) == ("secagg-full", "")
    assert (task(3).minimum_cohort, task(4).minimum_cohort) == (8, 9)  # of 8, it stands three
    with pytest.raises(RefusedError, match="No sparse graph of 9 clients"):
        task(5)


@pytest.mark.parametrize(("server", "clients", "fewest"), [("malicious", 36, 35), ("curious", 20, 18)])
def test_a_full_graph_in_place_of_a_sparse_one_begins_from_where_it_stands_those_who_collude(server, clients, fewest):
    section = SecureAggregation(
        protocol="secagg-plus", server=server, registrar="authority", beacon="authority", maximum_cohort=36,
        minimum_cohort=14, minimum_survivors=14, assumed_colluding=12, expected_dropout=0.3,
    )  # fmt: skip
    assert planned.graph_of(section, clients)[0] == "secagg-full"
    assert planned.floors_of(section, clients) == (fewest, 14)
    for count in range(fewest, clients + 1):
        threshold = 2 * count // 3 + 1
        assert (threshold if server == "curious" else 2 * threshold - count) > 12


def test_of_a_curious_server_too_few_for_any_graph_have_none():
    section = SecureAggregation(
        protocol="secagg-plus", minimum_cohort=12, minimum_survivors=12, assumed_colluding=10, maximum_cohort=12
    )
    with pytest.raises(RefusedError, match="No sparse graph of 12 clients"):
        planned.graph_of(section, 12)
