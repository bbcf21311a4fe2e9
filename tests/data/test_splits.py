"""Splits are disjoint, stratified, deterministic, and one client's never depends on another's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.streams import Streams
from hansa.data.rows import ClientRows
from hansa.data.splits import choose_held_out, split, split_in_order

sizes = st.lists(st.integers(1, 30), min_size=1, max_size=8)
fractions = st.tuples(st.floats(0, 0.95), st.floats(0, 0.95)).filter(lambda pair: sum(pair) < 0.99)


def splitting(client_sizes, labels, pair, seed=0):
    rows = ClientRows.contiguous(np.array(client_sizes))
    parts = split(rows, labels, Streams(seed).of("split"), test_fraction=pair[0], validation_fraction=pair[1])
    return rows, parts


@given(sizes, fractions, st.integers(0, 1000), st.booleans())
def test_parts_are_disjoint_and_every_client_trains(client_sizes, pair, seed, in_order):
    labels = np.arange(sum(client_sizes)) % 3
    rows, parts = splitting(client_sizes, labels, pair, seed)
    if in_order:
        parts = split_in_order(rows, test_fraction=pair[0], validation_fraction=pair[1])
    assert not (parts.test & parts.validation).any()
    train = rows.where(~(parts.test | parts.validation))
    assert (train.all_sizes >= 1).all()
    tests = rows.where(parts.test).all_sizes
    assert (np.abs(tests - np.array(client_sizes) * pair[0]) <= 1 + 1e-9).all()
    validations = rows.where(parts.validation).all_sizes
    assert (np.abs(validations - np.array(client_sizes) * pair[1]) <= 2).all()


@given(st.integers(1, 200), st.integers(1, 200), st.floats(0.05, 0.9))
def test_classes_keep_their_share(zeros, ones, fraction):
    labels = np.array([0] * zeros + [1] * ones)
    _, parts = splitting([zeros + ones], labels, (fraction, 0.0))
    for label, count in ((0, zeros), (1, ones)):
        assert abs(parts.test[labels == label].sum() - fraction * count) <= 1.01


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=20), min_size=1, max_size=6),
    fractions,
    st.integers(0, 99),
)
def test_each_class_of_each_client_keeps_its_share(clients, pair, seed):
    labels = np.concatenate([np.array(client) for client in clients])
    rows, parts = splitting([len(client) for client in clients], labels, pair, seed)
    owners = rows.clients()
    for client in range(len(clients)):
        for label in range(5):
            own = (owners == client) & (labels == label)
            assert abs(parts.test[own].sum() - pair[0] * own.sum()) <= 1 + 1e-9
            assert abs(parts.validation[own].sum() - pair[1] * own.sum()) <= 2 + 1e-9


SMALL = {
    "2 of two classes": lambda rng: [rng.permutation([0, 1]) for _ in range(1000)],
    "4 balanced": lambda rng: [np.array([0, 0, 1, 1]) for _ in range(1000)],
    "3 and 1": lambda rng: [np.array([0, 0, 0, 1]) for _ in range(1000)],
    "4 and 1": lambda rng: [np.array([0, 1, 1, 1, 1]) for _ in range(1000)],
    "one of each of five": lambda rng: [np.arange(5) for _ in range(1000)],
    "5 to 15 of ten": lambda rng: [rng.integers(0, 10, rng.integers(5, 16)) for _ in range(1000)],
    "1 to 3 of three": lambda rng: [rng.integers(0, 3, rng.integers(1, 4)) for _ in range(1000)],
}


def assert_fair(chosen, kinds, fraction):
    """Assert that every kind's share of what is chosen is the fraction, within 5 binomial standard deviations."""
    totals = np.bincount(kinds)
    spread = 5 * np.sqrt(totals * fraction * (1 - fraction))
    assert (np.abs(np.bincount(kinds[chosen], minlength=len(totals)) - fraction * totals) <= spread).all()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("pair", [(0.25, 0.0), (0.2, 0.2), (0.0, 0.25), (0.1, 0.3)])
def test_over_many_small_clients_no_class_and_no_position_is_preferred(name, pair):
    clients = SMALL[name](np.random.default_rng(1))
    labels, lengths = np.concatenate(clients), [len(client) for client in clients]
    rows, parts = splitting(lengths, labels, pair)
    several = np.repeat(np.array(lengths) > 1, lengths)  # who has one example trains on it
    for part, fraction in ((parts.test, pair[0]), (parts.validation, pair[1])):
        # After testing, one example must be left to train: the smallest clients validate on a little less.
        share = part[several].mean() if part is parts.validation and pair[0] else fraction
        assert abs(share - fraction) < 0.1
        assert_fair(part[several], labels[several], share)
        assert_fair(part[several], rows.positions()[several], share)


