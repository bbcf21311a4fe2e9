"""A decryptor of ``oneshot-seeds``: run apart from the server, it gives one sum of masks a task, of enough clients."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from hansa.core.ring import Ring, RingVector
from hansa.secagg import keys
from hansa.secagg.encoding import Buffer, Reader, from_bitmap, prefixed, to_bitmap, u32
from hansa.secagg.masks import Mask, apply_on_threads, subtract
from hansa.secagg.messages import SEALED_SEED_BYTES as SEED
from hansa.secagg.messages import header_of
from hansa.secagg.oneshot_messages import Answer, Batch, Request, Sealed, Valid
from hansa.secagg.refusals import answered, malformed, unexpected, unsound, untrusted
from hansa.secagg.roster import Registrar, Roster
from hansa.secagg.sealing import Binding, open_seed, seed_key
from hansa.secagg.step import Outgoing, Step
from hansa.secagg.task import SMALLEST, Task, read_task

Noise = Callable[[Ring], RingVector]
"""Integer noise of a decryptor's own, which is added to the clients' sum."""

_RECORD: Final = b"HSD1"
LARGEST_VECTOR: Final = 1 << 30


@dataclass(frozen=True, kw_only=True)
class DecryptorPolicy:
    """A decryptor's keys and its own floor, whatever the task says."""

    operator: str
    server_key: bytes
    registrar: Registrar = "pinned"
    authority_key: bytes = b""
    pinned: frozenset[bytes] = frozenset()
    minimum_survivors: int = SMALLEST
    largest_vector: int = LARGEST_VECTOR
    """Bytes of a packed vector, at most: a task of a few bytes may name a ring that no memory holds."""

    def accepted(self, content: bytes, registered: bytes, identity: bytes, sealing: bytes) -> tuple[Task, int]:
        """Return a task, and this decryptor's place in it. Raises RefusedError unless keys and floors hold."""
        task = read_task(content)
        mine = [place for place, each in enumerate(task.decryptors) if each.operator == self.operator]
        own = [(task.decryptors[place].identity, task.decryptors[place].sealing) for place in mine]
        if own != [(identity, sealing)]:
            raise untrusted("The task does not name this decryptor's operator with its two keys.")
        if task.registrar != self.registrar:
            raise untrusted(f"The roster's registrar is {task.registrar!r}; the policy demands {self.registrar!r}.")
        key = self.authority_key if self.registrar == "authority" else self.server_key
        if self.registrar == "authority" and key == self.server_key:
            raise untrusted("The policy's authority_key is the server's own key.")
        if not keys.signed(key, registered, "roster", *task.registered):
            raise untrusted("The roster is not signed by its registrar.")
        if task.minimum_survivors < self.minimum_survivors:
            raise untrusted(
                f"The task is for {task.minimum_survivors} survivors; the policy demands {self.minimum_survivors}."
            )
        if task.ring.nbytes > self.largest_vector:
            raise untrusted(f"A vector has {task.ring.nbytes} bytes; the policy takes {self.largest_vector} at most.")
        return task, mine[0]


class Phase(IntEnum):
    """What the decryptor has answered last."""

    SIGNED = 0
    CHECKED = 1
    ANSWERED = 2


