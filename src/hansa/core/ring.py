"""The integers that a secure sum adds: segments of a vector, each modulo a power of two, packed to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import RefusedError

UInts = NDArray[np.unsignedinteger[Any]]
RingVector = tuple[UInts, ...]
"""One array for each segment of a ring, of the segment's ``dtype``; entries below 2^bits."""

FEWEST_BITS: Final = 8
MOST_BITS: Final = 64

_GROUPS: Final = 1 << 14
"""Groups of entries that are packed at once: few enough for a cache."""


@dataclass(frozen=True)
class Segment:
    """A run of entries that are summed modulo ``2**bits``: a group of the layout, or lanes."""

    name: str
    length: int
    bits: int

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Return the smallest unsigned type that holds an entry; sums in it wrap modulo a multiple of 2^bits."""
        return np.dtype(np.uint16 if self.bits <= 16 else np.uint32 if self.bits <= 32 else np.uint64)

    @property
    def mask(self) -> int:
        """Return the largest entry."""
        return (1 << self.bits) - 1

    @property
    def nbytes(self) -> int:
        """Return the bytes of the packed entries: ceil(length * bits / 8)."""
        return -(-self.length * self.bits // 8)

    def packed(self, array: UInts) -> NDArray[np.uint8]:
        """Return entries, modulo 2^bits, in ``bits`` bits each: a view of the array where they fill its type."""
        return _packed(array if self.bits == 8 * array.itemsize else array & self.dtype.type(self.mask), self)


@dataclass(frozen=True)
class Ring:
    """The group in which one secure sum adds: the product of its segments' integers modulo 2^bits."""

    segments: tuple[Segment, ...]

    @property
    def nbytes(self) -> int:
        """Return the bytes of a packed vector."""
        return sum(segment.nbytes for segment in self.segments)

    def zeros(self) -> RingVector:
        """Return the neutral element."""
        return tuple(np.zeros(segment.length, segment.dtype) for segment in self.segments)

    def reduce(self, vector: Sequence[UInts]) -> RingVector:
        """Return the entries modulo their 2^bits; until then sums may wrap in their types, modulo a multiple."""
        return tuple(
            array if segment.bits == segment.dtype.itemsize * 8 else array & segment.dtype.type(segment.mask)
            for segment, array in zip(self.segments, vector, strict=True)
        )

    def pack(self, vector: Sequence[UInts]) -> bytes:
        """Return the entries, each segment's in ``bits`` bits, little end first, from a whole byte on."""
        return b"".join(segment.packed(array).data for segment, array in zip(self.segments, vector, strict=True))

    def unpack(self, content: bytes | memoryview) -> RingVector:
        """Return the vector of packed entries. RefusedError: another size, or bits after the last entry.

        Where entries fill their type the arrays are views of ``content``, which cannot be written to.
        """
        if len(content) != self.nbytes:
            raise _refused(f"A packed vector of this ring has {self.nbytes} bytes.", f"This one has {len(content)}.")
        vector, start, data = [], 0, np.frombuffer(content, np.uint8)
        for segment in self.segments:
            vector.append(_unpacked(data[start : start + segment.nbytes], segment))
            start += segment.nbytes
        return tuple(vector)


def _group(segment: Segment) -> tuple[int, int]:
    """Return how many entries fill how many words of the segment's type to the bit."""
    width = 8 * segment.dtype.itemsize
    common = gcd(width, segment.bits)
    return width // common, segment.bits // common


def _packed(array: UInts, segment: Segment) -> NDArray[np.uint8]:
    (size, words), dtype = _group(segment), segment.dtype.newbyteorder("<")
    if size == 1:
        return np.ascontiguousarray(array, dtype).view(np.uint8)
    groups = -(-segment.length // size)
    entries = _filled(array, groups * size).reshape(groups, size)
    packed = np.empty((groups, words), dtype)
    for start in range(0, groups, _GROUPS):
        rows = slice(start, start + _GROUPS)
        columns = np.ascontiguousarray(entries[rows].T)
        packed[rows] = np.stack([_word(columns, place, segment) for place in range(words)], axis=1)
    return packed.reshape(-1).view(np.uint8)[: segment.nbytes]


def _word(columns: UInts, place: int, segment: Segment) -> UInts:
    """Return one word of every group: the entries [in a group, groups] that have bits in it."""
    width, dtype = 8 * segment.dtype.itemsize, segment.dtype.type
    entry, shift = divmod(place * width, segment.bits)
    word: UInts = columns[entry] >> dtype(shift)
    for begin in range(segment.bits - shift, width, segment.bits):
        entry += 1
        word |= columns[entry] << dtype(begin)
    return word


def _unpacked(data: NDArray[np.uint8], segment: Segment) -> UInts:
    (size, words), dtype = _group(segment), segment.dtype
    if size == 1:
        return data.view(dtype.newbyteorder("<")).astype(dtype, copy=False)
    left = segment.length * segment.bits % 8
    if left and data[-1] >> left:
        raise _refused("The bits after the last entry of a packed vector are 0.", "Some are 1.")
    groups, width, mask = -(-segment.length // size), 8 * dtype.itemsize, dtype.type(segment.mask)
    packed = _filled(data, groups * words * dtype.itemsize).view(dtype.newbyteorder("<")).reshape(groups, words)
    entries = np.empty((groups, size), dtype)
    for start in range(0, groups, _GROUPS):
        rows = slice(start, start + _GROUPS)
        columns = np.ascontiguousarray(packed[rows].T, dtype)
        for place in range(size):
            word, shift = divmod(place * segment.bits, width)
            entry = columns[word] >> dtype.type(shift)
            if shift + segment.bits > width:  # it ends in the next word
                entry |= columns[word + 1] << dtype.type(width - shift)
            entries[rows, place] = entry & mask
    return entries.reshape(-1)[: segment.length]


def _filled(array: NDArray[Any], length: int) -> NDArray[Any]:
    """Return an array with zeros behind it up to a length."""
    if len(array) == length:
        return array
    filled = np.zeros(length, array.dtype)
    filled[: len(array)] = array
    return filled


def _refused(rule: str, found: str) -> RefusedError:
    return RefusedError("HANSA-RING-INVALID", rule=rule, found=found, action="Pack it as docs/reference says.")
