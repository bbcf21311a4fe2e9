"""A second implementation of the protocol, in plain Python integers: slow, short, and written from the specification.

Only AES, GCM and Ed25519 are a library's. ``test_differential.py`` holds the machines to it, byte for byte.
"""

from __future__ import annotations

import hashlib
import hmac
from itertools import count

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

P = 2**31 - 1
CURVE = 2**255 - 19


def u32(number):
    return bytes((number >> shift) & 255 for shift in (0, 8, 16, 24))


def fields(*parts):
    return b"".join(u32(len(part)) + part for part in parts)


def context(purpose):
    return b"hansa/secagg/v1|" + purpose.encode() + b"|"


def digest(purpose, *parts):
    return hashlib.sha256(context(purpose) + fields(*parts)).digest()


def derive(secret, purpose, *parts):
    """HKDF-SHA256, RFC 5869: extract with a salt of zeros, expand one block."""
    extracted = hmac.new(bytes(32), secret, "sha256").digest()
    return hmac.new(extracted, context(purpose) + fields(*parts) + b"\x01", "sha256").digest()


def x25519(secret, point):
    """The Montgomery ladder of RFC 7748, section 5."""
    scalar = int.from_bytes(secret, "little")
    scalar = scalar & ~7 & (2**255 - 1) | 2**254
    x1 = int.from_bytes(point, "little") % 2**255
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for bit in reversed(range(255)):
        now = scalar >> bit & 1
        if swap ^ now:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = now
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb = d * a, c * b
        x3, z3 = (da + cb) ** 2 % CURVE, x1 * (da - cb) ** 2 % CURVE
        e = a * a - b * b
        x2, z2 = a * a * b * b % CURVE, e * (a * a + 121665 * e) % CURVE
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, CURVE - 2, CURVE) % CURVE).to_bytes(32, "little")


def public(secret):
    return x25519(secret, b"\x09" + bytes(31))


def stream(key):
    """Bytes of AES-256 of the numbers 0, 1, 2 ... (big end first)."""
    aes = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305 - the counter is counted here
    for number in count():
        yield from aes.update(number.to_bytes(16, "big"))


def words(key, size):
    source = stream(key)
    while True:
        yield int.from_bytes(bytes(next(source) for _ in range(size)), "little")


