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
        """Return the vector of packed entries. RefusedError: another size, or bits after the last entry."""
        if len(content) != self.nbytes:
            raise _refused(f"A packed vector of this ring has {self.nbytes} bytes.", f"This one has {len(content)}.")
        vector, start, data = [], 0, np.frombuffer(content, np.uint8)
        for segment in self.segments:
            vector.append(_unpacked(data[start : start + segment.nbytes], segment))
            start += segment.nbytes
        return tuple(vector)


def _packed(array: UInts, segment: Segment) -> bytes:
    octets = (
        np.ascontiguousarray(array, segment.dtype.newbyteorder("<"))
        .view(np.uint8)
        .reshape(segment.length, segment.dtype.itemsize)
    )
    if segment.bits % 8 == 0:
        return octets[:, : segment.bits // 8].tobytes()
    bits = np.unpackbits(octets, axis=1, count=segment.bits, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def _unpacked(data: NDArray[np.uint8], segment: Segment) -> UInts:
    octets = np.zeros((segment.length, segment.dtype.itemsize), np.uint8)
    if segment.bits % 8 == 0:
        octets[:, : segment.bits // 8] = data.reshape(segment.length, segment.bits // 8)
    else:
        bits = np.unpackbits(data, bitorder="little")
        used = segment.length * segment.bits
        if bits[used:].any():
            raise _refused("The bits after the last entry of a packed vector are 0.", "Some are 1.")
        small = np.packbits(bits[:used].reshape(segment.length, segment.bits), axis=1, bitorder="little")
        octets[:, : small.shape[1]] = small
    return octets.view(segment.dtype.newbyteorder("<")).reshape(-1).astype(segment.dtype)


def _refused(rule: str, found: str) -> RefusedError:
    return RefusedError("HANSA-RING-INVALID", rule=rule, found=found, action="Pack it as docs/reference says.")
