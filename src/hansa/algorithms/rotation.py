"""The randomised Hadamard rotation: spreads large entries over a block, with signs that everybody knows.

Source: Suresh, Yu, Kumar, McMahan 2017, "Distributed mean estimation with limited communication", section 3,
https://arxiv.org/abs/1611.00429.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from hansa.core.layout import Array, Floats
from hansa.core.streams import Streams


def padded(values: Floats, block: int) -> Floats:
    """Return values [n, d] with zeros at the end, as [n, blocks, block]."""
    count, size = values.shape
    blocks = -(-size // block)
    wide = np.zeros((count, blocks * block), dtype=np.float32)
    wide[:, :size] = values
    return wide.reshape(count, blocks, block)


def signs(length: int, round_number: int, streams: Streams) -> Floats:
    """Return the public signs of a round, 1 or -1: float32 [length]."""
    words = streams.of("rotation", round_number).coins().words(-(-length // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8))[:length]
    return 1 - 2 * bits.astype(np.float32)


def hadamard(blocks: Array) -> Array:
    """Return the orthonormal Walsh-Hadamard transform of the last axis, its own inverse, as two products.

    The axis has a power of two entries; the result has the type of ``blocks``.
    """
    size = blocks.shape[-1]
    left = 1 << (size.bit_length() - 1) // 2
    right = size // left
    square = blocks.reshape(*blocks.shape[:-1], left, right)
    turned = _matrix(left) @ square @ _matrix(right)
    scaled: Array = turned.reshape(blocks.shape) / blocks.dtype.type(np.sqrt(size))
    return scaled


@cache
def _matrix(size: int) -> Floats:
    if size == 1:
        return np.ones((1, 1), dtype=np.float32)
    half = _matrix(size // 2)
    matrix: Floats = np.block([[half, half], [half, -half]]).astype(np.float32)
    return matrix
