"""What is known of a message before a server takes it."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from hansa.secagg.encoding import Buffer
from hansa.secagg.messages import Masked, header_of
from hansa.secagg.oneshot_messages import Report


class Known(NamedTuple):
    """What spares a server work at a message."""

    trusted: bool = False
    """It was checked before: a record holds it."""
    content: bytes = b""
    """SHA-256 of its masked vector; nothing where that is to be computed."""

    def content_of(self, vector: Buffer) -> bytes:
        """Return SHA-256 of a message's masked vector."""
        return self.content or hashlib.sha256(vector).digest()


def vector_sha256(message: Buffer) -> bytes:
    """Return SHA-256 of the masked vector of a client's message; nothing where it has none. RefusedError: malformed.

    It is most of what such a message costs a server, and needs no machine: carriers call it on threads side by side.
    """
    header = header_of(message)
    if header.kind == Masked.kind:
        return hashlib.sha256(Masked.decode(message, header.task).vector).digest()
    if header.kind == Report.kind:
        return hashlib.sha256(Report.decode(message, header.task).vector).digest()
    return b""
