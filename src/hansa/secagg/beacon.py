"""The beacon of ``secagg-plus``: a value that an authority draws once it is fixed who advertised.

The graph follows from it, so that a server, and clients that work with it, choose neither the graph nor their places.
Source: Bell et al. 2020, https://eprint.iacr.org/2020/704, section 4, where clients draw their neighbours themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final, Self

from hansa.secagg import keys
from hansa.secagg.encoding import Buffer, Reader, from_bitmap, prefixed, to_bitmap, u32
from hansa.secagg.keys import KEY_BYTES, SIGNATURE_BYTES
from hansa.secagg.messages import Advert, Message
from hansa.secagg.refusals import untrusted
from hansa.secagg.task import Task

VALUE_BYTES: Final = 32
_ADVERT: Final = Struct(f"<{KEY_BYTES}s{KEY_BYTES}s{KEY_BYTES}s{SIGNATURE_BYTES}s")


@dataclass(frozen=True)
class Draw(Message):
    """S -> A, between phases 0 and 1: who advertised, and their adverts in the order of their indices."""

    kind = 18
    advertised: bytes
    adverts: tuple[bytes, ...]
    """Sealing key, masking key, commitment and signature of each, 160 bytes."""

    @classmethod
    def of(cls, task: Task, adverts: Sequence[Advert]) -> Draw:
        """Return the question for those who advertised, given in the order of their indices."""
        packed = (_ADVERT.pack(each.sealing, each.masking, each.commitment, each.signature) for each in adverts)
        members = to_bitmap((each.client for each in adverts), task.roster_size)
        return cls(task.roster_size, task.hash, members, tuple(packed))

    def _body(self) -> list[Buffer]:
        return [prefixed(self.advertised), u32(len(self.adverts)), *self.adverts]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        advertised = reader.blob()
        return cls(client, task, advertised, tuple(reader.fixed(_ADVERT.size) for _ in range(reader.count())))

    def check(self, task: Task, identities: Sequence[bytes]) -> None:
        """Raise RefusedError unless as many as the task demands have advertised in it, each with its own signature.

        ``identities`` are the keys of the task's roster. So nothing is drawn before these clients took part.
        """
        members = from_bitmap(self.advertised, task.roster_size)
        if len(members) != len(self.adverts) or len(members) < task.minimum_cohort:
            raise untrusted("The adverts are not of those who advertised, or are fewer than the task demands.")
        for client, advert in zip(members, self.adverts, strict=True):
            *fields, signature = _ADVERT.unpack(advert)
            if not keys.signed(identities[client], signature, "adv", task.hash, u32(client), *fields):
                raise untrusted("An advert is not signed by its sender's identity.")


@dataclass(frozen=True)
class Beacon(Message):
    """A -> S: the value that was drawn for a task and those who advertised, and the authority's signature."""

    kind = 19
    value: bytes
    signature: bytes

    @property
    def content(self) -> bytes:
        """Return what clients get of it."""
        return self.value + self.signature

    def _body(self) -> list[Buffer]:
        return [self.value, self.signature]

    @classmethod
    def _read(cls, client: int, task: bytes, reader: Reader) -> Self:
        return cls(client, task, reader.fixed(VALUE_BYTES), reader.fixed(SIGNATURE_BYTES))


def signed_beacon(signer: keys.Signer, task: Task, advertised: bytes, value: bytes) -> Beacon:
    """Return an authority's beacon of a value that it has drawn for a task and the set of those who advertised."""
    return Beacon(task.roster_size, task.hash, value, keys.sign(signer, "beacon", task.hash, advertised, value))


def beacon_value(task: Task, advertised: bytes, content: bytes, authority: bytes) -> bytes:
    """Return the value of a beacon that the authority signed for a task and a set; nothing in a task without one.

    Raises RefusedError for any other value, task or set, and where there is a beacon without need.
    """
    if not task.beacon:
        if content:
            raise untrusted("There is a beacon in a task that has none.")
        return b""
    value, signature = content[:VALUE_BYTES], content[VALUE_BYTES:]
    if not keys.signed(authority, signature, "beacon", task.hash, advertised, value):
        raise untrusted("The beacon is not the one that the authority drew for those who advertised in this task.")
    return value