def test_the_example_that_is_left_to_train_is_any():
    labels = np.tile([0, 1, 1], 1000)
    rows, parts = splitting([3] * 1000, labels, (0.95, 0.0))
    assert (rows.where(~parts.test).all_sizes >= 1).all()
    assert_fair(~parts.test, labels, (~parts.test).mean())


def test_classes_are_chosen_together_as_often_as_apart():
    labels = np.tile(np.arange(4), 4000)
    _, parts = splitting([4] * 4000, labels, (0.5, 0.0))
    tests = parts.test.reshape(-1, 4)
    assert (tests.sum(axis=1) == 2).all()
    together = (tests[:, :, None] & tests[:, None, :]).mean(axis=0)[~np.eye(4, dtype=bool)]
    assert np.abs(together - 1 / 6).max() < 0.03  # at random, each of six pairs


def test_a_split_depends_on_the_clients_own_labels_alone():
    first = [0, 1, 1, 2, 2, 2]
    _, one = splitting([6, 3], np.array([*first, 0, 0, 0]), (0.4, 0.2))
    _, other = splitting([6, 9], np.array([*first, *range(9)]), (0.4, 0.2))
    _, renamed = splitting([6], np.array(first) + 7, (0.4, 0.2))
    for a in (other, renamed):
        assert np.array_equal(one.test[:6], a.test[:6])
        assert np.array_equal(one.validation[:6], a.validation[:6])


@given(sizes, sizes)
def test_adding_clients_does_not_reshuffle_others(before, added):
    labels = np.arange(sum(before) + sum(added)) % 2
    _, few = splitting(before, labels, (0.3, 0.2))
    _, more = splitting(before + added, labels, (0.3, 0.2))
    assert np.array_equal(few.test, more.test[: sum(before)])
    assert np.array_equal(few.validation, more.validation[: sum(before)])


def test_another_seed_splits_differently_and_the_same_seed_alike():
    labels = np.zeros(60, dtype=np.int64)
    first, same, other = (splitting([60], labels, (0.5, 0.0), seed)[1].test for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_neighbours_are_not_chosen_in_a_pattern():
    _, parts = splitting([1000], np.zeros(1000, dtype=np.int64), (0.25, 0.0))
    assert parts.test.sum() == 250
    assert len(set(np.diff(np.flatnonzero(parts.test)).tolist())) > 5


def test_text_is_tested_on_its_end():
    parts = split_in_order(ClientRows.contiguous(np.array([10, 1])), test_fraction=0.2, validation_fraction=0.1)
    assert np.flatnonzero(parts.test).tolist() == [8, 9]
    assert np.flatnonzero(parts.validation).tolist() == [7]


@pytest.mark.parametrize("count", [0, 1, 4])
def test_held_out_clients_are_chosen_by_the_seed(count):
    training, held_out = choose_held_out(5, count, Streams(3).of("split", 1))
    assert len(held_out) == count
    assert sorted([*training.tolist(), *held_out.tolist()]) == list(range(5))
    assert np.array_equal(held_out, choose_held_out(5, count, Streams(3).of("split", 1))[1])


def test_words_do_not_depend_on_how_clients_are_chunked(monkeypatch):
    labels = np.zeros(100, dtype=np.int64)
    _, whole = splitting([1, 60, 9, 30], labels, (0.4, 0.0))
    monkeypatch.setattr("hansa.data.splits._WORDS_AT_ONCE", 32)
    _, pieces = splitting([1, 60, 9, 30], labels, (0.4, 0.0))
    assert np.array_equal(whole.test, pieces.test)


def test_every_client_is_held_out_as_often():
    counts = np.zeros(20)
    for seed in range(2000):
        counts[choose_held_out(20, 5, Streams(seed).of("split", 1))[1]] += 1
    assert np.abs(counts / 2000 - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / 2000)


def test_a_new_client_takes_at_most_one_place_among_the_held_out():
    for seed in range(50):
        few, more = (set(choose_held_out(n, 5, Streams(seed).of("split", 1))[1].tolist()) for n in (20, 21))
        assert len(few - more) <= 1
        assert more - few <= {20}