def circle(task, advertised, size, beacon, neighbours):
    """Return the neighbours of each who advertised, as the words of the graph's stream put them on a circle."""
    source = words(digest("graph", task, bitmap(advertised, size), beacon), 8)
    drawn = {client: next(source) for client in sorted(advertised)}
    order = sorted(drawn, key=lambda client: (drawn[client], client))
    places = range(1, neighbours // 2 + 1)
    return {
        client: sorted(order[(at + sign * step) % len(order)] for step in places for sign in (1, -1))
        for at, client in enumerate(order)
    }


def uniform(key, number):
    source, found = words(key, 4), []
    while len(found) < number:
        word = next(source) % 2**31
        if word != P:
            found.append(word)
    return found


def limbs(secret):
    number = int.from_bytes(secret, "little")
    return [number >> 24 * place & 0xFFFFFF for place in range(11)]


def shares(secrets, threshold, holders, key):
    """{holder: the shares of all secrets, joined}; the coefficients of the highest power come first."""
    constants = [limb for secret in secrets for limb in limbs(secret)]
    drawn = uniform(key, (threshold - 1) * len(constants))
    rows = [drawn[at * len(constants) : (at + 1) * len(constants)] for at in range(threshold - 1)]
    found = {}
    for holder in holders:
        x, values = holder + 1, [0] * len(constants)
        for row in [*rows, constants]:
            values = [(value * x + coefficient) % P for value, coefficient in zip(values, row, strict=True)]
        found[holder] = b"".join(map(u32, values))
    return found


def combine(points):
    """The secret of {holder: share}."""
    total = [0] * 11
    for holder, share in points.items():
        weight = 1
        for other in points:
            if other != holder:
                weight = weight * (other + 1) * pow(other - holder, -1, P) % P
        for place in range(11):
            total[place] += weight * int.from_bytes(share[4 * place : 4 * place + 4], "little")
    return sum(limb % P << 24 * place for place, limb in enumerate(total)).to_bytes(33, "little")[:32]


def mask(key, shape):
    """A mask of a ring of (length, bits) segments, as lists of integers."""
    source, found = stream(key), []
    for length, bits in shape:
        size = 2 if bits <= 16 else 4 if bits <= 32 else 8
        row = [int.from_bytes(bytes(next(source) for _ in range(size)), "little") for _ in range(length)]
        found.append([word % 2**bits for word in row])
    return found


def added(vector, other, shape, sign=1):
    return [
        [(one + sign * two) % 2**bits for one, two in zip(row, more, strict=True)]
        for row, more, (_, bits) in zip(vector, other, shape, strict=True)
    ]


def packed(vector, shape):
    return b"".join(
        sum(entry << bits * place for place, entry in enumerate(row)).to_bytes(-(-length * bits // 8), "little")
        for row, (length, bits) in zip(vector, shape, strict=True)
    )


def message(kind, client, task, *body):
    joined = b"".join(body)
    return b"HSA1" + u32(kind) + u32(client) + u32(len(joined)) + task + joined


def bitmap(members, size):
    return sum(1 << each for each in members).to_bytes(-(-size // 8), "little")


class Client:
    """One client: its seed and vector go in, its messages come out."""

    def __init__(self, index, seed, vector, task, shape, size, sign):
        self.index, self.seed, self.vector, self.task = index, seed, vector, task
        self.shape, self.size, self._sign = shape, size, sign
        self.sealing_secret = derive(seed, "enc-key", task)
        self.mask_secret = derive(seed, "mask-key", task)
        self.self_seed = derive(seed, "self-seed", task)
        self.sealing, self.masking = public(self.sealing_secret), public(self.mask_secret)

    def sign(self, purpose, *parts):
        return self._sign(context(purpose) + fields(*parts))

    def advert(self):
        committed = digest("bcom", self.task, u32(self.index), self.self_seed)
        keys = (self.sealing, self.masking, committed)
        signature = self.sign("adv", self.task, u32(self.index), *keys)
        return message(2, self.index, self.task, *keys, signature)

    def hashes(self, dealer, holder, both):
        ids = (self.task, u32(dealer) + u32(holder))
        return digest("scom", *ids, b"\0" + both[:44]) + digest("scom", *ids, b"\1" + both[44:])

    def shares(self, advertised, neighbours, threshold):
        """``neighbours``: {index: (sealing key, masking key)} of adverts."""
        members = bitmap(advertised, self.size)
        key = derive(self.seed, "coefficients", self.task, members)
        given = shares([self.self_seed, self.mask_secret], threshold, sorted([*neighbours, self.index]), key)
        own, entries = self.hashes(self.index, self.index, given[self.index]), b""
        for other, (sealing, _) in sorted(neighbours.items()):
            ids = (u32(self.index), u32(other))
            agreed = x25519(self.sealing_secret, sealing)
            seal = derive(agreed, "share-enc", self.task, members, *ids, self.sealing, sealing)
            sealed = AESGCM(seal).encrypt(bytes(12), given[other], fields(self.task, *ids))
            entries += u32(other) + self.hashes(self.index, other, given[other]) + sealed
        signature = self.sign("shares", self.task, u32(self.index), own, entries)
        return message(4, self.index, self.task, own, u32(len(neighbours)), entries, signature)

    def pair(self, other, masking):
        (low, low_key), (high, high_key) = sorted([(self.index, self.masking), (other, masking)])
        agreed = x25519(self.mask_secret, masking)
        return derive(agreed, "pair", self.task, u32(low), u32(high), low_key, high_key)

    def masked(self, neighbours):
        total = added(
            self.vector, mask(derive(self.self_seed, "self", self.task, u32(self.index)), self.shape), self.shape
        )
        for other, (_, masking) in neighbours.items():
            sign = -1 if other < self.index else 1
            total = added(total, mask(self.pair(other, masking), self.shape), self.shape, sign)
        content = packed(total, self.shape)
        unsigned = message(6, self.index, self.task, u32(64), u32(0), content, bytes(64))
        keys = b"".join(masking for _, (_, masking) in sorted(neighbours.items()))
        signature = self.sign("masked", self.task, u32(self.index), keys, hashlib.sha256(unsigned[:-64]).digest())
        return unsigned[:-64] + signature