class Decryptor:
    """A decryptor of one task. Made by :meth:`start` and :meth:`restore`."""

    def __init__(  # noqa: PLR0913 - a task, a key of the round, and what the decryptor is
        self,
        records: tuple[bytes, bytes, bytes],
        *,
        signer: keys.Signer,
        identity: bytes,
        policy: DecryptorPolicy,
        spent: Container[bytes],
        noise: Noise | None,
        threads: int,
    ) -> None:
        content, registered, secret = records
        sealing = keys.private_key(secret).public_key().public_bytes_raw()
        self.task, self.place = policy.accepted(content, registered, identity, sealing)
        self.phase = Phase.SIGNED
        self.signature = keys.sign(signer, "task", self.task.hash)
        """What tells clients that this decryptor stands ready for the task with the key that it names."""
        self._policy, self._signer, self._noise, self._threads = policy, signer, noise, threads
        self._secret, self._spent = secret, spent
        self.uses: tuple[bytes, ...] = ()
        """What the answer uses up, once there is one: it goes into ``spent`` with the answer, before that is sent."""
        self._seeds: dict[int, bytes] = {}
        self._identities: tuple[bytes, ...] = ()
        self._asked: dict[Phase, bytes] = {}
        self._reply = b""

    @classmethod
    def start(  # noqa: PLR0913 - a task, a key of the round, and what the decryptor is
        cls,
        content: bytes,
        registered: bytes,
        *,
        secret: bytes,
        signer: keys.Signer,
        identity: bytes,
        policy: DecryptorPolicy,
        spent: Container[bytes] = (),
        noise: Noise | None = None,
        threads: int = 1,
    ) -> tuple[Decryptor, Step]:
        """Return a decryptor that stands ready for a task: its canonical bytes, and the registrar's signature.

        ``secret`` is the X25519 key of this round, 32 bytes that nobody can guess. ``spent`` holds ``hash`` of the
        tasks that this decryptor ever stood ready for, and ``uses`` of those whose answer is durable: no client's
        vector goes into two sums of one round. Raises RefusedError where a check fails.
        """
        first = content, registered, secret
        decryptor = cls(
            first, signer=signer, identity=identity, policy=policy, spent=spent, noise=noise, threads=threads
        )
        if decryptor.task.hash in spent:
            raise answered("This decryptor has stood ready for the task before.")
        return decryptor, Step(persist=(_RECORD + prefixed(content, registered, secret),))

    @classmethod
    def restore(  # noqa: PLR0913 - as for start
        cls,
        records: Sequence[Buffer],
        *,
        signer: keys.Signer,
        identity: bytes,
        policy: DecryptorPolicy,
        spent: Container[bytes] = (),
        noise: Noise | None = None,
        threads: int = 1,
    ) -> tuple[Decryptor, Step]:
        """Return the decryptor of its records, and its last message again."""
        reader = Reader(records[0] if records else b"")
        if reader.fixed(len(_RECORD)) != _RECORD:
            raise malformed("The first record is not that of a decryptor.")
        first = reader.blob(), reader.blob(), reader.blob()
        decryptor = cls(
            first, signer=signer, identity=identity, policy=policy, spent=spent, noise=noise, threads=threads
        )
        kept = {header_of(each).kind: bytes(each) for each in records[1:]}
        step = Step()
        if Batch.kind in kept:
            step = decryptor.on_message(kept[Batch.kind])
        if Answer.kind in kept:
            if not {Batch.kind, Request.kind} <= set(kept):
                raise malformed("A record before the answer is missing.")
            decryptor._answer_with(kept[Request.kind], kept[Answer.kind])
            step = Step(send=(Outgoing(decryptor.place, kept[Answer.kind]),))
        return decryptor, Step(send=step.send)

    def on_deadline(self) -> Step:
        """Forget the seeds: the server has not asked in time."""
        self._seeds, self._secret = {}, b""
        return Step()

    def on_message(self, message: Buffer) -> Step:
        """Take a message of the server. Raises RefusedError, with nothing changed, where a check fails.

        A repeat of what was answered last gives the same bytes again; anything else that was answered is refused.
        """
        header = header_of(message)
        if header.task != self.task.hash or header.client != self.place:
            raise unexpected("A message came that is for another task or decryptor.")
        phase = {Batch.kind: Phase.CHECKED, Request.kind: Phase.ANSWERED}.get(header.kind)
        if phase is None:
            raise unexpected("A decryptor takes no message of that kind.")
        if phase <= self.phase:
            if phase == self.phase and self._asked[phase] == hashlib.sha256(message).digest():
                return Step(send=(Outgoing(self.place, self._reply),))
            raise answered("A decryptor gives one sum a task, of the one batch that it checked.")
        if phase != self.phase + 1:
            raise unexpected("A sum is asked for before the batch was checked.")
        if phase is Phase.CHECKED:
            batch = Batch.decode(message, self.task.hash)
            self._seeds, reply = self._checked(batch)
            self._identities = batch.identities
            persist: tuple[Buffer, ...] = (message,)
        else:
            reply = self._summed(Request.decode(message, self.task.hash))
            persist = (message, reply)
        self._answer_with(message, reply)
        return Step(persist=persist, send=(Outgoing(self.place, self._reply),))

    def _answer_with(self, message: Buffer, reply: bytes) -> None:
        self.phase = Phase(self.phase + 1)
        self._asked[self.phase], self._reply = hashlib.sha256(message).digest(), reply
        if self.phase is Phase.ANSWERED:
            self._seeds, self._secret = {}, b""

    def _checked(self, batch: Batch) -> tuple[dict[int, bytes], bytes]:
        """Return the seeds of the reports that are whole, and the answer that says whose they are."""
        roster = Roster(batch.identities)
        if not batch.identities or (roster.root, len(batch.identities)) != (
            self.task.roster_root,
            self.task.roster_size,
        ):
            raise untrusted("The roster is not the task's.")
        indices = [each.client for each in batch.reports]
        if indices != sorted(set(indices)) or (indices and indices[-1] >= self.task.roster_size):
            raise malformed("Reports are not in the order of their indices.")
        seeds = {each.client: self._opened(each, batch.identities[each.client]) for each in batch.reports}
        good = {client: seed for client, seed in seeds.items() if seed is not None}
        unsigned = Valid(self.place, self.task.hash, to_bitmap(good, self.task.roster_size), b"")
        signature = keys.sign(self._signer, "valid", *unsigned.signed_fields())
        return good, Valid(self.place, self.task.hash, unsigned.members, signature).encode()

    def _opened(self, report: Sealed, identity: bytes) -> bytes | None:
        if self._policy.registrar == "pinned" and identity not in self._policy.pinned:
            return None
        if len(report.seeds) != len(self.task.decryptors) * SEED or not keys.signed(
            identity, report.signature, "report", *report.signed_fields(self.task.hash)
        ):
            return None
        sealed = report.seeds[self.place * SEED : (self.place + 1) * SEED]
        return open_seed(sealed, self._secret, Binding(self.task.hash, report.client, self.place, report.content))

    def _summed(self, request: Request) -> bytes:
        """Return the sum of the masks of those asked for."""
        members = from_bitmap(request.members, self.task.roster_size)
        if not keys.signed(self._policy.server_key, request.signature, "request", *request.signed_fields()):
            raise untrusted("The sum is not asked for by the server's key that was pinned.")
        if not set(members) <= set(self._seeds):
            raise untrusted("A sum is asked for over reports that this decryptor cannot open.")
        fewest = max(self._policy.minimum_survivors, self.task.minimum_survivors)
        if len(members) < fewest:
            raise untrusted(f"A sum is asked for over {len(members)} reports, fewer than {fewest}.")
        uses = tuple(self.task.given_by(self._identities[each]) for each in members)
        if any(each in self._spent for each in uses):
            raise answered("A client's vector is in another sum of the round, which this decryptor has answered.")
        ring, task = self.task.ring, self.task.hash
        total = ring.zeros()
        masks = (Mask(seed_key(self._seeds[each], task, each, self.place)) for each in members)
        apply_on_threads(masks, total, ring, self._threads)
        if self._noise is not None:
            noise = self._noise(ring)
            if [(len(each), each.dtype) for each in noise] != [(len(each), each.dtype) for each in total]:
                raise unsound("The noise has another form than the ring.")
            subtract(total, noise)  # so that the server, which takes this sum off, adds it
        packed = ring.pack(total)
        content = hashlib.sha256(packed).digest()
        signature = keys.sign(self._signer, "answer", task, u32(self.place), request.members, content)
        self.uses = uses
        return Answer(self.place, task, request.members, signature, packed).encode()
