"""The server of ``oneshot-seeds``: it adds masked vectors, and takes off the sums of masks that decryptors give.

Phases: COLLECT, CHECK (each decryptor says whose reports it can open), EXCLUDE (reports that some decryptor cannot open
are needed once more, to be taken out), DECRYPT, DONE; ABORTED from any.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from enum import IntEnum

from hansa.core.ring import RingVector
from hansa.secagg import keys
from hansa.secagg.composing import announcements
from hansa.secagg.convention import Convention
from hansa.secagg.encoding import Buffer, Reader, from_bitmap, prefixed, to_bitmap
from hansa.secagg.known import Known
from hansa.secagg.masks import add, subtract
from hansa.secagg.messages import SEALED_SEED_BYTES, Abort, Message, answer_id, header_of
from hansa.secagg.oneshot_messages import Answer, Batch, Report, Request, Sealed, Valid
from hansa.secagg.records import DAMAGE, Closing, closed, is_message, read, started
from hansa.secagg.refusals import answered, malformed, unexpected, untrusted
from hansa.secagg.step import Outgoing, Step


class Phase(IntEnum):
    """What the server waits for."""

    COLLECT = 0
    CHECK = 1
    EXCLUDE = 2
    DECRYPT = 3
    DONE = 4
    ABORTED = 5


class SummingServer:
    """The server of one task. Made by :meth:`start` and :meth:`restore`."""

    def __init__(self, convention: Convention) -> None:
        if convention.task.protocol != "oneshot-seeds":
            raise unexpected("The task is of another protocol.")
        self.task, self._convention = convention.task, convention
        self.phase = Phase.COLLECT
        self.abort_reason = ""
        self.result: RingVector | None = None
        self.survivors: tuple[int, ...] = ()
        """Whose vectors the sum holds, once that is frozen."""
        self._answers: dict[int, bytes] = {}
        self._reports: dict[int, Sealed] = {}
        self._excluded: tuple[int, ...] = ()
        self._total = convention.task.ring.zeros()
        self._valid: dict[int, tuple[int, ...]] = {}

    @classmethod
    def start(cls, convention: Convention) -> tuple[SummingServer, Step]:
        """Return a server that waits for reports, and the announcements."""
        server = cls(convention)
        return server, Step(persist=(started(server.task),), send=server._sends())

    @classmethod
    def restore(cls, convention: Convention, records: Sequence[Buffer]) -> tuple[SummingServer, Step]:
        """Return the server of its records, and the messages of its phase again."""
        server = cls(convention)
        try:
            for record in records:
                server._replay(record)
        except DAMAGE:
            return server, server._end(Phase.ABORTED, "records are missing or damaged", ())
        if server.phase < Phase.DONE and not server.waits_for:
            return server, server._close(())
        return server, Step(send=server._sends(), again=server._again())

    @property
    def reporters(self) -> tuple[int, ...]:
        """Return whose reports came, until the task is over."""
        return tuple(sorted(self._reports))

    @property
    def waits_for(self) -> tuple[int, ...]:
        """Return which clients, or in CHECK and DECRYPT which decryptors, have not answered in this phase."""
        return tuple(each for each in self._asked() if each not in self._answers)

    @property
    def seconds(self) -> int:
        """Return how long this phase may take."""
        return self.task.phase_seconds[min(self.phase, len(self.task.phase_seconds) - 1)]

    def on_message(self, message: Buffer, content: bytes = b"") -> Step:
        """Take a message of a client or decryptor. Raises RefusedError, with nothing changed, if not acceptable.

        ``content`` is what :func:`hansa.secagg.known.content_of` gave for the message, where the carrier has it.
        """
        header = header_of(message)
        if header.task != self.task.hash:
            raise unexpected("A message came that belongs to another task.")
        takers: dict[tuple[Phase, int], Callable[[Buffer, Known], None]] = {
            (Phase.COLLECT, Report.kind): self._take_report,
            (Phase.CHECK, Valid.kind): self._take_valid,
            (Phase.EXCLUDE, Report.kind): self._take_out,
            (Phase.DECRYPT, Answer.kind): self._take_answer,
        }
        taker = takers.get((self.phase, header.kind))
        if taker is None or header.client not in self._asked():
            raise unexpected("A message came that is of no use in this phase.")
        answer = answer_id(message)
        known = self._answers.get(header.client)
        if known is not None:
            if known != answer:
                raise answered("A phase was answered in two ways.")
            return Step()
        taker(message, Known(content=content))
        self._answers[header.client] = answer
        persist = () if self.phase is Phase.EXCLUDE else (message,)
        return Step(persist=persist) if len(self._answers) < len(self._asked()) else self._close(persist)

    def on_deadline(self) -> Step:
        """Close the collection with those who have reported; without a decryptor, or a report to take out, give up."""
        if self.phase >= Phase.DONE:
            return Step()
        if self.phase is Phase.COLLECT or not self.waits_for:
            return self._close(())
        return self._end(Phase.ABORTED, f"not all have answered in phase {self.phase.name}", ())

    def _asked(self) -> Sequence[int]:
        match self.phase:
            case Phase.COLLECT:
                return range(self.task.roster_size)
            case Phase.CHECK | Phase.DECRYPT:
                return range(len(self.task.decryptors))
            case Phase.EXCLUDE:
                return self._excluded
            case _:
                return ()

    def _again(self) -> tuple[int, ...]:
        return self.waits_for if self.phase is Phase.EXCLUDE else ()

    def _take_report(self, content: Buffer, known: Known) -> None:
        message = Report.decode(content, self.task.hash)
        sealed = Sealed(message.client, known.content_of(content), message.seeds, message.signature)
        if not known.trusted:
            if len(message.seeds) != SEALED_SEED_BYTES * len(self.task.decryptors):
                raise untrusted("A report does not have one seed for each decryptor.")
            identity = self._convention.roster.identities[message.client]
            if not keys.signed(identity, message.signature, "report", *sealed.signed_fields(self.task.hash)):
                raise untrusted("A report is not signed by its sender's identity.")
        add(self._total, self.task.ring.unpack(message.vector))
        self._reports[message.client] = sealed

    def _take_valid(self, content: Buffer, known: Known) -> None:
        message = Valid.decode(content, self.task.hash)
        if not known.trusted:
            self._check_decryptor(message.client, message.signature, "valid", *message.signed_fields())
        self._valid[message.client] = from_bitmap(message.members, self.task.roster_size)

    def _take_out(self, content: Buffer, known: Known) -> None:
        message = Report.decode(content, self.task.hash)
        if known.content_of(content) != self._reports[message.client].content:
            raise untrusted("A report is not the one that came before.")
        subtract(self._total, self.task.ring.unpack(message.vector))

    def _take_answer(self, content: Buffer, known: Known) -> None:
        message = Answer.decode(content, self.task.hash)
        if not known.trusted:
            fields = message.members, hashlib.sha256(message.vector).digest()
            place = message.client.to_bytes(4, "little")
            self._check_decryptor(message.client, message.signature, "answer", self.task.hash, place, *fields)
        if from_bitmap(message.members, self.task.roster_size) != self.survivors:
            raise untrusted("A decryptor's sum is over others than it was asked for.")
        subtract(self._total, self.task.ring.unpack(message.vector))

    def _check_decryptor(self, place: int, signature: bytes, purpose: keys.Purpose, *signed: Buffer) -> None:
        if not keys.signed(self.task.decryptors[place].identity, signature, purpose, *signed):
            raise untrusted("A message is not signed by its decryptor.")

    def _close(self, persist: tuple[Buffer, ...]) -> Step:
        if self.phase is Phase.DECRYPT:
            self.result = self.task.ring.reduce(self._total)
            return self._end(Phase.DONE, "", persist)
        members = tuple(sorted(self._reports))
        if self.phase is not Phase.COLLECT:
            members = tuple(each for each in members if all(each in valid for valid in self._valid.values()))
        fewest = self.task.minimum_cohort if self.phase is Phase.COLLECT else self.task.minimum_survivors
        if len(members) < fewest:
            reason = f"{len(members)} reports are left after phase {self.phase.name}, fewer than {fewest}"
            return self._end(Phase.ABORTED, reason, persist)
        payload = b"" if self.phase is Phase.CHECK else bytes(self.task.ring.pack(self._total))
        if self.phase is Phase.COLLECT:
            payload = prefixed(payload, Batch(0, self.task.hash, (), self._sealed()).encode())
        record = closed(self.task, self.phase, members, payload)
        self._begin(self.phase, members)
        if not self.waits_for:  # nobody is to be taken out
            following = self._close(())
            return Step(persist=(*persist, record, *following.persist), send=following.send)
        return Step(persist=(*persist, record), send=self._sends(), again=self._again())

    def _begin(self, closing: Phase, members: tuple[int, ...]) -> None:
        self.phase, self._answers = Phase(closing + 1), {}
        if closing is Phase.CHECK:
            self.survivors = members
            self._excluded = tuple(sorted(set(self._reports) - set(members)))

    def _end(self, phase: Phase, reason: str, persist: tuple[Buffer, ...]) -> Step:
        self.result = self.result if phase is Phase.DONE else None
        payload = reason.encode() if self.result is None else self.task.ring.pack(self.result)
        record = closed(self.task, self.phase, self.survivors, payload, good=phase is Phase.DONE)
        self._stop(phase, reason)
        return Step(persist=(*persist, record), send=self._sends())

    def _stop(self, phase: Phase, reason: str) -> None:
        self.phase, self.abort_reason = phase, reason
        self._answers, self._reports, self._valid, self._total = {}, {}, {}, ()

    def _sends(self) -> tuple[Outgoing, ...]:
        """Return the phase's messages to those who have not answered."""
        task, size = self.task.hash, self.task.roster_size
        messages: list[Message] = []
        if self.phase is Phase.COLLECT:
            messages = list(announcements(self._convention, self.waits_for))
        elif self.phase is Phase.CHECK:
            identities = self._convention.roster.identities
            messages = [Batch(each, task, identities, self._sealed()) for each in self.waits_for]
        elif self.phase is Phase.DECRYPT:
            unsigned = [Request(each, task, to_bitmap(self.survivors, size), b"") for each in self.waits_for]
            messages = [
                Request(each.client, task, each.members,
                        keys.sign(self._convention.signer, "request", *each.signed_fields()))
                for each in unsigned
            ]  # fmt: skip
        elif self.phase is Phase.ABORTED:
            messages = [Abort(each, task) for each in range(size)]
        return tuple(Outgoing(each.client, each.encode()) for each in messages)

    def _sealed(self) -> tuple[Sealed, ...]:
        """Return what decryptors need of all reports."""
        return tuple(self._reports[each] for each in self.reporters)

    def _replay(self, record: Buffer) -> None:
        if not is_message(record):
            closing = read(record, self.task)
            if closing is not None:
                self._replay_closing(closing)
            return
        takers: dict[int, tuple[Phase, Callable[[Buffer, Known], None]]] = {
            Report.kind: (Phase.COLLECT, self._take_report),
            Valid.kind: (Phase.CHECK, self._take_valid),
            Answer.kind: (Phase.DECRYPT, self._take_answer),
        }
        header = header_of(record)
        phase, taker = takers.get(header.kind, (None, None))
        if taker is None or phase is not self.phase:
            raise malformed("A record of a phase is missing.")
        taker(record, Known(trusted=True))
        self._answers[header.client] = answer_id(record)

    def _replay_closing(self, closing: Closing) -> None:
        phase = Phase(closing.phase)
        if not closing.good:
            self._stop(Phase.ABORTED, closing.payload.decode())
            return
        if phase is Phase.DECRYPT:
            self.survivors = closing.members
            self.result = self.task.ring.unpack(closing.payload)
            self._stop(Phase.DONE, "")
            return
        if phase is not self.phase:
            raise malformed("A record of a phase is missing.")
        packed = closing.payload
        if phase is Phase.COLLECT:
            reader = Reader(packed)
            packed, batch = reader.blob(), reader.blob()
            self._reports = {each.client: each for each in Batch.decode(batch, self.task.hash).reports}
        if packed:
            self._total = tuple(array.copy() for array in self.task.ring.unpack(packed))
        self._begin(phase, closing.members)
