"""A decryptor's answers: which calls it takes, and what is on disk before each answer leaves."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.core.clock import Clock
from hansa.core.killpoints import reached
from hansa.decryptor.book import Book, Kept
from hansa.decryptor.settings import DecryptorSettings
from hansa.secagg.decryptor import Decryptor, DecryptorPolicy
from hansa.secagg.keys import KEY_BYTES, private_key, sign
from hansa.secagg.messages import header_of
from hansa.secagg.oneshot_messages import Request
from hansa.secagg.refusals import answered, malformed, unexpected, untrusted
from hansa.secagg.task import read_task
from hansa.serving.settings import key_of

_DAY: Final = 86400.0


@dataclass
class DecryptorService:
    """One decryptor. Its calls are made one after another, and each may be repeated: it gives the same again."""

    settings: DecryptorSettings
    key: Ed25519PrivateKey
    book: Book
    clock: Clock
    machines: dict[bytes, Decryptor] = field(default_factory=dict)
    """Tasks whose batch was checked, so that seeds are not opened twice; whatever is here is on disk too."""

    @property
    def identity(self) -> bytes:
        """Return the public key, 32 bytes."""
        return self.key.public_key().public_bytes_raw()

    def public_key(self, nonce: bytes) -> bytes:
        """Return the X25519 key for one task, 32 bytes: another for each nonce of 32 bytes."""
        if len(nonce) != KEY_BYTES:
            raise malformed("A call for a key holds 32 bytes.")
        known = self.book.public_of(nonce)
        if known is not None:
            return known
        self.book.forget(self.clock.now() - self.settings.keep_days * _DAY)
        secret = secrets.token_bytes(KEY_BYTES)
        public = private_key(secret).public_key().public_bytes_raw()
        self.book.add_key(nonce, public, secret, self.clock.now())
        reached("decryptor.key-made")
        return public

    def stand_ready(self, server: bytes, content: bytes, registered: bytes) -> bytes:
        """Return the signature over a task that this decryptor stands ready for. Raises RefusedError.

        ``registered`` is the registrar's signature over the task's roster, ``server`` the key of the server that asks.
        """
        task = read_task(content)
        if self.settings.plans and task.plan_sha256.hex() not in self.settings.plans:
            raise untrusted("The plan is not among those that this decryptor serves.")
        known = self.book.task(task.hash)
        if known is not None:
            if known.server != server:
                raise untrusted("Another server has asked for that task.")
            return sign(self.key, "task", task.hash)
        mine = [each.sealing for each in task.decryptors if each.identity == self.identity]
        secret = self.book.secret_of(mine[0]) if mine else None
        if secret is None:
            raise untrusted("The task does not name this decryptor with a key that it has made for it.")
        machine, step = Decryptor.start(
            content, registered, secret=secret, signer=self.key, identity=self.identity, policy=self._policy(server),
            spent=self.book, threads=self.settings.threads,
        )  # fmt: skip
        self.book.begin(task.hash, server, mine[0], bytes(step.persist[0]), self.clock.now())
        reached("decryptor.task-written")
        return machine.signature

    def exchange(self, server: bytes, message: bytes) -> bytes:
        """Return the answer to a message of a task's server: whose seeds can be opened, or the sum of masks."""
        header = header_of(message)
        kept = self.book.task(header.task)
        if kept is None or kept.server != server:
            raise unexpected("The decryptor does not stand ready for the task, or another server has asked it to.")
        digest = hashlib.sha256(message).digest()
        if kept.request is not None:
            return _again(kept, digest)
        machine = self._machine(header.task, kept)
        self.machines.pop(header.task, None)  # kept again once what it did is on disk
        step = machine.on_message(message)
        if step.persist and header.kind == Request.kind:
            reached("decryptor.summed")
            self.book.answer(header.task, digest, step.send[0].message, machine.uses, self.clock.now())
            reached("decryptor.answer-written")
            return step.send[0].message
        if step.persist:
            self.book.check(header.task, bytes(step.persist[0]))
            reached("decryptor.batch-written")
        self.machines[header.task] = machine
        return step.send[0].message

    def _machine(self, name: bytes, kept: Kept) -> Decryptor:
        if name in self.machines:
            return self.machines[name]
        if kept.first is None:
            raise unexpected("The keys of the task are forgotten: nobody has asked for too long.")
        records: Sequence[bytes] = (kept.first,) if kept.batch is None else (kept.first, kept.batch)
        machine, _ = Decryptor.restore(
            records, signer=self.key, identity=self.identity, policy=self._policy(kept.server), spent=self.book,
            threads=self.settings.threads,
        )  # fmt: skip
        return machine

    def _policy(self, server: bytes) -> DecryptorPolicy:
        settings = self.settings
        return DecryptorPolicy(
            operator=settings.operator,
            server_key=server,
            registrar=settings.registrar,
            authority_key=key_of(settings.authority_key),
            pinned=settings.known_peers,
            minimum_survivors=settings.minimum_survivors,
            largest_vector=settings.largest_vector_bytes,
        )


def _again(kept: Kept, digest: bytes) -> bytes:
    """Return an answer once more. Raises RefusedError for any other question about its task."""
    if kept.request != digest:
        raise answered("A decryptor gives one sum a task, of the one batch that it checked.")
    if kept.answer is None:
        raise unexpected("The answer was given, and is not kept any more.")
    return kept.answer
