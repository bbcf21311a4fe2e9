"""Bytes of messages, tasks and signatures: fixed fields, or fields behind their length; nothing is left over."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import Final

import numpy as np

from hansa.secagg.refusals import malformed

Buffer = bytes | memoryview

LARGEST_LIST: Final = 1 << 20
"""Most records of one list in a message."""


_U32: Final = Struct("<I")


def u32(number: int) -> bytes:
    """Return a number in four bytes, little end first."""
    return _U32.pack(number)


def prefixed(*fields: Buffer) -> bytes:
    """Return fields one after the other, each behind its length in four bytes: no two lists give the same bytes."""
    return b"".join([part for field in fields for part in (_U32.pack(len(field)), field)])


def to_bitmap(members: Iterable[int], size: int) -> bytes:
    """Return a set of indices below ``size`` as ceil(size / 8) bytes, the lowest bit first."""
    flags = np.zeros(size, np.uint8)
    flags[np.fromiter(members, np.int64)] = 1
    return np.packbits(flags, bitorder="little").tobytes()


def from_bitmap(bitmap: Buffer, size: int) -> tuple[int, ...]:
    """Return the sorted indices of a bitmap. RefusedError: another length, or bits after the last."""
    if len(bitmap) != -(-size // 8):
        raise malformed("A set has another length than the roster.")
    flags = np.unpackbits(np.frombuffer(bitmap, np.uint8), bitorder="little")
    if flags[size:].any():
        raise malformed("A set names somebody after the end of the roster.")
    return tuple(np.flatnonzero(flags).tolist())


class Reader:
    """Reads fields from the front of a buffer. Everything raises RefusedError where the buffer ends too early."""

    def __init__(self, content: Buffer) -> None:
        self._rest = memoryview(content)

    def raw(self, size: int) -> memoryview:
        """Return the next ``size`` bytes, not copied."""
        if size > len(self._rest):
            raise malformed("It ends within a field.")
        field, self._rest = self._rest[:size], self._rest[size:]
        return field

    def fixed(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        return bytes(self.raw(size))

    def u32(self) -> int:
        """Return the next four bytes as a number."""
        return int.from_bytes(self.raw(4), "little")

    def blob(self) -> bytes:
        """Return the bytes behind a length."""
        return self.fixed(self.u32())

    def text(self) -> str:
        """Return a text (UTF-8) behind a length."""
        try:
            return self.blob().decode()
        except UnicodeDecodeError:
            raise malformed("A text is not UTF-8.") from None

    def count(self) -> int:
        """Return the number of records that follow."""
        number = self.u32()
        if number > LARGEST_LIST:
            raise malformed("A list is longer than any.")
        return number

    def rest(self) -> memoryview:
        """Return all bytes that are left, not copied."""
        return self.raw(len(self._rest))

    @property
    def left(self) -> int:
        """Return how many bytes are left."""
        return len(self._rest)

    @property
    def ended(self) -> bool:
        """Say whether everything was read."""
        return not len(self._rest)

    def end(self) -> None:
        """Raise RefusedError unless everything was read."""
        if len(self._rest):
            raise malformed(f"There are {len(self._rest)} bytes after its last field.")
