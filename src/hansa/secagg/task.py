"""The task of one secure sum: everything that all who take part must agree on, as canonical bytes and their hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Final, Literal, get_args

from hansa.core.ring import FEWEST_BITS, MOST_BITS, Ring, Segment
from hansa.secagg.encoding import LARGEST_LIST, Buffer, Reader, prefixed, u32
from hansa.secagg.keys import KEY_BYTES, digest
from hansa.secagg.refusals import malformed, unsound
from hansa.secagg.roster import Registrar, registration

Protocol = Literal["secagg-full", "secagg-plus", "oneshot-seeds"]
Beacon = Literal["", "authority"]
"""Who draws the value that the graph of ``secagg-plus`` follows from, after it is fixed who advertised; or nobody."""
PHASES: Final = ("advertise", "share", "mask", "consist", "unmask")
SMALLEST: Final = 3
"""Fewest clients of any secure sum: of two, each learns the other's vector from the sum."""

_MAGIC: Final = b"hansa/secagg/v1|task"
_PROTOCOLS: Final = get_args(Protocol)
_REGISTRARS: Final = get_args(Registrar)
_BEACONS: Final = get_args(Beacon)
_LARGEST: Final = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class DecryptorKeys:
    """One decryptor of a task: who runs it, its identity key (Ed25519), and its HPKE key of this round (X25519)."""

    operator: str
    identity: bytes
    sealing: bytes


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one secure sum is over, for whom, and how few may be left. Every field enters ``hash``."""

    protocol: Protocol
    run: str
    """The run; with round and attempt unlike that of any other task of the server."""
    round: int
    attempt: int
    plan_sha256: bytes
    model_sha256: bytes
    roster_root: bytes
    roster_size: int
    registrar: Registrar
    ring: Ring
    minimum_cohort: int
    """Fewest clients that must have advertised before anybody shares."""
    minimum_survivors: int
    """Fewest clients whose vectors a sum may hold."""
    neighbours: int = 0
    """``secagg-plus``: clients with whom each shares keys, an even number; else 0."""
    threshold: int = 0
    """``secagg-plus``: shares that give a secret back; else 0, and for ``secagg-full`` two thirds and one more."""
    beacon: Beacon = ""
    """``secagg-plus``: whether the authority draws a beacon for the graph; a server that lies chooses none then."""
    phase_seconds: tuple[int, ...] = (60, 60, 60, 60, 60)
    """Deadline of each phase, in seconds since it began; carriers keep them. ``oneshot-seeds`` uses the first."""
    decryptors: tuple[DecryptorKeys, ...] = ()

    @cached_property
    def content(self) -> bytes:
        """Return the canonical bytes."""
        return prefixed(_MAGIC, *(_written(getattr(self, each.name)) for each in fields(self)))

    @cached_property
    def hash(self) -> bytes:
        """Return SHA-256 of the canonical bytes: the task's name in every message, key and signature."""
        return hashlib.sha256(self.content).digest()

    @cached_property
    def registered(self) -> tuple[bytes, ...]:
        """Return the fields that the registrar signs under the purpose ``roster``.

        An authority signs the task with the roster: of its signatures over a roster alone a server could keep one, and
        use it for ever, whatever keys the authority has taken off its list since.
        """
        roster = registration(self.roster_root, self.roster_size)
        return (roster, self.hash) if self.registrar == "authority" else (roster,)

    @cached_property
    def report_id(self) -> bytes:
        """Return what all attempts of one round have in common: of these at most one sum may ever be uncovered."""
        return digest("attempts", self.run.encode(), u32(self.round))

    def given_by(self, identity: bytes) -> bytes:
        """Return what all sums of one round that hold a client's vector have in common: a decryptor gives one of them.

        Groups of a cohort have clients apart, so each has its own sum; another attempt with any of them has none.
        """
        return digest("attempts", self.run.encode(), u32(self.round), identity)

    def check(self) -> None:
        """Raise RefusedError unless the parameters fit together."""
        for good, found in self._rules():
            if not good:
                raise unsound(found)

    def _rules(self) -> list[tuple[bool, str]]:
        digests = (self.plan_sha256, self.model_sha256, self.roster_root)
        least, most = SMALLEST, self.roster_size
        masked = self.protocol != "oneshot-seeds"
        rules = [
            (all(len(each) == KEY_BYTES for each in digests), "A digest is not 32 bytes long."),
            (least <= self.minimum_survivors <= self.minimum_cohort <= most, _floors(self)),
            (most <= LARGEST_LIST, f"Its roster has more than {LARGEST_LIST} clients."),
            (bool(self.ring.segments) and self.ring.nbytes > 0, "The ring is empty."),
            (all(FEWEST_BITS <= each.bits <= MOST_BITS for each in self.ring.segments), "Entries have 8 to 64 bits."),
            (len(self.phase_seconds) == len(PHASES) and min(self.phase_seconds) > 0, "Each phase has its deadline."),
            (masked != bool(self.decryptors), "oneshot-seeds has decryptors; the other protocols have none."),
        ]
        if self.protocol == "secagg-plus":
            rules += [
                (self.neighbours >= 2 and self.neighbours % 2 == 0, "neighbours is an even number from 2 on."),
                (2 <= self.threshold <= self.neighbours + 1, "threshold is 2 to neighbours + 1."),
                (not self.beacon or self.registrar == "authority", "A beacon is drawn by the roster's authority."),
                (self.threshold <= self.minimum_survivors, "So few survivors cannot give the threshold's shares."),
            ]
        else:
            none = self.neighbours == self.threshold == 0 and not self.beacon
            rules.append((none, "Only secagg-plus has neighbours, a threshold and a beacon."))
        if not masked:
            rules += self._decryptor_rules()
        return rules

    def _decryptor_rules(self) -> list[tuple[bool, str]]:
        keys = [key for each in self.decryptors for key in (each.identity, each.sealing)]
        operators = {each.operator for each in self.decryptors}
        return [
            (len(self.decryptors) >= 2, "There is one decryptor; it and the server would see every vector."),
            (len(operators) == len(self.decryptors), "Two decryptors have one operator."),
            (len(set(keys)) == len(keys), "Two keys of decryptors are the same."),
            (all(len(key) == KEY_BYTES for key in keys), "A decryptor's key is not 32 bytes long."),
        ]

    def threshold_of(self, advertised: int) -> int:
        """Return how many shares give a secret back when so many clients advertised."""
        return self.threshold or 2 * advertised // 3 + 1


