"""Updates as bytes, and back."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.layout import COUNT, Branch, Layout, Parameter
from hansa.core.nouns import Batch
from hansa.wire.update_checks import UpdateCheck
from hansa.wire.updates import decode_tallies, decode_update, encode_tallies, encode_update


def layout_of(size):
    return Layout((Branch("params", (Parameter("w", (size,)),)),), (COUNT,))


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20), st.integers(0, 1))
def test_an_update_comes_back_bit_for_bit(values, count):
    layout = layout_of(len(values))
    batch = Batch(np.array([values], dtype=np.float32), np.array([[count]]), layout)
    content = encode_update(batch)
    UpdateCheck(layout).whole(content, hashlib.sha256(content).hexdigest())
    read = decode_update(content, layout)
    assert read.values.tobytes() == batch.values.tobytes()
    assert read.values.dtype == np.float32
    assert read.values.shape == batch.values.shape
    assert read.lanes.tolist() == [[count]]
    assert read.side == {}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint32", "uint64", "float16", "float64", "bool"])
def test_what_transforms_made_comes_back_as_it_was(dtype):
    layout = layout_of(4)
    side = {"scales": np.array([[[1, 0], [1, 1]]], dtype=dtype), "one": np.ones(1, dtype=np.float32)}
    batch = Batch(np.array([[1, 0, 1]], dtype=dtype), np.array([[1]]), layout, side)
    content = encode_update(batch)
    UpdateCheck(layout).whole(content, hashlib.sha256(content).hexdigest())
    read = decode_update(content, layout)
    assert read.values.dtype == dtype
    assert read.values.tolist() == batch.values.tolist()
    assert read.side.keys() == side.keys()
    for name, array in side.items():
        assert read.side[name].dtype == array.dtype
        assert read.side[name].tolist() == array.tolist()


def test_only_the_first_of_a_batch_travels_and_views_are_written_whole():
    values = np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2]
    content = encode_update(Batch(values, np.array([[1], [0]]), layout_of(3)))
    assert decode_update(content, layout_of(3)).values.tolist() == [[0, 2, 4]]


@given(st.dictionaries(st.sampled_from(["auc", "loss", "é"]), st.lists(st.floats(allow_nan=False), max_size=5)))
def test_tallies_come_back(tallies):
    arrays = {name: np.array(tally, dtype=np.float64) for name, tally in tallies.items()}
    read = decode_tallies(encode_tallies(arrays))
    assert {name: tally.tolist() for name, tally in read.items()} == {k: v.tolist() for k, v in arrays.items()}


def test_equal_updates_are_equal_bytes():
    def content(order):
        side = {name: np.ones((1, 2), dtype=np.float32) for name in order}
        return encode_update(Batch(np.ones((1, 3), dtype=np.float32), np.array([[1]]), layout_of(3), side))

    assert content(["a", "b"]) == content(["b", "a"])
