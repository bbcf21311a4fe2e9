"""Masks: streams of AES-256 in counter mode (NIST SP 800-38A, section 6.5), added to ring vectors chunk by chunk.

The mask of a key is its stream from counter 0, cut into the ring's segments in order, an entry in as many bytes as
its type has, little end first. A key makes one mask, once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from itertools import islice
from threading import Lock
from typing import Final, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from hansa.core.ring import Ring, RingVector, UInts

CHUNK: Final = 1 << 18
"""Bytes of a vector that a client masks at once: few enough for a cache, and soon there to be hashed."""
BLOCK: Final = 1 << 20
"""Bytes of a vector that masks are added to at once: threads wait for Python's one lock after each, the less often the
longer it is; and it still fits the cache that they share."""
TOGETHER: Final = 32
"""Streams that are open at once: a part of the vector stays in the cache while all of them are added to it."""

_COUNTER: Final = bytes(16)
_NONCE: Final = bytes(12)
_HEAD: Final = 32
_ZEROS: Final = memoryview(bytes(BLOCK))


class Mask(NamedTuple):
    """A key of a mask, and whether it is taken away."""

    key: bytes
    minus: bool = False


def stream(key: bytes, size: int) -> bytes:
    """Return the first bytes of a key's stream."""
    return Cipher(algorithms.AES256(key), modes.CTR(_COUNTER)).encryptor().update(bytes(size))


def apply(masks: Iterable[Mask], total: RingVector) -> None:
    """Add masks to a vector, or take them away, in place; the entries wrap in their types."""
    room, rest = memoryview(bytearray(BLOCK + 15)), iter(masks)
    parts = [part for array in total for part in _parts(array, BLOCK)]
    while parts and (streams := _opened(islice(rest, TOGETHER), parts[0], room)):
        for part in parts[1:]:
            _apply(streams, part, room)


def masked(  # noqa: PLR0913 - a vector, what masks it, and the message that it stands in
    ring: Ring, vector: RingVector, masks: Iterable[Mask], *, front: bytes, behind: int, end: Callable[[bytes], bytes],
    meanwhile: Callable[[], None] = lambda: None,
) -> bytes:  # fmt: skip
    """Return the message of a vector with masks added and packed: ``front``, the vector, and what ``end`` returns.

    That has ``behind`` bytes; ``end`` is given SHA-256 of all that stands before it. The message is written where it
    stays, and a thread of its own hashes what is masked already; ``meanwhile`` is called while it hashes the rest, and
    what it raises is raised in place of the message.
    """
    message, digest = BytesIO(bytes(len(front) + ring.nbytes + behind)), hashlib.sha256(front)
    written = hashed = len(front)
    with message.getbuffer() as room:

        def hash_written() -> None:  # all at once: it waits for Python's one lock after each time
            nonlocal hashed
            begin, hashed = hashed, written
            digest.update(room[begin:hashed])

        room[:written] = front
        with ThreadPoolExecutor(1) as hashing:
            for packed in _masked_parts(ring, vector, [_Stream(each) for each in masks]):
                room[written : written + len(packed)] = packed.data
                written += len(packed)
                hashing.submit(hash_written)
            meanwhile()
        room[written:] = end(digest.digest())
    return message.getvalue()


def _masked_parts(ring: Ring, vector: RingVector, streams: Sequence[_Stream]) -> Iterator[NDArray[np.uint8]]:
    """Yield a vector with the words of streams, part by part, packed; a part is gone when the next one is taken."""
    room, parts = memoryview(bytearray(CHUNK + 15)), bytearray(CHUNK)
    for segment, array in zip(ring.segments, vector, strict=True):
        for given in _parts(array, CHUNK):
            part = np.frombuffer(parts, array.dtype, len(given))
            part[:] = given
            _apply(streams, part, room)
            yield replace(segment, length=len(part)).packed(part)


class _Stream:
    """An open stream of a mask, and what its words do to a vector.

    All but its first 32 bytes come out of AES in Galois/counter mode over zeros (NIST SP 800-38D, section 7.1): under a
    zero nonce its counters are 2, 3, ... and so its output is the rest of the stream, which processors that take many
    blocks at once make faster in this mode than in counter mode.
    """

    def __init__(self, mask: Mask) -> None:
        self.change = np.subtract if mask.minus else np.add
        self._head = stream(mask.key, _HEAD)
        self._rest = Cipher(algorithms.AES256(mask.key), modes.GCM(_NONCE)).encryptor()

    def next_into(self, room: memoryview, size: int) -> None:
        """Write the next ``size`` bytes, of which ``room`` has 15 more."""
        head = self._head[:size]
        self._head = self._head[size:]
        room[: len(head)] = head
        self._rest.update_into(_ZEROS[: size - len(head)], room[len(head) :])


def _parts(array: UInts, nbytes: int) -> Iterator[UInts]:
    """Yield an array in parts of at most so many bytes; all but the last hold a multiple of eight entries."""
    size = nbytes // array.itemsize
    for start in range(0, len(array), size):
        yield array[start : start + size]


def _apply(streams: Sequence[_Stream], part: UInts, room: memoryview) -> None:
    """Apply the next words of each stream to a part of a vector, in place."""
    words = np.frombuffer(room, part.dtype.newbyteorder("<"), len(part))
    for each in streams:
        each.next_into(room, part.nbytes)
        each.change(part, words, out=part)


def _opened(masks: Iterable[Mask], part: UInts, room: memoryview) -> list[_Stream]:
    """Open streams and apply the first words of each to a part of a vector, before the next mask is made.

    Making one may keep Python's one lock, so that other threads get no further than to the end of what they expand.
    """
    streams = []
    for mask in masks:
        streams.append(_Stream(mask))
        _apply(streams[-1:], part, room)
    return streams


def apply_on_threads(masks: Iterable[Mask], total: RingVector, ring: Ring, threads: int) -> None:
    """Do as :func:`apply` on several threads: each adds the next mask that is to be had to a vector of its own.

    Masks may be made as they are taken: while one thread makes one, the others expand theirs. Where one cannot be
    made, the error is raised and the total is as it was.
    """
    rest, taking = iter(masks), Lock()
    parts = [ring.zeros() for _ in range(threads)]

    def taken() -> Iterator[Mask]:
        while True:
            with taking:
                mask = next(rest, None)
            if mask is None:
                return
            yield mask

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda part: apply(taken(), part), parts))
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
