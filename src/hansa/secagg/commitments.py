"""What a dealer commits to, so that a wrong secret or share is known for one, and whose it is."""

from __future__ import annotations

import hashlib
from struct import Struct
from typing import Final

from hansa.secagg.encoding import u32
from hansa.secagg.field import SHARE_BYTES
from hansa.secagg.keys import KEY_BYTES, digest

SEED: Final = b"\0"
KEY: Final = b"\1"

_HEAD: Final = b"hansa/secagg/v1|scom|" + u32(KEY_BYTES)
_IDS: Final = u32(8)
_SHARE: Final = u32(1 + SHARE_BYTES)
_PAIR: Final = Struct("<II").pack


def commitment(seed: bytes, task: bytes, client: int) -> bytes:
    """Return the commitment to the seed of a client's own mask."""
    return digest("bcom", task, u32(client), seed)


def share_hash(task: bytes, dealer: int, holder: int, kind: bytes, share: bytes) -> bytes:
    """Return the hash of one share: ``digest("scom", task, dealer | holder, kind | share)``, written out for speed."""
    return hashlib.sha256(b"".join((_HEAD, task, _IDS, _PAIR(dealer, holder), _SHARE, kind, share))).digest()


def share_hashes(task: bytes, dealer: int, holder: int, both: bytes) -> bytes:
    """Return the hashes of a holder's two shares, 64 bytes: what the dealer signs."""
    seed = share_hash(task, dealer, holder, SEED, both[:SHARE_BYTES])
    return seed + share_hash(task, dealer, holder, KEY, both[SHARE_BYTES:])
