"""Every message of a secure sum, as bytes: a header of 48 bytes, then the fields of its kind, then nothing.

Header: ``HSA1`` (the version), kind (4 bytes), client (4), length of the rest (4), task hash (32). The client is whom a
message is from or to; for messages of decryptors it is the decryptor's place. Numbers have their little end first.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import starmap
from struct import Struct
from typing import ClassVar, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from hansa.secagg.encoding import Buffer, Reader, prefixed, u32
from hansa.secagg.field import SHARE_BYTES
from hansa.secagg.keys import KEY_BYTES, SIGNATURE_BYTES, TAG_BYTES
from hansa.secagg.refusals import malformed, unexpected

MAGIC: Final = b"HSA1"
HEADER_BYTES: Final = 48
FRONT_BYTES: Final = HEADER_BYTES + 8
"""Before a masked vector: the header, how many bytes are behind the vector, 0."""
SEALED_SHARES_BYTES: Final = 2 * SHARE_BYTES + TAG_BYTES
SEALED_SEED_BYTES: Final = 80
"""HPKE with X25519: an encapsulated key of 32 bytes, a seed of 32, a tag of 16."""

_WITH_VECTOR: Final = {b"\x06\0\0\0", b"\x0d\0\0\0"}
"""The kinds of messages with a masked vector, as they are written."""
_HEADER: Final = Struct("<4sIII32s")
_SEALED: Final = Struct(f"<I{2 * KEY_BYTES}s{SEALED_SHARES_BYTES}s")
_SHARE: Final = np.dtype([("dealer", "<u4"), ("share", np.uint8, SHARE_BYTES)])
_SIGNATURE: Final = Struct(f"<I{SIGNATURE_BYTES}s")
"""The records of lists, each a client's number and what goes with it."""


class Header(NamedTuple):
    """What stands before the fields of every message."""

    kind: int
    client: int
    task: bytes


def answer_id(message: Buffer) -> bytes:
    """Return what tells answers apart: SHA-256 of one, or of its front and its signature, which covers a vector."""
    if not vector_end(message):
        return hashlib.sha256(message).digest()
    return hashlib.sha256(bytes(message[:FRONT_BYTES]) + bytes(message[-SIGNATURE_BYTES:])).digest()


def vector_end(message: Buffer) -> int:
    """Return where the masked vector of a client's message ends, by its first bytes; 0 where it has none."""
    front = bytes(message[:FRONT_BYTES])
    if len(front) < FRONT_BYTES or front[:4] != MAGIC or front[4:8] not in _WITH_VECTOR:
        return 0
    end = HEADER_BYTES + int.from_bytes(front[12:16], "little") - int.from_bytes(front[48:52], "little")
    return end if end >= FRONT_BYTES else 0


def vector_front(kind: int, client: int, task: bytes, size: int, behind: int) -> bytes:
    """Return what stands before a masked vector of ``size`` bytes that has so many bytes behind it."""
    length = 8 + size + behind
    return b"".join((MAGIC, u32(kind), u32(client), u32(length), task, u32(behind), u32(0)))


def read_vector(reader: Reader) -> memoryview:
    """Return a masked vector, not copied; what is left is behind it. RefusedError: malformed."""
    behind = reader.u32()
    if reader.u32() or behind > reader.left:
        raise malformed("Its masked vector has an end that it cannot have.")
    return reader.raw(reader.left - behind)


def header_of(message: Buffer) -> Header:
    """Return a message's header. RefusedError: another version, or another length than it says."""
    if len(message) < HEADER_BYTES:
        raise malformed("It ends within its header.")
    magic, kind, client, length, task = _HEADER.unpack_from(message)
    if magic != MAGIC:
        raise malformed("It does not begin as a message of this version.")
    if HEADER_BYTES + length != len(message):
        raise malformed("It has another length than its header says.")
    return Header(kind, client, task)


@dataclass(frozen=True)
class Message:
    """Base of the kinds: whom it is from or to, of which task, and its fields."""

    kind: ClassVar[int]
    client: int
    task: bytes

    def encode(self) -> bytes:
        """Return the message's bytes."""
        body = self._body()
        length = sum(map(len, body))
        return b"".join((MAGIC, u32(self.kind), u32(self.client), u32(length), self.task, *body))

    @classmethod
    def decode(cls, message: Buffer, task: bytes) -> Self:
        """Return the message of bytes. RefusedError: malformed, or another kind or task."""
        header = header_of(message)
        if header.kind != cls.kind:
            raise unexpected(f"A message of kind {header.kind} came where kind {cls.kind} is due.")
        if header.task != task:
            raise unexpected("A message came that belongs to another task.")
        reader = Reader(memoryview(message)[HEADER_BYTES:])
        read = cls._read(header.client, header.task, reader)
        reader.end()
        return read

    def _body(self) -> list[Buffer]:
        raise NotImplementedError

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        raise NotImplementedError


