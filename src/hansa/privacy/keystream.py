"""Secret random words: AES-256 in counter mode, under a key of the operating system or one that was kept."""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from numpy.typing import NDArray

KEY_BYTES: Final = 32
_ZEROS: Final = bytes(1 << 18)
"""The words are encrypted zeros, as many bytes at a time."""


def fresh_key() -> bytes:
    """Return a new key from the operating system's generator: 32 bytes."""
    return os.urandom(KEY_BYTES)


def row_key(run_key: bytes, row: int, group: str) -> bytes:
    """Return the key of one row of a run's correlated noise in one group of branches: 32 bytes.

    HKDF-Expand with SHA-256 (RFC 5869, section 2.3) under the run's noise key. Whoever holds the run's key can draw
    the row again; without it the rows are independent of each other.
    """
    purpose = b"hansa-noise-1\x1f" + row.to_bytes(8, "big") + group.encode()
    return HKDFExpand(algorithm=SHA256(), length=KEY_BYTES, info=purpose).derive(run_key)


class KeyStream:
    """The words of one lane under a key, read in order.

    Lanes are 2^120 counters apart, so that those of one key never meet. The same reads give the same words.
    """

    def __init__(self, key: bytes, lane: int) -> None:
        start = lane.to_bytes(1, "big") + bytes(15)
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(start)).encryptor()

    def read(self, count: int, dtype: str) -> NDArray[np.unsignedinteger[Any]]:
        """Return the next ``count`` words of an unsigned little-endian ``dtype``: [count]."""
        size = count * np.dtype(dtype).itemsize
        target = bytearray(size + 15)  # room for a block, which the cipher asks for
        view = memoryview(target)
        for start in range(0, size, len(_ZEROS)):
            step = min(len(_ZEROS), size - start)
            self._encryptor.update_into(memoryview(_ZEROS)[:step], view[start : start + step + 15])
        return np.frombuffer(target, dtype, count)
