"""The key schedule: what is agreed, derived, sealed, signed and committed to, each under a purpose of its own.

Sources: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), Ed25519 (RFC 8032), AES-256-GCM (NIST SP 800-38D).
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Final, Literal, Protocol

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hansa.secagg.encoding import Buffer, prefixed, u32

PREFIX: Final = "hansa/secagg/v1|"
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
TAG_BYTES: Final = 16

Purpose = Literal[
    "adv", "share-enc", "pair", "self", "bcom", "scom", "surv", "seed", "enc-key", "mask-key", "self-seed",
    "coefficients", "task", "roster", "shares", "masked", "complaint", "survivors", "unmask", "graph", "report",
    "valid", "request", "answer", "attempts", "beacon",
]  # fmt: skip
"""What bytes are for. Keys, signatures and digests of one purpose never stand for another's."""

_NONCE: Final = bytes(12)
_FIELD: Final = 2**255 - 19
_SMALL: Final = frozenset({
    0, 1, _FIELD - 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
})  # fmt: skip
"""The coordinates of the points of order 1, 2, 4 and 8, on the curve and its twist."""
_EIGHTH: Final = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_EDWARDS: Final = frozenset({0, 1, _FIELD - 1, _EIGHTH, _FIELD - _EIGHTH})
"""The same on Ed25519's curve: there y. Under such a key one signature fits many messages, or all."""


class Signer(Protocol):
    """A private Ed25519 key, wherever it is kept."""

    def sign(self, data: bytes, /) -> bytes:
        """Return the signature of ``data``, 64 bytes."""
        ...


class Random(Protocol):
    """Gives bytes that nobody can guess: ``os.urandom`` at the edge, known ones in tests."""

    def __call__(self, size: int, /) -> bytes:
        """Return ``size`` bytes."""
        ...


@cache
def _context(purpose: Purpose) -> bytes:
    return f"{PREFIX}{purpose}|".encode()


def digest(purpose: Purpose, *fields: Buffer) -> bytes:
    """Return SHA-256 over a purpose and length-prefixed fields."""
    return hashlib.sha256(_context(purpose) + prefixed(*fields)).digest()


def derive(secret: bytes, purpose: Purpose, *bindings: Buffer) -> bytes:
    """Return the 32-byte key of a secret for one purpose and what it is bound to (HKDF-SHA256, no salt)."""
    info = _context(purpose) + prefixed(*bindings)
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def private_key(secret: bytes) -> X25519PrivateKey:
    """Return the X25519 key of 32 bytes."""
    return X25519PrivateKey.from_private_bytes(secret)


def agree(own: X25519PrivateKey, other: bytes) -> bytes:
    """Return the secret that two keys share. ValueError where the other's key is of small order."""
    return own.exchange(X25519PublicKey.from_public_bytes(other))


def usable(public: bytes) -> bool:
    """Say whether an X25519 key is a point's one encoding below p, and gives everybody a secret.

    Those of small order give all zeros. Other encodings of a point are read too (RFC 7748, section 5), but would be
    keys that differ and are the same.
    """
    number = int.from_bytes(public, "little")
    return number < _FIELD and number not in _SMALL


def pair_key(shared: bytes, task: bytes, ids: tuple[int, int], keys: tuple[bytes, bytes]) -> bytes:
    """Return the key of the mask between two clients, the same whichever of them derives it."""
    (low, low_key), (high, high_key) = sorted(zip(ids, keys, strict=True))
    return derive(shared, "pair", task, u32(low), u32(high), low_key, high_key)


def self_key(seed: bytes, task: bytes, client: int) -> bytes:
    """Return the key of a client's own mask."""
    return derive(seed, "self", task, u32(client))


def seal(key: bytes, content: bytes, bound: bytes) -> bytes:
    """Return AES-256-GCM of the one message of a key: the nonce is zero."""
    return AESGCM(key).encrypt(_NONCE, content, bound)


def unseal(key: bytes, content: bytes, bound: bytes) -> bytes | None:
    """Return what was sealed; None where it was not sealed so."""
    try:
        return AESGCM(key).decrypt(_NONCE, content, bound)
    except InvalidTag:
        return None


def sign(signer: Signer, purpose: Purpose, *fields: Buffer) -> bytes:
    """Return an Ed25519 signature over a purpose and length-prefixed fields."""
    return signer.sign(_context(purpose) + prefixed(*fields))


def signed(public: bytes, signature: bytes, purpose: Purpose, *fields: Buffer) -> bool:
    """Say whether a signature is by a key over a purpose and length-prefixed fields. No key of small order signs."""
    if (int.from_bytes(public, "little") & (1 << 255) - 1) % _FIELD in _SMALL_EDWARDS:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _context(purpose) + prefixed(*fields))
    except (InvalidSignature, ValueError):
        return False
    return True
