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
    wanted = np.minimum(np.floor(np.array(client_sizes) * pair[0] + 0.5), np.array(client_sizes) - 1)
    assert np.array_equal(tests, wanted)
    validations = rows.where(parts.validation).all_sizes
    assert (np.abs(validations - np.array(client_sizes) * pair[1]) <= 2).all()


@given(st.integers(1, 200), st.integers(1, 200), st.floats(0.05, 0.9))
def test_classes_keep_their_share(zeros, ones, fraction):
    labels = np.array([0] * zeros + [1] * ones)
    _, parts = splitting([zeros + ones], labels, (fraction, 0.0))
    for label, count in ((0, zeros), (1, ones)):
        assert abs(parts.test[labels == label].sum() - fraction * count) <= 1.01


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
