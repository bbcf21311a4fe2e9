"""Gathering is what a plain loop over clients would give; names are made when asked for."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.data.clients import ClientExamples
from hansa.data.rows import ClientRows, Names
from hansa.data.stores import ArrayStore, TextStore


@given(st.data())
def test_gather_equals_a_loop_over_clients(data):
    numbers = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=40)))
    x = np.arange(len(numbers) * 3, dtype=np.float32).reshape(-1, 3)
    part = ClientExamples(Names.dealt(5), ArrayStore(x, numbers % 2), ClientRows.from_numbers(numbers, 5))
    ordinals = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=6)))
    sizes = part.sizes(ordinals)
    positions = np.array([[data.draw(st.integers(-1, size - 1)) for _ in range(3)] for size in sizes.tolist()])
    gathered_x, gathered_y = part.gather(ordinals, positions)
    assert gathered_x.shape == (len(ordinals), 3, 3)
    assert gathered_y.dtype == np.int64
    for i, ordinal in enumerate(ordinals):
        own = np.flatnonzero(numbers == ordinal)
        assert sizes[i] == len(own)
        for j, position in enumerate(positions[i]):
            if position >= 0:
                assert np.array_equal(gathered_x[i, j], x[own[position]])
                assert gathered_y[i, j] == numbers[own[position]] % 2


def test_a_position_past_the_end_never_shows_the_next_client():
    rows = ClientRows.contiguous(np.array([2, 3]))
    with pytest.raises(IndexError):
        rows.at(np.array([0]), np.array([[2]]))


def test_padding_of_an_empty_client_is_some_row():
    rows = ClientRows.contiguous(np.array([2, 0]))
    assert rows.at(np.array([1]), np.array([[-1]])).shape == (1, 1)


def test_subset_keeps_each_clients_rows():
    rows = ClientRows.from_numbers(np.array([1, 0, 2, 1, 2, 2]), 3).subset(np.array([2, 0]))
    assert rows.order.tolist() == [2, 4, 5, 1]
    assert rows.all_sizes.tolist() == [3, 1]


def test_bytes_become_numbers_between_0_and_1():
    store = ArrayStore(np.array([[0, 51, 255]], dtype=np.uint8), np.array([1]), "unit")
    x, _ = store.take(np.array([[0, 0]]))
    assert x.dtype == np.float32
    assert x.tolist() == [[[0.0, np.float32(0.2), 1.0]] * 2]


def test_an_unaligned_array_is_gathered_without_a_copy_of_all_of_it():
    raw = np.zeros(1 + 5 * 3 * 4, dtype=np.uint8)
    x = raw[1:].view(np.float32).reshape(5, 3)
    x[:] = np.arange(15).reshape(5, 3)
    assert not x.flags.aligned
    rows = np.array([[4, 0], [2, 2]])
    assert np.array_equal(ArrayStore(x, np.zeros(5, np.int64)).take(rows)[0], np.array(x)[rows])


def test_windows_of_text_are_cut_when_read():
    store = TextStore(np.arange(10, dtype=np.uint8), np.array([4, 9], dtype=np.int32), width=4)
    x, y = store.take(np.array([[0, 1]]))
    assert x.tolist() == [[[0, 1, 2, 3], [5, 6, 7, 8]]]
    assert y.tolist() == [[4, 9]]
    assert x.dtype == np.int64


def test_a_million_names_are_one_array():
    names = Names.dealt(1_000_000)
    assert names[7] == "client-000007"
    assert names[-1] == "client-999999"
    assert list(names[2:4]) == ["client-000002", "client-000003"]
    assert list(Names.dealt(2)) == ["client-000", "client-001"]
    assert len(pickle.dumps(names)) < 8_001_000


def test_listed_names_are_texts():
    names = Names.listing(np.array([10, 20])).subset(np.array([1]))
    assert list(names) == ["20"]
    assert all(type(name) is str for name in names)
