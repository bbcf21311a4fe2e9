"""One digest over everything that a run can read."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import rfc8785

from hansa.core.layout import Array, Int64s
from hansa.core.schema import to_mapping
from hansa.data.archives import let_go
from hansa.data.pool import Pool
from hansa.data.rows import Names, Roster
from hansa.data.splits import Split

_CHUNK: Final = 1 << 24


class Digest:
    """SHA-256 over named parts, each with its type and shape, so that no two contents run into each other."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256(b"hansa-data-1\n")

    def array(self, name: str, values: Array) -> None:
        """Add an array: its name, type, shape and little-endian bytes, read in pieces."""
        little = values.dtype.newbyteorder("<")
        self._head(name, f"{little.str} {list(values.shape)}")
        per_row = max(1, values.nbytes // max(1, len(values)))
        step = max(1, _CHUNK // per_row)
        for start in range(0, len(values), step):
            piece = np.ascontiguousarray(values[start : start + step], dtype=little)
            self._hash.update(piece.reshape(-1).view(np.uint8).data)
            let_go(values)

    def texts(self, name: str, pieces: Iterable[str]) -> None:
        """Add texts, each with its length."""
        self._head(name, "texts")
        for piece in pieces:
            encoded = piece.encode("utf-8", "surrogatepass")
            self._hash.update(f"{len(encoded)}:".encode() + encoded)

    def table(self, name: str, content: Any) -> None:
        """Add plain tables, as canonical JSON (RFC 8785), where 0 and 0.0 are the same."""
        self.texts(name, [rfc8785.dumps(content).decode()])

    def hexadecimal(self) -> str:
        """Return the digest of what was added."""
        return self._hash.hexdigest()

    def _head(self, name: str, kind: str) -> None:
        self._hash.update(f"\n{name} {kind}\n".encode())


def fingerprint(pool: Pool, roster: Roster, parts: Split, held_out: Int64s) -> str:
    """Return the SHA-256 of the examples, who has them, how they are split and how they are read.

    Numbers are hashed before imputation, with the rule of imputation beside them: a mean may differ in its last
    bit from one processor to another. Paths are left out.
    """
    digest = Digest()
    pool.store.fingerprint(digest.array)
    digest.array("order", roster.rows.order)
    digest.array("offsets", roster.rows.offsets)
    digest.array("test", parts.test)
    digest.array("validation", parts.validation)
    digest.array("held_out", held_out)
    _add_names(digest, roster.names)
    digest.texts("classes", pool.class_names)
    digest.table("signature", dataclasses.asdict(pool.signature))
    digest.table("features", None if pool.features is None else to_mapping(pool.features))
    if pool.central is not None:
        digest.array("central x", pool.central.x)
        digest.array("central y", pool.central.y)
    return digest.hexadecimal()


def _add_names(digest: Digest, names: Names) -> None:
    """Add listed names in full, and of dealt ones only how many there are."""
    if names.listed is None:
        digest.texts("names", [f"dealt {len(names)}"])
    elif names.listed.dtype.kind in "iu":
        digest.array("names", names.listed[names.numbers])
    else:
        digest.texts("names", names)