def _floors(task: Task) -> str:
    return (
        f"It wants at least {task.minimum_survivors} survivors of {task.minimum_cohort} clients out of"
        f" {task.roster_size}; there are at least {SMALLEST} survivors, and no more than clients."
    )


def _written(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int):
        if not 0 <= value <= _LARGEST:
            raise unsound(f"A number of the task is {value}.")
        return u32(value)
    if isinstance(value, Ring):
        return b"".join(prefixed(each.name.encode()) + u32(each.length) + u32(each.bits) for each in value.segments)
    return b"".join(
        u32(each) if isinstance(each, int) else prefixed(each.operator.encode(), each.identity, each.sealing)
        for each in value  # type: ignore[attr-defined] # a tuple of numbers or of decryptors
    )


def read_task(content: Buffer) -> Task:
    """Return the task of canonical bytes. RefusedError where they are not canonical, or its parameters do not fit."""
    reader = Reader(content)
    if reader.blob() != _MAGIC:
        raise malformed("It is no task of this version.")
    parts = {each.name: reader.blob() for each in fields(Task)}
    reader.end()
    values: dict[str, object] = {name: _read(name, part) for name, part in parts.items()}
    task = Task(**values)  # type: ignore[arg-type] # each was read as its field is written
    if task.content != content:
        raise malformed("It is not written canonically.")
    task.check()
    return task


def _read(name: str, part: bytes) -> object:
    reader, size = Reader(part), len(part)
    match name:
        case "plan_sha256" | "model_sha256" | "roster_root":
            value: object = part
        case "protocol" | "run" | "registrar" | "beacon":
            value = Reader(prefixed(part)).text()
            known = {"protocol": _PROTOCOLS, "registrar": _REGISTRARS, "beacon": _BEACONS}.get(name)
            if known is not None and value not in known:
                raise malformed(f"It names a {name} that this version does not know.")
        case "ring":
            value = Ring(tuple(_segments(part)))
        case "phase_seconds":
            value = tuple(Reader(part[at : at + 4]).u32() for at in range(0, size, 4))
        case "decryptors":
            value = tuple(_decryptors(part))
        case _:
            value = reader.u32()
            reader.end()
    return value


def _segments(part: bytes) -> list[Segment]:
    reader, found = Reader(part), []
    while not reader.ended:
        found.append(Segment(reader.text(), reader.u32(), reader.u32()))
    return found


def _decryptors(part: bytes) -> list[DecryptorKeys]:
    reader, found = Reader(part), []
    while not reader.ended:
        found.append(DecryptorKeys(operator=reader.text(), identity=reader.blob(), sealing=reader.blob()))
    return found