@dataclass(frozen=True)
class Announcement(Message):
    """S -> C, S -> D: a task, with the client's place in its roster and who stands for it."""

    kind = 1
    descriptor: bytes
    proof: tuple[bytes, ...]
    registration: bytes
    signature: bytes
    decryptors: tuple[bytes, ...]

    def _body(self) -> list[Buffer]:
        return [
            prefixed(self.descriptor), u32(len(self.proof)), *self.proof, self.registration, self.signature,
            u32(len(self.decryptors)), *self.decryptors,
        ]  # fmt: skip

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        descriptor = reader.blob()
        proof = tuple(reader.fixed(KEY_BYTES) for _ in range(reader.count()))
        registration, signature = reader.fixed(SIGNATURE_BYTES), reader.fixed(SIGNATURE_BYTES)
        signatures = tuple(reader.fixed(SIGNATURE_BYTES) for _ in range(reader.count()))
        return cls(client, task, descriptor, proof, registration, signature, signatures)


@dataclass(frozen=True)
class Advert(Message):
    """C -> S, phase 0: the round's two X25519 keys, the commitment to the self mask's seed, an identity's signature."""

    kind = 2
    sealing: bytes
    masking: bytes
    commitment: bytes
    signature: bytes

    def signed_fields(self) -> tuple[bytes, ...]:
        """Return what the signature covers."""
        return self.task, u32(self.client), self.sealing, self.masking, self.commitment

    def _body(self) -> list[Buffer]:
        return [self.sealing, self.masking, self.commitment, self.signature]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        keys = (reader.fixed(KEY_BYTES), reader.fixed(KEY_BYTES), reader.fixed(KEY_BYTES))
        return cls(client, task, *keys, reader.fixed(SIGNATURE_BYTES))


class Neighbour(NamedTuple):
    """A neighbour's advert with its identity key and that key's proof."""

    advert: Advert
    identity: bytes
    proof: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return its bytes within a message."""
        advert = self.advert
        parts = (advert.sealing, advert.masking, advert.commitment, advert.signature, self.identity)
        return b"".join((u32(advert.client), *parts, u32(len(self.proof)), *self.proof))


@dataclass(frozen=True)
class Keys(Message):
    """S -> C, phase 1: who advertised, the beacon, and the adverts of the client's neighbours, ordered by index."""

    kind = 3
    advertised: bytes
    beacon: bytes
    """The authority's value and signature, 96 bytes; none in a task without a beacon."""
    neighbours: tuple[bytes, ...]
    """Each encoded, see :class:`Neighbour`."""

    def _body(self) -> list[Buffer]:
        return [prefixed(self.advertised, self.beacon), u32(len(self.neighbours)), *self.neighbours]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        advertised, beacon, entries = reader.blob(), reader.blob(), []
        for _ in range(reader.count()):
            place = reader.raw(4)
            fixed = reader.raw(4 * KEY_BYTES + SIGNATURE_BYTES)
            depth = reader.count()
            entries.append(b"".join((place, fixed, u32(depth), reader.raw(depth * KEY_BYTES))))
        return cls(client, task, advertised, beacon, tuple(entries))

    def read_neighbours(self) -> list[Neighbour]:
        """Return the neighbours."""
        return [_neighbour(entry, self.task) for entry in self.neighbours]


def _neighbour(entry: bytes, task: bytes) -> Neighbour:
    reader = Reader(entry)
    client = reader.u32()
    keys = (reader.fixed(KEY_BYTES), reader.fixed(KEY_BYTES), reader.fixed(KEY_BYTES))
    advert = Advert(client, task, *keys, reader.fixed(SIGNATURE_BYTES))
    identity = reader.fixed(KEY_BYTES)
    return Neighbour(advert, identity, tuple(reader.fixed(KEY_BYTES) for _ in range(reader.count())))


class SealedShares(NamedTuple):
    """What one client gives another: hashes of the two shares, and both sealed."""

    client: int
    """To whom, or in :class:`Deliveries` from whom."""
    hashes: bytes
    sealed: bytes

    def encode(self) -> bytes:
        """Return its bytes within a message."""
        return _SEALED.pack(*self)


def _records(reader: Reader, size: int) -> Buffer:
    """Return the records of a list whose number comes first, as they are."""
    return reader.raw(size * reader.count())


