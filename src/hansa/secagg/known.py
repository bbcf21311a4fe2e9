"""What is known of a message before a server takes it."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from hansa.secagg.encoding import Buffer
from hansa.secagg.messages import FRONT_BYTES, header_of, vector_end


class Known(NamedTuple):
    """What spares a server work at a message."""

    trusted: bool = False
    """It was checked before: a record holds it."""
    content: bytes = b""
    """What :func:`content_of` gives for it; nothing where that is to be computed."""

    def content_of(self, message: Buffer) -> bytes:
        """Return SHA-256 of a message up to the end of its masked vector."""
        return self.content or content_of(message)


def content_of(message: Buffer) -> bytes:
    """Return SHA-256 of a client's message up to the end of its masked vector; nothing where it has none.

    It is most of what such a message costs a server, and needs no machine. RefusedError: malformed.
    """
    header_of(message)
    end = vector_end(message)
    return hashlib.sha256(memoryview(message)[:end]).digest() if end else b""


class MessageHash:
    """SHA-256 of bytes that come in pieces, and of the same pass what :func:`content_of` gives if they are a message.

    So whoever hashes what arrives needs not hash a masked vector once more. Any bytes may come.
    """

    def __init__(self) -> None:
        self.content = b""
        """What :func:`content_of` gives, once the masked vector has come."""
        self._digest, self._front, self._come, self._end = hashlib.sha256(), b"", 0, 0

    def update(self, piece: Buffer) -> None:
        """Take the next bytes."""
        if len(self._front) < FRONT_BYTES:
            self._front += bytes(piece[: FRONT_BYTES - len(self._front)])
            self._end = vector_end(self._front)
        before = self._end - self._come
        self._come += len(piece)
        if 0 < before <= len(piece):
            self._digest.update(piece[:before])
            self.content = self._digest.digest()
            piece = memoryview(piece)[before:]
        self._digest.update(piece)

    def hexdigest(self) -> str:
        """Return SHA-256 of all that has come, in hexadecimal."""
        return self._digest.hexdigest()
