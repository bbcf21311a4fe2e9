"""The machines of a secure sum within one process: every client, the server and the decryptors, message by message.

For tests and small cohorts: n clients each agree on keys with the others. Nobody is lost here, so the sum is that of
all; what the machines do when somebody is, their own tests show.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.core.errors import HansaError
from hansa.core.ring import Ring, RingVector
from hansa.core.secure_aggregation import SecureAggregation
from hansa.secagg.beacon import VALUE_BYTES, Draw, signed_beacon
from hansa.secagg.contribution import Contribution
from hansa.secagg.convention import Convention, register, vouch
from hansa.secagg.decryptor import Decryptor, DecryptorPolicy
from hansa.secagg.keys import private_key
from hansa.secagg.messages import Announcement, header_of
from hansa.secagg.oneshot_messages import Batch, Request
from hansa.secagg.planned import task_of
from hansa.secagg.policy import ClientPolicy
from hansa.secagg.protocols import Client, Server, start_client, start_server
from hansa.secagg.roster import Roster
from hansa.secagg.step import Step
from hansa.secagg.task import DecryptorKeys


def exact_sum(section: SecureAggregation, ring: Ring, vectors: Sequence[RingVector], *, number: int) -> RingVector:
    """Return what the protocol's machines make of some clients' vectors in round ``number``: their sum.

    Keys are drawn anew for each sum. Raises HansaError where the machines give the sum up.
    """
    federation = _Federation.of(section, ring, vectors, number)
    result = federation.run()
    if result is None:
        raise HansaError(
            "HANSA-SECAGG-TASK",
            rule="A simulated secure sum has as many clients as its plan demands.",
            found=f"The machines gave up: {federation.server.abort_reason}.",
            action="Pick larger cohorts, or lower minimum_cohort and minimum_survivors.",
        )
    return result


@dataclass
class _Federation:
    """All who take part in one sum. ``server`` and ``clients`` are machines of the plan's protocol."""

    server: Server
    first: Step
    identities: list[Ed25519PrivateKey]
    policy: ClientPolicy
    given: list[Contribution]
    decryptors: list[Decryptor]
    authority: Ed25519PrivateKey
    """Vouches for the roster and draws the beacon, where the plan asks for that."""
    clients: dict[int, Client]

    @classmethod
    def of(cls, section: SecureAggregation, ring: Ring, vectors: Sequence[RingVector], number: int) -> _Federation:
        server_key, identities = Ed25519PrivateKey.generate(), [Ed25519PrivateKey.generate() for _ in vectors]
        roster = Roster(tuple(map(_public, identities)))
        operators = [(each.operator, Ed25519PrivateKey.generate(), os.urandom(32)) for each in section.decryptors]
        named = tuple(
            DecryptorKeys(
                operator=name, identity=_public(key), sealing=private_key(secret).public_key().public_bytes_raw()
            )
            for name, key, secret in operators
        )
        digest = hashlib.sha256(b"a simulation").hexdigest()
        task = task_of(
            section, ring, roster, run="simulation", round_number=number, attempt=1,
            plan_sha256=digest, model_sha256=digest, decryptors=named,
        )  # fmt: skip
        authority = Ed25519PrivateKey.generate()
        registered = vouch(authority, task) if section.registrar == "authority" else register(server_key, roster)
        trusted: dict[str, Any] = {"server_key": _public(server_key), "registrar": section.registrar}
        trusted |= {"pinned": frozenset(roster.identities), "authority_key": _public(authority)}
        decryptors = [
            Decryptor.start(
                task.content, registered, secret=secret, signer=key, identity=_public(key),
                policy=DecryptorPolicy(operator=name, **trusted),
            )[0]
            for name, key, secret in operators
        ]  # fmt: skip
        signatures = tuple(each.signature for each in decryptors)
        convention = Convention(
            task=task, roster=roster, signer=server_key, registration=registered, decryptors=signatures,
            authority=_public(authority),
        )  # fmt: skip
        server, first = start_server(convention)
        policy = ClientPolicy(
            **trusted,
            server=section.server,
            assumed_colluding=section.assumed_colluding,
            decryptors={each.operator: each.identity for each in named},
        )
        given = [Contribution(task.plan_sha256, task.model_sha256, vector) for vector in vectors]
        return cls(server, first, identities, policy, given, decryptors, authority, {})

    def run(self) -> RingVector | None:
        """Carry messages until the server has the sum, or gives it up."""
        waiting = list(self.first.send)
        while waiting:
            arrived = [self.server.on_message(answer) for to, message in waiting for answer in self._ask(to, message)]
            waiting = [each for step in arrived for each in step.send]
        return self.server.result

    def _ask(self, to: int, message: bytes) -> list[bytes]:
        kind = header_of(message).kind
        if kind == Draw.kind:
            return [self._drawn(message)]
        if kind == Announcement.kind:
            step = self._start(to, message)
        elif kind in {Batch.kind, Request.kind}:
            step = self.decryptors[to].on_message(message)
        else:
            step = self.clients[to].on_message(message)
        return [each.message for each in step.send]

    def _drawn(self, message: bytes) -> bytes:
        """Return what the authority draws for those who advertised."""
        task, question = self.server.task, Draw.decode(message, self.server.task.hash)
        question.check(task, [_public(each) for each in self.identities])
        return signed_beacon(self.authority, task, question.advertised, os.urandom(VALUE_BYTES)).encode()

    def _start(self, to: int, announcement: bytes) -> Step:
        key = self.identities[to]
        self.clients[to], step = start_client(
            announcement, signer=key, identity=_public(key), policy=self.policy, given=self.given[to],
            random=os.urandom,
        )  # fmt: skip
        return step


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()
