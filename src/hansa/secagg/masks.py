"""Masks: streams of AES-256 in counter mode (NIST SP 800-38A, section 6.5), added to ring vectors chunk by chunk.

The mask of a key is its stream from counter 0, cut into the ring's segments in order, an entry in as many bytes as
its type has, little end first. A key makes one mask, once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hansa.core.ring import Ring, RingVector
from hansa.secagg.encoding import Buffer

CHUNK: Final = 1 << 20
"""Bytes that are expanded at once: few enough for a cache, enough that threads seldom wait for each other."""

_COUNTER: Final = bytes(16)
_ZEROS: Final = memoryview(bytes(CHUNK))


class Mask(NamedTuple):
    """A key of a mask, and whether it is taken away."""

    key: bytes
    minus: bool = False


def stream(key: bytes, size: int) -> bytes:
    """Return the first bytes of a key's stream."""
    return Cipher(algorithms.AES256(key), modes.CTR(_COUNTER)).encryptor().update(bytes(size))


def apply(masks: Iterable[Mask], total: RingVector) -> None:
    """Add masks to a vector, or take them away, in place; the entries wrap in their types."""
    buffer = bytearray(CHUNK + 15)
    for mask in masks:
        encryptor = Cipher(algorithms.AES256(mask.key), modes.CTR(_COUNTER)).encryptor()
        change = np.subtract if mask.minus else np.add
        for array in total:
            words = np.frombuffer(buffer, array.dtype.newbyteorder("<"), CHUNK // array.dtype.itemsize)
            for start in range(0, len(array), len(words)):
                part = array[start : start + len(words)]
                encryptor.update_into(_ZEROS[: part.nbytes], buffer)
                change(part, words[: len(part)], out=part)


def apply_on_threads(masks: Sequence[Mask], total: RingVector, ring: Ring, threads: int) -> None:
    """Do as :func:`apply` on several threads: each expands its part of the masks into a vector of its own."""
    if threads == 1 or len(masks) < 2 * threads:
        apply(masks, total)
        return
    parts = [ring.zeros() for _ in range(threads - 1)]
    with ThreadPoolExecutor(threads - 1) as pool:
        running = [pool.submit(apply, masks[place + 1 :: threads], part) for place, part in enumerate(parts)]
        apply(masks[::threads], total)
        for each in running:
            each.result()
    for part in parts:
        add(total, part)


def add(total: RingVector, vector: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.unsignedinteger]]]) -> None:
    """Add a vector in place; the entries wrap in their types."""
    for array, more in zip(total, vector, strict=True):
        np.add(array, more, out=array)


def subtract(total: RingVector, vector: RingVector) -> None:
    """Take a vector away in place; the entries wrap in their types."""
    for array, less in zip(total, vector, strict=True):
        np.subtract(array, less, out=array)


def packed(ring: Ring, vector: RingVector) -> Buffer:
    """Return a vector of entries below 2^bits, packed; not copied where it is one segment that fills its type."""
    (segment, *others), (array, *_) = ring.segments, vector
    if others or segment.bits < 8 * array.itemsize or sys.byteorder != "little":
        return ring.pack(vector)
    return array.view(np.uint8).data
