"""Shamir's sharing of 32-byte secrets over the integers modulo p = 2^31 - 1, many at once.

A secret is 11 limbs of 24 bits, little end first; limb for limb a polynomial of degree t - 1 with the limb at 0 and
uniform coefficients, a share its values at x. Any t shares give the secret, fewer tell nothing about it.
Source: Shamir 1979, "How to share a secret", https://doi.org/10.1145/359168.359176.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa.secagg.masks import stream

PRIME: Final = 2**31 - 1
LIMBS: Final = 11
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 4 * LIMBS

_P: Final = np.uint64(PRIME)
_SHIFT: Final = np.uint64(31)
_BLOCK: Final = 1 << 21
"""Products of one block of secrets that are combined at once."""

Elements = NDArray[np.uint64]


def _folded(values: Elements) -> Elements:
    """Return values below 2^62 as congruent ones below 2^32; no branch depends on a value."""
    folded: Elements = (values & _P) + (values >> _SHIFT)
    return folded


def _reduced(values: Elements) -> Elements:
    """Return values below 2^62 modulo p."""
    return _folded(_folded(values)) % _P


def uniform(key: bytes, count: int) -> Elements:
    """Return ``count`` uniform elements: 31-bit words of a key's stream, of which p itself is passed over."""
    margin = 8
    while True:
        words = np.frombuffer(stream(key, 4 * (count + margin)), "<u4") & np.uint32(PRIME)
        kept = words[words != PRIME]
        if len(kept) >= count:
            elements: Elements = kept[:count].astype(np.uint64)
            return elements
        margin *= 16


def _limbs(secrets: bytes) -> Elements:
    octets = np.zeros((len(secrets) // SECRET_BYTES, 3 * LIMBS), np.uint8)
    octets[:, :SECRET_BYTES] = np.frombuffer(secrets, np.uint8).reshape(-1, SECRET_BYTES)
    words = np.zeros((len(octets), LIMBS, 4), np.uint8)
    words[:, :, :3] = octets.reshape(-1, LIMBS, 3)
    return words.view("<u4").reshape(-1, LIMBS).astype(np.uint64)


def share(secrets: bytes, *, threshold: int, places: NDArray[np.int64], key: bytes) -> NDArray[np.uint8]:
    """Return the shares of several 32-byte secrets.

    ``secrets`` are joined; ``places`` [m] are the distinct x of the holders, each from 1 to p - 1; the coefficients
    are the uniform elements of ``key``'s stream, from the highest power down. The result is [m, secrets, 44] bytes.
    """
    limbs = _limbs(secrets).reshape(-1)
    coefficients = uniform(key, (threshold - 1) * limbs.size).reshape(threshold - 1, limbs.size)
    x = places.astype(np.uint64)[:, None]
    values = np.zeros((len(places), limbs.size), np.uint64)
    for row in (*coefficients, limbs):  # Horner, from the highest power down
        values = _folded(values * x + row)
        values = _folded(values)
    return (values % _P).astype("<u4").view(np.uint8).reshape(len(places), -1, SHARE_BYTES)


def _inverse(values: Elements) -> Elements:
    """Return values^(p - 2), the inverses modulo p (Fermat)."""
    result, power = np.ones_like(values), values
    for bit in range(31):
        if (PRIME - 2) >> bit & 1:
            result = _reduced(result * power)
        power = _reduced(power * power)
    return result


def _weights(places: Elements) -> Elements:
    """Return Lagrange's weights at 0 for sets of places [sets, t]: prod_j x_j / (x_i prod_(j != i) (x_j - x_i))."""
    below, above = places.copy(), np.ones((len(places), 1), np.uint64)
    for column in range(places.shape[1]):
        x = places[:, column : column + 1]
        above = _reduced(above * x)
        difference = x + (_P - places)
        difference[:, column] = 1
        below = _reduced(below * _folded(difference))
    return _reduced(above * _inverse(below))


def combine(places: NDArray[np.int64], shares: NDArray[np.uint8]) -> list[bytes | None]:
    """Return the secrets of ``shares`` [secrets, t, 44] at ``places`` [secrets, t]; None where they fit no secret.

    They fit none where an element is not below p or a limb of the result not below 2^24 (or, in the last, 2^16).
    """
    if not len(places):
        return []
    sets, which = np.unique(places, axis=0, return_inverse=True)
    weights = _weights(sets.astype(np.uint64))[which.reshape(-1)]
    values = np.ascontiguousarray(shares).view("<u4").astype(np.uint64)
    limbs = np.empty((len(places), LIMBS), np.uint64)
    rows = max(1, _BLOCK // (places.shape[1] * LIMBS))
    for start in range(0, len(places), rows):
        block = slice(start, start + rows)
        products = _folded(weights[block, :, None] * values[block])
        limbs[block] = products.sum(axis=1, dtype=np.uint64) % _P
    good = (values < _P).all(axis=(1, 2)) & (limbs < 1 << 24).all(axis=1) & (limbs[:, -1] < 1 << 16)
    octets = limbs.astype("<u4").view(np.uint8).reshape(-1, LIMBS, 4)[:, :, :3].reshape(-1, 3 * LIMBS)
    return [octets[row, :SECRET_BYTES].tobytes() if good[row] else None for row in range(len(places))]
