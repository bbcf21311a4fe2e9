"""The server of ``secagg-full`` and ``secagg-plus``: it carries messages between clients and learns one sum.

Phases: ADVERTISE, DRAW (an authority draws the graph's beacon, where there is one), SHARE, MASK, CONSIST, UNMASK, DONE;
ABORTED from any. A phase's set is frozen when the phase closes, in a record that is durable before anybody is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hansa.core.ring import RingVector
from hansa.secagg import keys
from hansa.secagg.beacon import VALUE_BYTES, Beacon, Draw, beacon_value
from hansa.secagg.composing import announcements, deliveries, keys_of, quorums, survivors_of
from hansa.secagg.convention import Blame, Convention
from hansa.secagg.dealt import Dealt, holders_of
from hansa.secagg.encoding import Buffer, to_bitmap, u32
from hansa.secagg.graph import Graph, sets_digest
from hansa.secagg.known import Known
from hansa.secagg.masks import add
from hansa.secagg.messages import (
    Abort,
    Advert,
    Complaint,
    Consistent,
    Masked,
    Shares,
    Unmask,
    answer_id,
    header_of,
)
from hansa.secagg.records import DAMAGE, Closing, closed, is_message, read, started
from hansa.secagg.refusals import answered, malformed, unexpected, untrusted
from hansa.secagg.step import Outgoing, Step
from hansa.secagg.task import PHASES, Task
from hansa.secagg.unmasking import Revealed, checked_shares, unmask


class Phase(IntEnum):
    """What the server waits for."""

    ADVERTISE = 0
    DRAW = 1
    SHARE = 2
    MASK = 3
    CONSIST = 4
    UNMASK = 5
    DONE = 6
    ABORTED = 7


class MaskingServer:
    """The server of one task. Made by :meth:`start` and :meth:`restore`."""

    def __init__(self, convention: Convention, threads: int) -> None:
        if convention.task.protocol == "oneshot-seeds":
            raise unexpected("The task is of another protocol.")
        self.task, self._convention, self._threads = convention.task, convention, threads
        self.phase = Phase.ADVERTISE
        self.blamed: list[Blame] = []
        self.complaints: list[tuple[int, int]] = []
        """Who accused whom: proof that one of both lied, not which."""
        self.abort_reason = ""
        self._told: tuple[int, ...] = ()
        self.result: RingVector | None = None
        self._sets: dict[Phase, tuple[int, ...]] = {}
        self._answers: dict[int, bytes] = {}
        """Client -> hash of its answer in this phase."""
        self._missing: dict[int, None] = dict.fromkeys(range(convention.task.roster_size))
        """Who has not answered in this phase, in the order of indices."""
        self._adverts: dict[int, Advert] = {}
        self._beacon = b""
        """The value that was drawn and its signature."""
        self._keys: set[bytes] = set()
        self._shares: dict[int, Shares] = {}
        """By dealer."""
        self._total = convention.task.ring.zeros()
        self._complained: set[int] = set()
        self._signatures: dict[int, bytes] = {}
        self._revealed: dict[int, Revealed] = {}
        """By holder."""

    @classmethod
    def start(cls, convention: Convention, *, threads: int = 1) -> tuple[MaskingServer, Step]:
        """Return a server that waits for adverts, and the announcements."""
        server = cls(convention, threads)
        return server, Step(persist=(started(server.task),), send=server._sends())

    @classmethod
    def restore(
        cls, convention: Convention, records: Sequence[Buffer], *, threads: int = 1
    ) -> tuple[MaskingServer, Step]:
        """Return the server of its records, and the messages of its phase again.

        The messages are the same bytes; they may be sent to all, as clients repeat their answers.
        """
        server = cls(convention, threads)
        try:
            for record in records:
                server._replay(record)
        except DAMAGE:
            return server, server._end(Phase.ABORTED, "records are missing or damaged", ())
        if server.phase < Phase.DONE and not server.waits_for:
            return server, server._close(())
        return server, Step(send=server._sends())

    @property
    def survivors(self) -> tuple[int, ...]:
        """Return whose vectors the sum holds, once that is frozen."""
        return self._sets.get(Phase.MASK, ())

    @property
    def waits_for(self) -> tuple[int, ...]:
        """Return who has not answered in this phase; in DRAW the authority, which has the place after the roster."""
        return tuple(self._missing)

    @property
    def seconds(self) -> int:
        """Return how long this phase may take; drawing as long as the phase that it is needed for."""
        return self.task.phase_seconds[min(self.phase - (self.phase > Phase.DRAW), len(PHASES) - 1)]

    def on_message(self, message: Buffer, content: bytes = b"") -> Step:
        """Take a client's message. Raises RefusedError, with nothing changed, where it is not acceptable.

        An answer that is known already changes nothing; a different one is refused. ``content`` is what
        :func:`hansa.secagg.known.content_of` gave for the message, where the carrier has computed it.
        """
        header = header_of(message)
        if header.task != self.task.hash:
            raise unexpected("A message came that belongs to another task.")
        if self.phase >= Phase.DONE:
            raise unexpected("The task is over.")
        if header.client in self._answers:
            if self._answers[header.client] != answer_id(message):
                raise answered("A client has answered a phase in two ways.")
            return Step()
        if header.client not in self._missing:
            raise unexpected("A message came from a client that is not asked in this phase.")
        self._take(message, Known(content=content))
        return Step(persist=(message,)) if self._missing else self._close((message,))

    def on_deadline(self) -> Step:
        """Close the phase with those who have answered, or give the task up."""
        if self.phase >= Phase.DONE:
            return Step()
        return self._close(())

    def _asked(self) -> Sequence[int]:
        """Return who is asked in this phase: those who answered the one before."""
        if self.phase is Phase.ADVERTISE:
            return range(self.task.roster_size)
        return self._sets.get(Phase(self.phase - 1), ())

    def _take(self, message: Buffer, known: Known) -> None:
        """Take an answer into the state."""
        kind, client, _ = header_of(message)
        takers: dict[int, tuple[Phase, Callable[[Buffer, Known], None]]] = {
            Advert.kind: (Phase.ADVERTISE, self._take_advert),
            Beacon.kind: (Phase.DRAW, self._take_beacon),
            Shares.kind: (Phase.SHARE, self._take_shares),
            Masked.kind: (Phase.MASK, self._take_masked),
            Complaint.kind: (Phase.MASK, self._take_complaint),
            Consistent.kind: (Phase.CONSIST, self._take_consistent),
            Unmask.kind: (Phase.UNMASK, self._take_unmask),
        }
        phase, taker = takers.get(kind, (None, None))
        if taker is None or phase is not self.phase:
            raise unexpected("A message came that is of no use in this phase.")
        taker(message, known)
        self._answers[client] = answer_id(message)
        self._missing.pop(client, None)

    def _check_signature(self, client: int, signature: bytes, purpose: keys.Purpose, *signed: Buffer) -> None:
        if not keys.signed(self._convention.roster.identities[client], signature, purpose, *signed):
            raise untrusted("A message is not signed by its sender's identity.")

    def _take_advert(self, content: Buffer, known: Known) -> None:
        message = Advert.decode(content, self.task.hash)
        if not known.trusted:
            self._check_signature(message.client, message.signature, "adv", *message.signed_fields())
            new = {message.sealing, message.masking}
            if len(new) < 2 or new & self._keys:
                raise untrusted("A key of a round is there twice.")
            if not all(map(keys.usable, new)):
                raise untrusted("A key of a round is of small order, or is not written as a number below p.")
        self._keys |= {message.sealing, message.masking}
        self._adverts[message.client] = message

    def _take_beacon(self, content: Buffer, known: Known) -> None:
        message = Beacon.decode(content, self.task.hash)
        if not known.trusted:
            advertised = to_bitmap(self._sets[Phase.ADVERTISE], self.task.roster_size)
            beacon_value(self.task, advertised, message.content, self._convention.authority)
        self._beacon = message.content

    def _take_shares(self, content: Buffer, known: Known) -> None:
        message = Shares.decode(content, self.task.hash)
        if not known.trusted:
            if holders_of(message) != self.graph.neighbours(message.client):
                raise untrusted("Shares are not for the sender's neighbours.")
            self._check_signature(message.client, message.signature, "shares", *message.signed_fields())
        self._shares[message.client] = message

    def _take_masked(self, content: Buffer, known: Known) -> None:
        message = Masked.decode(content, self.task.hash)
        if not known.trusted:
            around, shared = self.graph.neighbours(message.client), self._shares
            masked_with = b"".join([self._adverts[each].masking for each in around if each in shared])
            fields = self.task.hash, u32(message.client), masked_with, known.content_of(content)
            self._check_signature(message.client, message.signature, "masked", *fields)
        add(self._total, self.task.ring.unpack(message.vector))

    def _take_complaint(self, content: Buffer, known: Known) -> None:
        message = Complaint.decode(content, self.task.hash)
        if not known.trusted:
            accused = set(message.accused)
            if not accused <= set(self.graph.neighbours(message.client)) or len(accused) != len(message.accused):
                raise untrusted("A complaint is about others than neighbours, or about one twice.")
            self._check_signature(message.client, message.signature, "complaint", *message.signed_fields())
        self.complaints += [(message.client, each) for each in message.accused]
        self._complained.add(message.client)

    def _take_consistent(self, content: Buffer, known: Known) -> None:
        message = Consistent.decode(content, self.task.hash)
        if not known.trusted:
            self._check_signature(message.client, message.signature, "surv", self._digest)
        self._signatures[message.client] = message.signature

    def _take_unmask(self, content: Buffer, known: Known) -> None:
        message = Unmask.decode(content, self.task.hash)
        dealers, hashes = self._dealt.hashes(message.client)
        if not known.trusted:
            if not np.array_equal(message.read_shares()[0], dealers):
                raise untrusted("Shares are not those of the sender's dealers.")
            self._check_signature(message.client, message.signature, "unmask", *message.signed_fields())
        revealed = checked_shares(message, hashes, self._alive)
        if len(revealed.dealers) < len(dealers):
            self.blamed.append(Blame(message.client, "a share does not fit the hash that its dealer signed"))
        self._revealed[message.client] = revealed

    @cached_property
    def graph(self) -> Graph:
        """Return who shares keys with whom, once it is known who advertised."""
        return Graph(self.task, self._sets[Phase.ADVERTISE], self._beacon[:VALUE_BYTES])

    @cached_property
    def _dealt(self) -> Dealt:
        return Dealt.of(self._shares)

    @cached_property
    def _alive(self) -> NDArray[np.bool_]:
        return np.isin(np.arange(self.task.roster_size), self.survivors)

    @cached_property
    def _digest(self) -> bytes:
        return sets_digest(self.task, *(self._sets[each] for each in (Phase.ADVERTISE, Phase.SHARE, Phase.MASK)))

    def _sends(self) -> tuple[Outgoing, ...]:
        """Return the phase's messages to those who have not answered."""
        match self.phase:
            case Phase.ADVERTISE:
                messages = announcements(self._convention, self.waits_for)
            case Phase.DRAW:
                messages = iter((Draw.of(self.task, [self._adverts[each] for each in sorted(self._adverts)]),))
            case Phase.SHARE:
                messages = keys_of(self._convention, self.graph, self._adverts, self.waits_for, self._beacon)
            case Phase.MASK:
                messages = deliveries(self.task, self._dealt, self.waits_for)
            case Phase.CONSIST:
                messages = survivors_of(self._convention, self.survivors, self._digest, self.waits_for)
            case Phase.UNMASK:
                messages = quorums(self.graph, self._signatures, self.waits_for)
            case Phase.ABORTED:
                messages = (Abort(each, self.task.hash) for each in self._told)
            case _:
                messages = iter(())
        return tuple(Outgoing(each.client, each.encode()) for each in messages)

    def _close(self, persist: tuple[Buffer, ...]) -> Step:
        """Freeze the phase's set and begin the next phase, or give up."""
        members = tuple(sorted(set(self._answers) - self._complained))
        if self.phase is Phase.UNMASK:
            return self._finish(persist)
        if self.phase is Phase.DRAW:
            members = self._sets[Phase.ADVERTISE]
        self._sets[self.phase] = members
        if lacking := self._lacking(members):
            del self._sets[self.phase]
            return self._end(Phase.ABORTED, lacking, persist)
        payload = self.task.ring.pack(self._total) if self.phase is Phase.MASK else b""
        record = closed(self.task, self.phase, members, payload)
        self._go_on()
        return Step(persist=(*persist, record), send=self._sends())

    def _go_on(self) -> None:
        """Begin the phase after the one whose set was frozen; in a task without a beacon nobody draws one."""
        if self.phase is Phase.ADVERTISE and not self.task.beacon:
            self._sets[Phase.DRAW] = self._sets[Phase.ADVERTISE]
            self._begin(Phase.SHARE)
        else:
            self._begin(Phase(self.phase + 1))

    def _begin(self, phase: Phase) -> None:
        self.phase, self._complained = phase, set()
        if phase is Phase.DRAW:  # clients are not asked: who says an advert again is answered already
            self._missing = {self.task.roster_size: None}
            return
        self._answers = {}
        self._missing = dict.fromkeys(self._asked() if phase < Phase.DONE else ())

    def _lacking(self, members: Sequence[int]) -> str:
        """Say what a phase lacks to go on with so many; nothing where it can."""
        fewest = self.task.minimum_survivors
        if self.phase is Phase.ADVERTISE:
            fewest = self.task.minimum_cohort
        elif self.phase is Phase.CONSIST:
            fewest = self.graph.threshold
        if len(members) < fewest:
            return f"{len(members)} clients have answered in phase {self.phase.name}, fewer than {fewest}"
        if self.phase is Phase.DRAW and not self._beacon:
            return "the authority has drawn no beacon"
        begun = Graph(self.task, tuple(members))
        if self.phase is Phase.ADVERTISE and begun.threshold > begun.holders:
            return f"{begun.threshold} shares are needed, and {begun.holders} clients hold some"
        if self.phase in {Phase.MASK, Phase.CONSIST} and not self._recoverable(members):
            return f"after phase {self.phase.name} too few hold shares of some secret"
        return ""

    def _recoverable(self, present: Sequence[int]) -> bool:
        alive, there = set(self.survivors), set(present)
        for dealer in self._sets[Phase.SHARE]:
            masked = dealer in alive or any(each in alive for each in self.graph.neighbours(dealer))
            if masked and len(self.graph.holders_within(dealer, there)) < self.graph.threshold:
                return False
        return True

    def _finish(self, persist: tuple[Buffer, ...]) -> Step:
        """Unmask the sum with the shares that came."""
        unmasked = unmask(
            self.graph, self._sets[Phase.SHARE], self.survivors,
            adverts=self._adverts, revealed=self._revealed, total=self._total, threads=self._threads,
        )  # fmt: skip
        self.blamed += [Blame(each, "shares give no secret that fits its commitment") for each in unmasked.dealers]
        if unmasked.lacking:
            return self._end(Phase.ABORTED, unmasked.lacking, persist)
        self.result = self.task.ring.reduce(self._total)
        return self._end(Phase.DONE, "", persist)

    def _end(self, phase: Phase, reason: str, persist: tuple[Buffer, ...]) -> Step:
        """Stop, with the sum or without, and drop everything else."""
        self.result = self.result if phase is Phase.DONE else None
        payload = reason.encode() if self.result is None else self.task.ring.pack(self.result)
        record = closed(self.task, self.phase, self.survivors, payload, good=phase is Phase.DONE)
        told = tuple(self._asked()) if phase is Phase.ABORTED else ()
        self._stop(phase, reason)
        self._told = told
        return Step(persist=(*persist, record), send=self._sends())

    def _stop(self, phase: Phase, reason: str) -> None:
        self._begin(phase)
        self.abort_reason = reason
        self._adverts, self._shares, self._signatures, self._revealed, self._total = {}, {}, {}, {}, ()
        vars(self).pop("_dealt", None)

    def _replay(self, record: Buffer) -> None:
        if is_message(record):
            self._take(record, Known(trusted=True))
        elif (closing := read(record, self.task)) is not None:
            self._replay_closing(closing)

    def _replay_closing(self, closing: Closing) -> None:
        phase, members, payload = Phase(closing.phase), closing.members, closing.payload
        if not closing.good:
            self.phase = phase
            known = phase is Phase.ADVERTISE or Phase(phase - 1) in self._sets
            told = tuple(self._asked()) if known else ()
            self._stop(Phase.ABORTED, payload.decode())
            self._told = told
        elif phase is Phase.UNMASK:
            self._sets[Phase.MASK] = members
            self.result = self.task.ring.unpack(payload)
            self._stop(Phase.DONE, "")
        elif phase is not self.phase or (phase is Phase.DRAW and not self._beacon):
            raise malformed("A record of a phase is missing.")
        else:
            self._sets[phase] = members
            if phase is Phase.MASK:
                self._total = tuple(array.copy() for array in self.task.ring.unpack(payload))
            self._go_on()


def compact(records: Sequence[Buffer], task: Task) -> list[Buffer]:
    """Return the records that a server still needs: no masked vectors once their total is frozen, at the end no shares.

    A carrier may drop the others when the last of these is durable.
    """
    closings = [None if is_message(each) else read(each, task) for each in records]
    last = next((each for each in reversed(closings) if each is not None), None)
    if last is None:
        return list(records)
    if not last.good or last.phase == Phase.UNMASK:
        return [records[0], *(each for each, closing in zip(records, closings, strict=True) if closing is last)]
    if last.phase < Phase.MASK:
        return list(records)
    return [each for each in records if not (is_message(each) and header_of(each).kind == Masked.kind)]
