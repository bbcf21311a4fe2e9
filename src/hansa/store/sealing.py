"""Sealed bytes: encrypted and bound to their place, so that nobody reads, changes, cuts, mixes or moves them.

A sealed blob is a header and records. The header is a magic word and 32 random bytes; from these, the round's key and
the binding, HKDF-SHA256 makes a key for this blob alone, so its nonces can simply count. A record is up to 1 MiB,
encrypted with AES-256-GCM; whether it is the last one is part of what is authenticated, and so is its number, by the
nonce. Memory is one record, whatever the size.

Guarantees: ``unseal`` gives exactly the bytes that were sealed with this key and binding, or raises before it gives a
byte that was not among them; a stream that was cut raises at its end.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hansa.core.errors import StoreError

KEY_BYTES: Final = 32
_MAGIC: Final = b"hansa-sealed-1\n"
_SALT: Final = 32
HEADER: Final = len(_MAGIC) + _SALT
"""Bytes before the first record."""
RECORD: Final = 1 << 20
"""Bytes of a record before it is sealed; the last one may be shorter."""
_TAG: Final = 16


@dataclass(frozen=True)
class Binding:
    """The place that sealed bytes belong to: an attempt of a round, a client, the digest of the whole, which part."""

    round: str
    client: str
    digest: str
    part: str = "0"

    def encoded(self) -> bytes:
        """Return the binding as bytes; different bindings give different ones."""
        fields = [field.encode() for field in astuple(self)]
        return b"".join(len(field).to_bytes(8, "big") + field for field in fields)


def seal(key: bytes, binding: Binding, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Seal chunks of any sizes; give the header and the sealed records."""
    salt = os.urandom(_SALT)
    cipher = _cipher(key, binding, salt)
    yield _MAGIC + salt
    for number, (record, last) in enumerate(_records(chunks, RECORD)):
        yield cipher.encrypt(_nonce(number), record, _role(last=last))


def unseal(key: bytes, binding: Binding, chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Unseal what ``seal`` gave, in chunks of any sizes; give the records. Raises StoreError for anything else."""
    records = _records(chunks, RECORD + _TAG, header=HEADER)
    header = bytes(next(records)[0])
    if len(header) != HEADER or not header.startswith(_MAGIC):
        raise _broken()
    cipher = _cipher(key, binding, header[len(_MAGIC) :])
    for number, (record, last) in enumerate(records):
        try:
            yield cipher.decrypt(_nonce(number), record, _role(last=last))
        except (InvalidTag, ValueError):
            raise _broken() from None


@dataclass(frozen=True)
class SealedRecords:
    """The records of one sealed blob, each of which can be read and unsealed by itself; ``size`` is the blob's."""

    cipher: AESGCM
    size: int

    @property
    def count(self) -> int:
        """Return how many there are."""
        return max(1, -(-(self.size - HEADER) // (RECORD + _TAG)))

    def span(self, number: int) -> tuple[int, int]:
        """Return where a record begins and ends in the blob."""
        begin = HEADER + number * (RECORD + _TAG)
        return begin, min(self.size, begin + RECORD + _TAG)

    def unseal(self, number: int, record: bytes) -> bytes:
        """Return what was sealed in a record. Raises StoreError for anything but that record of that blob."""
        try:
            return self.cipher.decrypt(_nonce(number), record, _role(last=number == self.count - 1))
        except (InvalidTag, ValueError):
            raise _broken() from None


def sealed_records(key: bytes, binding: Binding, header: bytes, size: int) -> SealedRecords:
    """Return the records of a sealed blob of ``size`` bytes that begins with a header. Raises StoreError for others."""
    if len(header) != HEADER or not header.startswith(_MAGIC):
        raise _broken()
    return SealedRecords(_cipher(key, binding, header[len(_MAGIC) :]), size)


def plain_size(sealed: int) -> int:
    """Return the size of what was sealed from the size of the sealed bytes; 0 for what is too short to be sealed."""
    body = sealed - HEADER
    records = max(1, -(-body // (RECORD + _TAG)))
    return max(0, body - records * _TAG)


def _cipher(key: bytes, binding: Binding, salt: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise ValueError("a sealing key has 32 bytes")
    derived = HKDF(SHA256(), KEY_BYTES, salt=salt, info=b"hansa-seal-1" + binding.encoded()).derive(key)
    return AESGCM(derived)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _role(*, last: bool) -> bytes:
    return b"last" if last else b"more"


def _records(chunks: Iterable[bytes], size: int, header: int = 0) -> Iterator[tuple[memoryview, bool]]:
    """Cut chunks into records of one size, the first of ``header`` bytes if that is asked; tell which is the last.

    The last one is never empty unless all is: with a header there is one record after it at least, perhaps empty.
    """
    held = bytearray()
    wanted = header or size
    for chunk in chunks:
        rest = memoryview(chunk)
        while len(held) + len(rest) > wanted:
            missing = wanted - len(held)
            record = memoryview(bytes(held) + bytes(rest[:missing])) if held else rest[:missing]
            held.clear()
            rest = rest[missing:]
            wanted = size
            yield record, False
        held += rest
    if header and wanted == header:
        yield memoryview(bytes(held)), False
        held.clear()
    yield memoryview(held), True


def _broken() -> StoreError:
    return StoreError(
        "HANSA-SEAL-BROKEN",
        rule="Sealed bytes are read with the key and for the place that they were sealed for.",
        found="They were changed, cut, moved, or sealed with another key.",
        action="Restore the blobs from a backup, or let the round be tried again.",
    )
