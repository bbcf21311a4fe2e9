"""Dropout masks as a hash of (client's seed, step, call, element), so that every path draws the same.

The word ``w`` of the dropout call ``c`` (from 0) in the local step ``s`` (from 1) of a client with seed ``k`` is
an element of a SplitMix64 sequence (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators",
section 4) that a sequence of sequences starts; with its gamma G and finaliser mix, modulo 2^64:

    mix(mix(mix(k + s G) + (c + 1) G) + (w + 1) G)

It holds the lanes of the elements 4 w to 4 w + 3, 16 bits each, the lowest first. An element is dropped if its lane,
as a signed number, is less than round(65536 p) - 32768: p counts to a multiple of 2^-16. Elements are numbered row by
row with the examples first, wherever the module keeps their axis: padding at the end of a batch changes no example's
numbers. A call that drops nothing (p = 0, or in evaluation) has no number.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa.core.layout import Array
from hansa.core.streams import mix

_GAMMA: Final = 0x9E3779B97F4A7C15
_WORDS: Final = 2**64
_LANES: Final = 4
_HALF: Final = 2**15


def masks(seeds: Array, step: int, call: int, count: int, p: float) -> NDArray[np.float32]:
    """Return the masks of one dropout call for each client: float32 [n, count], 0 or 1 / (1 - p).

    ``seeds`` is int64 or uint64 [n]; ``step`` counts from 1, ``call`` from 0. With p = 1 all are 0.
    """
    keys = mix(seeds.astype(np.uint64) + np.uint64(step * _GAMMA % _WORDS))
    keys = mix(keys + np.uint64((call + 1) * _GAMMA % _WORDS))
    offsets = np.arange(1, -(-count // _LANES) + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    lanes = mix(keys[:, None] + offsets).astype("<u8", copy=False).view("<i2")[:, :count]
    least = round(p * 2 * _HALF) - _HALF
    if least >= _HALF:
        return np.zeros(lanes.shape, dtype=np.float32)
    scaled: NDArray[np.float32] = np.multiply(lanes >= np.int16(least), np.float32(1 / (1 - p)), dtype=np.float32)
    return scaled
