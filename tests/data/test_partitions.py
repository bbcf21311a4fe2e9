"""Every way of dealing is an exact cover, deterministic in the seed, and does what its paper says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.errors import DataError, PlanError
from hansa.core.schema import build_piece, to_mapping
from hansa.core.streams import Streams
from hansa.data.partitions import Dirichlet, Iid, Natural, Quantity, Shards, checked


def stream(seed=0):
    return Streams(seed).of("partition")


def partitions(clients):
    return st.one_of(
        st.just(Iid(clients=clients)),
        st.floats(1e-3, 1e3).map(lambda alpha: Dirichlet(clients=clients, alpha=alpha)),
        st.just(Shards(clients=clients, per_client=2)),
        st.floats(0, 4).map(lambda sigma: Quantity(clients=clients, sigma=sigma)),
    )


@given(st.data(), st.integers(0, 2**32))
def test_each_example_has_one_client_and_no_client_is_empty(data, seed):
    clients = data.draw(st.integers(1, 12))
    labels = np.array(data.draw(st.lists(st.integers(0, 5), min_size=2 * clients, max_size=80)))
    partition = data.draw(partitions(clients))
    numbers, count = checked(partition.deal(labels, stream(seed)), len(labels))
    assert count == clients
    assert (np.bincount(numbers, minlength=clients) > 0).all()
    assert np.array_equal(numbers, partition.deal(labels, stream(seed)))


@pytest.mark.parametrize(
    "partition", [Iid(clients=10), Dirichlet(clients=10, alpha=1.0), Shards(clients=10), Quantity(clients=10)]
)
def test_another_seed_deals_differently(partition):
    labels = np.arange(500) % 5
    assert not np.array_equal(partition.deal(labels, stream(1)), partition.deal(labels, stream(2)))


def test_iid_sizes_differ_by_at_most_one():
    sizes = np.bincount(Iid(clients=7).deal(np.zeros(100, dtype=np.int64), stream()))
    assert sizes.max() - sizes.min() <= 1


def test_shards_give_a_client_few_classes():
    labels = np.repeat(np.arange(10), 100)
    numbers = Shards(clients=50, per_client=2).deal(labels, stream())
    classes = [len(np.unique(labels[numbers == client])) for client in range(50)]
    assert max(classes) == 2
    assert np.bincount(numbers).tolist() == [20] * 50


def test_shards_cut_real_valued_labels_by_their_order():
    labels = np.random.default_rng(0).normal(size=100).astype(np.float32)
    numbers = Shards(clients=10, per_client=1).deal(labels, stream())
    ranges = sorted((labels[numbers == client].min(), labels[numbers == client].max()) for client in range(10))
    assert all(high <= low for (_, high), (low, _) in pairwise(ranges))


def test_dirichlet_keeps_sizes_and_moves_from_one_class_each_to_the_pooled_mix():
    labels = np.repeat(np.arange(4), [400, 300, 200, 100])

    def skew(alpha):
        numbers = Dirichlet(clients=20, alpha=alpha).deal(labels, stream(3))
        assert np.bincount(numbers).tolist() == [50] * 20
        shares = np.stack([np.bincount(labels[numbers == c], minlength=4) / 50 for c in range(20)])
        return np.abs(shares - [0.4, 0.3, 0.2, 0.1]).sum(axis=1).mean() / 2

    assert skew(1e6) < 0.1 < skew(1.0) < skew(1e-3)
    assert skew(1e-3) > 0.5


def test_quantity_sizes_spread_with_sigma():
    labels = np.zeros(10_000, dtype=np.int64)
    even, uneven = (np.bincount(Quantity(clients=50, sigma=s).deal(labels, stream())) for s in (0.0, 2.0))
    assert even.tolist() == [200] * 50
    assert uneven.max() > 10 * np.median(uneven)
    assert uneven.min() >= 1


@pytest.mark.parametrize(
    "partition", [Iid(clients=9), Dirichlet(clients=9, alpha=1), Shards(clients=4), Quantity(clients=9)]
)
def test_more_clients_than_examples_are_refused_at_their_key(partition):
    with pytest.raises(PlanError) as caught:
        partition.deal(np.zeros(7, dtype=np.int64), stream())
    assert caught.value.problems[0].path == "data.partition.clients"


def test_dirichlet_refuses_a_real_valued_label():
    with pytest.raises(PlanError, match="real-valued"):
        Dirichlet(clients=2, alpha=1.0).deal(np.zeros(9, dtype=np.float32), stream())


@pytest.mark.parametrize(
    "numbers",
    [np.zeros(3, np.int64), np.array([0, 0, 2, 2]), np.array([0, -1, 0, 0]), np.zeros(4), np.array([0, 9, 1, 2])],
)
def test_a_faulty_partition_of_the_users_own_is_named(numbers):
    with pytest.raises(DataError, match="A partition gives every example"):
        checked(numbers, 4)


@pytest.mark.parametrize(
    "mapping",
    [
        {"kind": "natural"},
        {"kind": "iid", "clients": 3},
        {"kind": "dirichlet", "clients": 3, "alpha": 0.5},
        {"kind": "shards", "clients": 3, "per_client": 2},
        {"kind": "quantity", "clients": 3, "sigma": 0.5},
    ],
)
def test_partitions_are_written_in_plans(mapping):
    partition, problems = build_piece("partition", mapping, "data.partition")
    assert not problems
    assert to_mapping(partition) == {key: value for key, value in mapping.items() if key != "kind"}


def test_bounds_are_checked_at_their_key():
    _, problems = build_piece("partition", {"kind": "dirichlet", "clients": 0, "alpha": 0}, "data.partition")
    assert {problem.path for problem in problems} == {"data.partition.clients", "data.partition.alpha"}


def test_only_a_source_knows_its_own_clients():
    with pytest.raises(PlanError, match="no clients of its own"):
        Natural().deal(np.zeros(3), stream())


KINDS = [
    Iid(clients=7),
    Dirichlet(clients=7, alpha=2.0),
    Shards(clients=7, per_client=2),
    Quantity(clients=7, sigma=0.0),
    Quantity(clients=7, sigma=1.0),
]


@pytest.mark.parametrize("partition", KINDS, ids=str)
def test_over_many_seeds_every_client_is_as_large_and_every_example_as_likely_anywhere(partition):
    labels, rounds = np.arange(31) % 3, 3000
    dealt = np.stack([partition.deal(labels, stream(seed)) for seed in range(rounds)])
    sizes = np.stack([np.bincount(numbers, minlength=7) for numbers in dealt])
    standard_error = sizes.std(axis=0) / np.sqrt(rounds)
    assert (np.abs(sizes.mean(axis=0) - 31 / 7) <= 5 * standard_error + 1e-9).all()
    where = np.stack([(dealt == client).mean(axis=0) for client in range(7)])
    assert np.abs(where - 1 / 7).max() < 5.5 * np.sqrt(1 / 7 * 6 / 7 / rounds)


@pytest.mark.parametrize("partition", KINDS, ids=str)
def test_which_examples_of_a_class_meet_does_not_depend_on_their_order(partition):
    labels, rounds = np.repeat(np.arange(3), [12, 10, 9]), 3000
    dealt = np.stack([partition.deal(labels, stream(seed)) for seed in range(rounds)])
    same = (dealt[:, :12, None] == dealt[:, None, :12]).mean(axis=0)[np.triu_indices(12, 1)]
    mean = same.mean()
    assert np.abs(same - mean).max() < 5.5 * np.sqrt(mean * (1 - mean) / rounds)


def test_dirichlet_mixes_spread_as_the_law_says():
    labels = np.arange(20_000) % 4
    numbers = Dirichlet(clients=200, alpha=20.0).deal(labels, stream(5))
    shares = np.stack([np.bincount(labels[numbers == client], minlength=4) / 100 for client in range(200)])
    law = 0.25 * 0.75 * (1 / 21 + 20 / 21 / 100)  # Dirichlet, then a multinomial of 100
    assert np.abs(shares.var(axis=0).mean() / law - 1) < 0.25
