"""What a dealer commits to, so that a wrong secret or share is known for one, and whose it is."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hansa.secagg.encoding import prefixed, u32
from hansa.secagg.field import SHARE_BYTES
from hansa.secagg.keys import KEY_BYTES, PREFIX, digest

SEED: Final = 0
KEY: Final = 1
"""What a share is of."""

_SCOM: Final = f"{PREFIX}scom|".encode()
_HASHED: Final = np.dtype([
    ("front", np.void, len(_SCOM) + 4 + KEY_BYTES + 4), ("dealer", "<u4"), ("holder", "<u4"),
    ("length", "<u4"), ("kind", np.uint8), ("share", np.uint8, SHARE_BYTES),
])  # fmt: skip


def commitment(seed: bytes, task: bytes, client: int) -> bytes:
    """Return the commitment to the seed of a client's own mask."""
    return digest("bcom", task, u32(client), seed)


def share_hashes(
    task: bytes, dealers: ArrayLike, holders: ArrayLike, kinds: ArrayLike, shares: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return the hashes [m, 32] of shares [m, 44], each of its dealer, holder and kind, or of one for all.

    A hash is ``digest("scom", task, dealer | holder, kind | share)``, here of many at once.
    """
    rows = np.empty(len(shares), _HASHED)
    rows["front"] = np.void(_SCOM + prefixed(task) + u32(8))
    rows["dealer"], rows["holder"], rows["length"] = dealers, holders, 1 + SHARE_BYTES
    rows["kind"], rows["share"] = kinds, shares
    content, size = rows.tobytes(), _HASHED.itemsize
    found = [hashlib.sha256(content[start : start + size]).digest() for start in range(0, len(content), size)]
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, KEY_BYTES)


def both_hashes(task: bytes, dealers: ArrayLike, holders: ArrayLike, shares: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the hashes [m, 64] of both shares [m, 2, 44] that dealers give holders: what dealers sign."""
    return np.hstack([share_hashes(task, dealers, holders, kind, shares[:, kind]) for kind in (SEED, KEY)])
