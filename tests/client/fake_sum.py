"""A secure sum on the fake server: the server's real machine, and peers that answer at once."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.algorithms.plan import plan_from_mapping
from hansa.algorithms.rounds import travelling_layout
from hansa.algorithms.secure_sums import round_code
from hansa.core.layout import Layout
from hansa.core.ring import Ring, RingVector
from hansa.secagg.client import MaskingClient
from hansa.secagg.contribution import Contribution
from hansa.secagg.convention import Convention, register, vouch
from hansa.secagg.messages import Announcement, header_of
from hansa.secagg.policy import ClientPolicy
from hansa.secagg.roster import Roster
from hansa.secagg.server import MaskingServer
from hansa.secagg.step import Step
from hansa.secagg.task import Task
from hansa.wire.generated import federation_pb2 as wire
from hansa.wire.jobs import JobDescriptor

PEERS = 3


def ring_of(job: JobDescriptor) -> Ring:
    """Return the ring of a job's training rounds."""
    plan = plan_from_mapping(job.plan)
    layout = travelling_layout(plan, job.layout)
    return round_code(plan, "training", PEERS + 1, updates=layout, tallies=Layout(())).ring


@dataclass
class FakeSum:
    """One sum of the client under test, which has position 0, and of peers who give zeros."""

    server: MaskingServer
    peers: list[MaskingClient]
    announcement: bytes = b""
    told: dict[int, bytes] = field(default_factory=dict)
    taken: list[bytes] = field(default_factory=list)
    """The client's messages as they came, repeats included."""
    change: Callable[[bytes], bytes] = bytes
    """What becomes of each message to the client on its way."""

    @classmethod
    def begin(
        cls, key: Ed25519PrivateKey, client: bytes, others: list[Ed25519PrivateKey],
        assigned: wire.Assignment, ring: Ring, authority: Ed25519PrivateKey | None = None,
        forger: Ed25519PrivateKey | None = None, **task: Any,
    ) -> FakeSum:  # fmt: skip
        """Begin one; ``authority`` vouches for the roster, and else the server does.

        ``forger`` signs what the client under test is told instead.
        """
        roster = Roster((client, *(each.public_key().public_bytes_raw() for each in others)))
        fields = {
            "protocol": "secagg-full",
            "run": f"{assigned.id.run}/training",
            "round": assigned.id.round,
            "attempt": assigned.id.attempt,
            "plan_sha256": bytes.fromhex(assigned.plan_sha256),
            "model_sha256": bytes.fromhex(assigned.model_sha256),
            "roster_root": roster.root,
            "roster_size": len(roster.identities),
            "registrar": "pinned",
            "ring": ring,
            "minimum_cohort": 3,
            "minimum_survivors": 3,
        }
        made = Task(**{**fields, **task})
        registered = register(key, roster) if authority is None else vouch(authority, made)
        convention = Convention(task=made, roster=roster, signer=key, registration=registered)
        server, step = MaskingServer.start(convention)
        begun = cls(server, [])
        begun.announcement = step.send[0].message
        if forger is not None:
            told = Announcement.decode(begun.announcement, made.hash)
            begun.announcement = replace(told, registration=vouch(forger, made)).encode()
        policy = ClientPolicy(
            server_key=key.public_key().public_bytes_raw(), registrar=made.registrar,
            pinned=frozenset(roster.identities), server="curious",
            authority_key=b"" if authority is None else authority.public_key().public_bytes_raw(),
        )  # fmt: skip
        given = Contribution(made.plan_sha256, made.model_sha256, made.ring.zeros())
        adverts = []
        for place, other in enumerate(others, 1):
            machine, first = MaskingClient.start(
                step.send[place].message, signer=other, identity=roster.identities[place], policy=policy,
                given=given, random=secrets.token_bytes,
            )  # fmt: skip
            begun.peers.append(machine)
            adverts.append(first.send[0].message)
        for advert in adverts:
            begun._tell(server.on_message(advert))
        return begun

    def exchange(self, request: wire.ExchangeRequest) -> bytes:
        """Take the client's message, if there is one; return the next one to it."""
        if request.message and not self._unseen(request.seen):
            self.take(bytes(request.message))
        return self.change(told) if (told := self._unseen(request.seen)) else b""

    def _unseen(self, seen: int) -> bytes:
        told = self.told.get(0, b"")
        return told if told and header_of(told).kind != seen else b""

    def take(self, message: bytes) -> None:
        """Take a message of the client."""
        self.taken.append(message)
        self._tell(self.server.on_message(message))

    @property
    def result(self) -> RingVector | None:
        """Return the sum, once it is known: that of the client alone, as the others give zeros."""
        return self.server.result

    def _tell(self, step: Step) -> None:
        for to, message in step.send:
            if to == 0:
                self.told[0] = message
                continue
            answer = self.peers[to - 1].on_message(message)
            for each in answer.send:
                self._tell(self.server.on_message(each.message))
