"""Seeds sealed to decryptors: HPKE (RFC 9180), base mode, X25519, HKDF-SHA256, AES-256-GCM.

What a seed is bound to (task, client, decryptor, hash of the report up to the end of its
masked vector) is HPKE's ``info``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from hansa.secagg import keys
from hansa.secagg.encoding import prefixed, u32

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class Binding(NamedTuple):
    """What a sealed seed is bound to."""

    task: bytes
    client: int
    decryptor: int
    content: bytes
    """SHA-256 of the client's report up to the end of its masked vector."""

    @property
    def info(self) -> bytes:
        """Return HPKE's ``info``."""
        fields = prefixed(self.task, u32(self.client), u32(self.decryptor), self.content)
        return b"hansa/secagg/v1|seed|" + fields


def seal_seed(seed: bytes, key: bytes, binding: Binding) -> bytes:
    """Return a seed sealed to a decryptor's key, 80 bytes. ValueError where the key is of small order."""
    return _SUITE.encrypt(seed, X25519PublicKey.from_public_bytes(key), info=binding.info)


def open_seed(sealed: bytes, secret: bytes, binding: Binding) -> bytes | None:
    """Return a seed; None where it was not sealed so, or is not 32 bytes long."""
    try:
        seed = _SUITE.decrypt(sealed, keys.private_key(secret), info=binding.info)
    except (InvalidTag, ValueError):
        return None
    return seed if len(seed) == keys.KEY_BYTES else None


def seed_key(seed: bytes, task: bytes, client: int, decryptor: int) -> bytes:
    """Return the key of the mask of a seed."""
    return keys.derive(seed, "seed", task, u32(client), u32(decryptor))
