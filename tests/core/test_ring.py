"""The ring of a secure sum: what is packed comes back, in exactly the bits that are promised, and adds in them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.core.errors import RefusedError
from hansa.core.ring import Ring, Segment

SEGMENTS = st.lists(st.tuples(st.integers(0, 40), st.integers(8, 64)), min_size=1, max_size=4)


def random_vector(ring, seed):
    coins = np.random.default_rng(seed)
    return tuple(
        coins.integers(0, each.mask, each.length, dtype=np.uint64, endpoint=True).astype(each.dtype)
        for each in ring.segments
    )


@given(SEGMENTS, st.integers(0, 2**32))
def test_what_is_packed_comes_back_in_the_fewest_bytes(shapes, seed):
    ring = Ring(tuple(Segment(f"s{k}", length, bits) for k, (length, bits) in enumerate(shapes)))
    vector = random_vector(ring, seed)
    packed = ring.pack(vector)
    assert len(packed) == ring.nbytes == sum(-(-length * bits // 8) for length, bits in shapes)
    for array, again in zip(vector, ring.unpack(packed), strict=True):
        assert again.dtype == array.dtype
        np.testing.assert_array_equal(again, array)


@given(SEGMENTS, st.integers(0, 2**32))
def test_the_packed_bits_are_the_integers_little_end_first(shapes, seed):
    ring = Ring(tuple(Segment(f"s{k}", length, bits) for k, (length, bits) in enumerate(shapes)))
    vector, expected = random_vector(ring, seed), b""
    for (length, bits), array in zip(shapes, vector, strict=True):
        number = sum(int(entry) << (bits * place) for place, entry in enumerate(array))
        expected += number.to_bytes(-(-length * bits // 8), "little")
    assert ring.pack(vector) == expected


@pytest.mark.parametrize("bits", [8, 13, 16, 20, 31, 32, 33, 63, 64])
def test_sums_wrap_modulo_two_to_the_bits(bits):
    ring = Ring((Segment("params", 3, bits),))
    (one,) = random_vector(ring, bits)
    (total,) = ring.reduce((one + one + one,))
    assert total.tolist() == [3 * int(entry) % 2**bits for entry in one]


def test_other_sizes_and_bits_after_the_end_are_refused():
    ring = Ring((Segment("params", 3, 10),))
    with pytest.raises(RefusedError, match="4 bytes"):
        ring.unpack(b"\0" * 5)
    with pytest.raises(RefusedError, match="after the last entry"):
        ring.unpack(b"\0\0\0\x80")
