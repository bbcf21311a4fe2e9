"""The integers that a secure sum adds: segments of a vector, each modulo a power of two, packed to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import RefusedError

UInts = NDArray[np.unsignedinteger[Any]]
RingVector = tuple[UInts, ...]
"""One array for each segment of a ring, of the segment's ``dtype``; entries below 2^bits."""

FEWEST_BITS: Final = 8
MOST_BITS: Final = 64


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
        return b"".join(
            _packed(array, segment) for segment, array in zip(self.segments, self.reduce(vector), strict=True)
        )

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


def _packed(array: UInts, segment: Segment) -> bytes:
    little = np.ascontiguousarray(array, segment.dtype.newbyteorder("<"))
    if segment.bits == segment.dtype.itemsize * 8:
        return little.tobytes()
    if segment.bits % 8 == 0:
        octets = little.view(np.uint8).reshape(segment.length, segment.dtype.itemsize)
        return octets[:, : segment.bits // 8].tobytes()
    entries = _eights(array, segment.dtype)
    octets = np.empty((segment.bits, entries.shape[1]), np.uint8)
    for place in range(segment.bits):
        entry, shift = divmod(8 * place, segment.bits)
        word = entries[entry] >> segment.dtype.type(shift)
        if segment.bits - shift < 8:  # the next entry begins within this byte
            word |= entries[entry + 1] << segment.dtype.type(segment.bits - shift)
        octets[place] = word.astype(np.uint8)
    return octets.T.tobytes()[: segment.nbytes]


def _unpacked(data: NDArray[np.uint8], segment: Segment) -> UInts:
    dtype = segment.dtype
    if segment.bits == dtype.itemsize * 8:
        return data.view(dtype.newbyteorder("<")).astype(dtype, copy=False)
    if segment.bits % 8 == 0:
        octets = np.zeros((segment.length, dtype.itemsize), np.uint8)
        octets[:, : segment.bits // 8] = data.reshape(segment.length, segment.bits // 8)
        return octets.view(dtype.newbyteorder("<")).reshape(-1).astype(dtype, copy=False)
    left = segment.length * segment.bits % 8
    if left and data[-1] >> left:
        raise _refused("The bits after the last entry of a packed vector are 0.", "Some are 1.")
    groups = -(-segment.length // 8)
    padded = np.zeros(groups * segment.bits, np.uint8)
    padded[: len(data)] = data
    columns = np.ascontiguousarray(padded.reshape(groups, segment.bits).T)
    entries = np.empty((8, groups), dtype)
    for place in range(8):
        first, shift = divmod(place * segment.bits, 8)
        last = ((place + 1) * segment.bits - 1) // 8
        entries[place] = columns[first] >> np.uint8(shift)
        for octet in range(first + 1, last + 1):
            entries[place] |= columns[octet].astype(dtype) << dtype.type(8 * (octet - first) - shift)
    entries &= dtype.type(segment.mask)
    return np.ascontiguousarray(entries.T).reshape(-1)[: segment.length]


def _eights(array: UInts, dtype: np.dtype[np.unsignedinteger[Any]]) -> UInts:
    """Return entries as [8, ceil(length / 8)]: eight entries fill a whole number of bytes, whatever their bits."""
    padded = np.zeros(-(-len(array) // 8) * 8, dtype)
    padded[: len(array)] = array
    return np.ascontiguousarray(padded.reshape(-1, 8).T)


def _refused(rule: str, found: str) -> RefusedError:
    return RefusedError("HANSA-RING-INVALID", rule=rule, found=found, action="Pack it as docs/reference says.")
