"""The messages of ``oneshot-seeds``: one report of a client, two exchanges of the server with each decryptor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

from hansa.secagg.encoding import Buffer, Reader, prefixed, u32
from hansa.secagg.keys import KEY_BYTES, SIGNATURE_BYTES
from hansa.secagg.messages import SEALED_SEED_BYTES, Message, read_vector
from hansa.secagg.refusals import malformed


@dataclass(frozen=True)
class Report(Message):
    """C -> S: the masked vector, packed, before one sealed seed for each decryptor, and a signature."""

    kind = 13
    vector: Buffer
    seeds: bytes
    """Joined, 80 bytes each, in the order of the task's decryptors."""
    signature: bytes

    def _body(self) -> list[Buffer]:
        return [u32(len(self.seeds) + SIGNATURE_BYTES), u32(0), self.vector, self.seeds, self.signature]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        vector = read_vector(reader)
        size = reader.left - SIGNATURE_BYTES
        if size < 0 or size % SEALED_SEED_BYTES:
            raise malformed("Its sealed seeds have a length that they cannot have.")
        return cls(client, task, vector, reader.fixed(size), reader.fixed(SIGNATURE_BYTES))


class Sealed(NamedTuple):
    """What a decryptor needs of one report."""

    client: int
    content: bytes
    """SHA-256 of the report up to the end of its masked vector."""
    seeds: bytes
    signature: bytes

    def signed_fields(self, task: bytes) -> tuple[bytes, ...]:
        """Return what the client's signature covers."""
        return task, u32(self.client), self.content, self.seeds


@dataclass(frozen=True)
class Batch(Message):
    """S -> D: the whole roster's identity keys, and what decryptors need of every report, in the order of indices."""

    kind = 14
    identities: tuple[bytes, ...]
    reports: tuple[Sealed, ...]

    def _body(self) -> list[Buffer]:
        seeds = self.reports[0].seeds if self.reports else b""
        entries = (u32(each.client) + each.content + each.seeds + each.signature for each in self.reports)
        count = u32(len(self.identities))
        return [count, *self.identities, u32(len(self.reports)), u32(len(seeds)), *entries]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        identities = tuple(reader.fixed(KEY_BYTES) for _ in range(reader.count()))
        count, size = reader.count(), reader.u32()
        if size and not count:
            raise malformed("It has no report, and a length of seeds.")
        reports = tuple(
            Sealed(reader.u32(), reader.fixed(32), reader.fixed(size), reader.fixed(SIGNATURE_BYTES))
            for _ in range(count)
        )
        return cls(client, task, identities, reports)


@dataclass(frozen=True)
class Valid(Message):
    """D -> S: whose reports this decryptor can open."""

    kind = 15
    members: bytes
    signature: bytes

    def signed_fields(self) -> tuple[bytes, ...]:
        """Return what the signature covers."""
        return self.task, u32(self.client), self.members

    def _body(self) -> list[Buffer]:
        return [prefixed(self.members), self.signature]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        return cls(client, task, reader.blob(), reader.fixed(SIGNATURE_BYTES))


@dataclass(frozen=True)
class Request(Valid):
    """S -> D: over whose reports the one sum of masks is asked, signed by the server."""

    kind = 16


@dataclass(frozen=True)
class Answer(Message):
    """D -> S: the sum of the masks of those asked for, packed, signed with the set that it is over."""

    kind = 17
    members: bytes
    signature: bytes
    vector: Buffer

    def _body(self) -> list[Buffer]:
        return [prefixed(self.members), self.signature, self.vector]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        return cls(client, task, reader.blob(), reader.fixed(SIGNATURE_BYTES), reader.rest())