def _counted(records: Buffer, size: int) -> list[Buffer]:
    """Return the fields of a list of records: how many there are, and they."""
    return [u32(len(records) // size), records]


@dataclass(frozen=True)
class Shares(Message):
    """C -> S, phase 1: hashes of the dealer's own shares, and sealed shares for each neighbour, signed."""

    kind = 4
    own: bytes
    entries: Buffer
    """Each encoded, see :class:`SealedShares`."""
    signature: bytes

    def signed_fields(self) -> tuple[Buffer, ...]:
        """Return what the signature covers."""
        return self.task, u32(self.client), self.own, self.entries

    def _body(self) -> list[Buffer]:
        return [self.own, *_counted(self.entries, _SEALED.size), self.signature]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        own, entries = reader.fixed(2 * KEY_BYTES), _records(reader, _SEALED.size)
        return cls(client, task, own, entries, reader.fixed(SIGNATURE_BYTES))

    def read_entries(self) -> list[SealedShares]:
        """Return the entries."""
        return list(starmap(SealedShares, _SEALED.iter_unpack(self.entries)))


@dataclass(frozen=True)
class Deliveries(Message):
    """S -> C, phase 2: who shared, and what the client's neighbours sealed for it, in the order of their indices."""

    kind = 5
    shared: bytes
    entries: Buffer
    """Each encoded, see :class:`SealedShares`."""

    def _body(self) -> list[Buffer]:
        return [prefixed(self.shared), *_counted(self.entries, _SEALED.size)]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        return cls(client, task, reader.blob(), _records(reader, _SEALED.size))

    def read_entries(self) -> list[SealedShares]:
        """Return the entries."""
        return list(starmap(SealedShares, _SEALED.iter_unpack(self.entries)))


@dataclass(frozen=True)
class Masked(Message):
    """C -> S, phase 2: the masked vector, packed, before a signature over the hash of all up to its end."""

    kind = 6
    vector: Buffer
    signature: bytes

    def _body(self) -> list[Buffer]:
        return [u32(SIGNATURE_BYTES), u32(0), self.vector, self.signature]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        return cls(client, task, read_vector(reader), reader.fixed(SIGNATURE_BYTES))


@dataclass(frozen=True)
class Complaint(Message):
    """C -> S, phase 2, in place of :class:`Masked`: whose shares could not be opened or do not fit their hashes."""

    kind = 7
    accused: tuple[int, ...]
    signature: bytes

    def signed_fields(self) -> tuple[bytes, ...]:
        """Return what the signature covers."""
        return self.task, u32(self.client), b"".join(map(u32, self.accused))

    def _body(self) -> list[Buffer]:
        return [u32(len(self.accused)), *map(u32, self.accused), self.signature]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        accused = tuple(reader.u32() for _ in range(reader.count()))
        return cls(client, task, accused, reader.fixed(SIGNATURE_BYTES))


@dataclass(frozen=True)
class Survivors(Message):
    """S -> C, phase 3: whose vectors are in the sum; the server signs the sets' digest."""

    kind = 8
    survivors: bytes
    signature: bytes

    def _body(self) -> list[Buffer]:
        return [prefixed(self.survivors), self.signature]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        return cls(client, task, reader.blob(), reader.fixed(SIGNATURE_BYTES))


@dataclass(frozen=True)
class Consistent(Message):
    """C -> S, phase 3: the client's signature over the one digest of sets that it ever signs."""

    kind = 9
    signature: bytes

    def _body(self) -> list[Buffer]:
        return [self.signature]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        return cls(client, task, reader.fixed(SIGNATURE_BYTES))


@dataclass(frozen=True)
class Quorum(Message):
    """S -> C, phase 4: signatures of t - 1 neighbours over the same digest."""

    kind = 10
    signatures: tuple[tuple[int, bytes], ...]

    def _body(self) -> list[Buffer]:
        return _counted(b"".join([_SIGNATURE.pack(*each) for each in self.signatures]), _SIGNATURE.size)

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        return cls(client, task, tuple(_SIGNATURE.iter_unpack(_records(reader, _SIGNATURE.size))))


@dataclass(frozen=True)
class Unmask(Message):
    """C -> S, phase 4: one share of each dealer in the order of indices: of the seed if alive, else of the key."""

    kind = 11
    shares: Buffer
    """Each a dealer's number, four bytes, and the share."""
    signature: bytes

    def signed_fields(self) -> tuple[Buffer, ...]:
        """Return what the signature covers."""
        return self.task, u32(self.client), self.shares

    def _body(self) -> list[Buffer]:
        return [*_counted(self.shares, _SHARE.itemsize), self.signature]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        return cls(client, task, _records(reader, _SHARE.itemsize), reader.fixed(SIGNATURE_BYTES))

    def read_shares(self) -> tuple[NDArray[np.uint32], NDArray[np.uint8]]:
        """Return the dealers [m] and the shares [m, 44]."""
        shares = np.frombuffer(self.shares, _SHARE)
        return shares["dealer"], shares["share"]


@dataclass(frozen=True)
class Abort(Message):
    """S -> C: the task is given up; nothing was or will be revealed in it."""

    kind = 12

    def _body(self) -> list[Buffer]:
        return []

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:  # noqa: ARG003 - it has no fields
        return cls(client, task)
