"""A secure sum within one process: an in-memory carrier that loses, changes and repeats messages and kills machines.

    federation = Federation(protocol="secagg-full", clients=10, ring=ring)
    result = federation.run(drop={(3, "mask")})

Every machine's records go through its own log, as they would through a disk: :meth:`Federation.kill_client` and
:meth:`Federation.kill_server` throw a machine away and make it anew from what was durable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.core.errors import RefusedError
from hansa.core.ring import Ring, RingVector, Segment
from hansa.secagg.beacon import VALUE_BYTES, Draw, signed_beacon
from hansa.secagg.contribution import Contribution
from hansa.secagg.convention import Convention, register, vouch
from hansa.secagg.decryptor import Decryptor, DecryptorPolicy
from hansa.secagg.encoding import Buffer
from hansa.secagg.keys import private_key
from hansa.secagg.masks import add, stream
from hansa.secagg.messages import Announcement, Deliveries, Keys, Quorum, Survivors, header_of
from hansa.secagg.oneshot_messages import Batch, Report, Request
from hansa.secagg.policy import ClientPolicy
from hansa.secagg.protocols import restore_client, restore_server, start_client, start_server
from hansa.secagg.roster import Roster
from hansa.secagg.step import Step
from hansa.secagg.task import DecryptorKeys, Task

SMALL_RING: Final = Ring((Segment("params", 50, 20), Segment("weight", 1, 40)))

PHASE_OF: Final = {
    Announcement.kind: "advertise",
    Keys.kind: "share",
    Deliveries.kind: "mask",
    Survivors.kind: "consist",
    Quorum.kind: "unmask",
    Draw.kind: "draw",
    Batch.kind: "check",
    Request.kind: "decrypt",
}
"""Kind of a message to a client -> the phase that it asks for."""

Tamper = Callable[[int, str, bytes], bytes | None]
"""(client, phase, answer) -> what arrives at the server; None: nothing."""


def coins(seed: str) -> Callable[[int], bytes]:
    """Return a source of known bytes, one for each machine of a test; it protects nobody."""
    drawn = [0]

    def random(size: int) -> bytes:
        drawn[0] += 1
        return stream(hashlib.sha256(f"{seed}/{drawn[0]}".encode()).digest(), size)

    return random


def random_vector(ring: Ring, seed: str) -> RingVector:
    """Return a vector of known, evenly spread entries."""
    content = stream(hashlib.sha256(seed.encode()).digest(), sum(8 * each.length for each in ring.segments))
    words, start, vector = np.frombuffer(content, "<u8"), 0, []
    for segment in ring.segments:
        part = words[start : start + segment.length] & np.uint64(segment.mask)
        vector.append(part.astype(segment.dtype))
        start += segment.length
    return tuple(vector)


def plain_sum(ring: Ring, vectors: Sequence[RingVector]) -> RingVector:
    """Return the sum of vectors in the ring."""
    total = ring.zeros()
    for vector in vectors:
        add(total, vector)
    return ring.reduce(total)


@dataclass
class Federation:
    """Clients and a server with known keys and vectors, and the logs of their machines."""

    clients: int
    ring: Ring = SMALL_RING
    protocol: Any = "secagg-full"
    seed: str = "federation"
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of the task that differ from the usual ones."""
    demands: dict[str, Any] = field(default_factory=dict)
    """Fields of every client's policy that differ."""
    vectors: dict[int, RingVector] = field(default_factory=dict)
    threads: int = 1

    def __post_init__(self) -> None:
        self.server_key, self.authority_key = self.key("server"), self.key("authority")
        self.identities = [self.key(f"client {each}") for each in range(self.clients)]
        self.roster = Roster(tuple(public(each) for each in self.identities))
        usual: dict[str, Any] = {
            "protocol": self.protocol, "run": "run-1", "round": 3, "attempt": 1, "plan_sha256": b"p" * 32,
            "model_sha256": b"m" * 32, "roster_root": self.roster.root, "roster_size": self.clients,
            "registrar": "pinned", "ring": self.ring, "minimum_cohort": 3, "minimum_survivors": 3,
        }  # fmt: skip
        self.task = Task(**(usual | self.settings))
        vouched = self.task.registrar == "authority"
        self.convention = Convention(
            task=self.task,
            roster=self.roster,
            signer=self.server_key,
            registration=vouch(self.authority_key, self.task) if vouched else register(self.server_key, self.roster),
            authority=public(self.authority_key),
        )
        demands: dict[str, Any] = {"server_key": public(self.server_key), "pinned": frozenset(self.roster.identities)}
        if vouched:
            demands |= {"registrar": "authority", "authority_key": public(self.authority_key)}
        if self.protocol == "secagg-plus":
            demands["server"] = "curious"
        self.policy = ClientPolicy(**(demands | self.demands))
        for each in range(self.clients):
            self.vectors.setdefault(each, random_vector(self.ring, f"{self.seed} vector {each}"))
        self.machines: dict[int, Any] = {}
        self.client_logs: dict[int, list[bytes]] = {}
        self.server_log: list[bytes] = []
        self.server: Any
        self.refused: list[tuple[str, str]] = []
        """(who, error code) of every message that was refused."""

    def key(self, name: str) -> Ed25519PrivateKey:
        """Return a known identity key."""
        return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest())

    def given(self, client: int) -> Contribution:
        """Return what a client gives."""
        return Contribution(self.task.plan_sha256, self.task.model_sha256, self.vectors[client])

    def start(self) -> Step:
        """Start the server."""
        self.server, step = start_server(self.convention, threads=self.threads)
        return self.logged(step)

    def logged(self, step: Step) -> Step:
        """Make the server's records durable."""
        self.server_log += [bytes(each) for each in step.persist]
        return step

    def start_client(self, client: int, announcement: Buffer) -> Step:
        """Start a client."""
        self.machines[client], step = start_client(
            bytes(announcement), signer=self.identities[client], identity=self.roster.identities[client],
            policy=self.policy, given=self.given(client), random=coins(f"{self.seed} coins {client}"),
        )  # fmt: skip
        return step

    def kill_client(self, client: int) -> Step:
        """Make a client anew from its log."""
        self.machines[client], step = restore_client(
            self.client_logs[client], signer=self.identities[client], identity=self.roster.identities[client],
            policy=self.policy, given=self.given(client),
        )  # fmt: skip
        return step

    def kill_server(self) -> Step:
        """Make the server anew from its log."""
        self.server, step = restore_server(self.convention, self.server_log, threads=self.threads)
        return self.logged(step)

    def ask(self, client: int, message: Buffer) -> bytes | None:
        """Return what a client answers to a message of the server; None where it refuses or has nothing to say."""
        try:
            if header_of(message).kind == Draw.kind:
                return self.draw(message)
            if header_of(message).kind == Announcement.kind:
                step = self.start_client(client, message)
            else:
                step = self.machines[client].on_message(message)
        except RefusedError as error:
            self.refused.append(("client", error.code))
            return None
        self.client_logs.setdefault(client, []).extend(bytes(each) for each in step.persist)
        return step.send[0].message if step.send else None

    def draw(self, message: Buffer) -> bytes:
        """Return what the authority draws for a task: a known value. It keeps no book."""
        question = Draw.decode(message, self.task.hash)
        question.check(self.task, self.roster.identities)
        value = hashlib.sha256(f"{self.seed} beacon".encode()).digest()[:VALUE_BYTES]
        return signed_beacon(self.authority_key, self.task, question.advertised, value).encode()

    def run(
        self, *, drop: Collection[tuple[int, str]] = (), tamper: Tamper | None = None, step: Step | None = None
    ) -> RingVector | None:
        """Carry messages until the server is done or gives up; ``drop``: (client, phase) from which one is gone."""
        waiting = list((step or self.start()).send)
        gone: set[tuple[int, bool]] = set()
        while waiting:
            arrived: list[Step] = []
            for to, message in waiting:
                phase = PHASE_OF.get(header_of(message).kind, "abort")
                decryptor = phase in {"draw", "check", "decrypt"}
                if (to, phase) in drop:
                    gone.add((to, decryptor))
                if (to, decryptor) in gone or (phase != "advertise" and not decryptor and to not in self.machines):
                    continue
                answer = self.ask(to, message)
                if answer is not None and tamper is not None:
                    answer = tamper(to, phase, answer)
                if answer is not None:
                    arrived.append(self.deliver(answer))
            waiting = [each for one in arrived for each in one.send]
            if not waiting:
                waiting = list(self.logged(self.server.on_deadline()).send)
        result: RingVector | None = self.server.result
        return result

    def deliver(self, message: bytes) -> Step:
        """Give a client's message to the server."""
        try:
            return self.logged(self.server.on_message(message))
        except RefusedError as error:
            self.refused.append(("server", error.code))
            return Step()

    def expected(self) -> RingVector:
        """Return the plain sum of the survivors' vectors."""
        return plain_sum(self.ring, [self.vectors[each] for each in self.server.survivors])


def public(key: Ed25519PrivateKey) -> bytes:
    """Return a key's public part."""
    return key.public_key().public_bytes_raw()


@dataclass
class OneShotFederation(Federation):
    """Clients, a server and decryptors of ``oneshot-seeds``, whose phases are advertise, check and decrypt."""

    protocol: Any = "oneshot-seeds"
    operators: int = 2
    floors: dict[str, Any] = field(default_factory=dict)
    """Fields of every decryptor's policy that differ."""
    noise: Any = None

    def __post_init__(self) -> None:
        self.decryptor_keys = [self.key(f"decryptor {each}") for each in range(self.operators)]
        self.secrets = [coins(f"{self.seed} round key {each}")(32) for each in range(self.operators)]
        named = tuple(
            DecryptorKeys(
                operator=f"operator {place}", identity=public(key),
                sealing=private_key(secret).public_key().public_bytes_raw(),
            )
            for place, (key, secret) in enumerate(zip(self.decryptor_keys, self.secrets, strict=True))
        )  # fmt: skip
        self.settings = {"decryptors": named} | self.settings
        self.demands = {"decryptors": {each.operator: each.identity for each in named}} | self.demands
        super().__post_init__()
        self.decryptors: dict[int, Decryptor] = {}
        self.decryptor_logs: dict[int, list[bytes]] = {}

    def decryptor_policy(self, place: int) -> DecryptorPolicy:
        """Return a decryptor's policy."""
        usual: dict[str, Any] = {
            "operator": f"operator {place}", "server_key": public(self.server_key),
            "pinned": frozenset(self.roster.identities),
        }  # fmt: skip
        return DecryptorPolicy(**(usual | self.floors))

    def _decryptor(self, place: int) -> dict[str, Any]:
        key = self.decryptor_keys[place]
        return {
            "signer": key, "identity": public(key), "policy": self.decryptor_policy(place), "noise": self.noise,
            "threads": self.threads,
        }  # fmt: skip

    def start_decryptor(self, place: int) -> None:
        """Start a decryptor."""
        self.decryptors[place], step = Decryptor.start(
            self.task.content, self.convention.registration, secret=self.secrets[place], **self._decryptor(place)
        )
        self.decryptor_logs[place] = [bytes(each) for each in step.persist]

    def kill_decryptor(self, place: int) -> Step:
        """Make a decryptor anew from its log."""
        self.decryptors[place], step = Decryptor.restore(self.decryptor_logs[place], **self._decryptor(place))
        return step

    def start(self) -> Step:
        """Start decryptors and the server."""
        for place in range(self.operators):
            self.start_decryptor(place)
        signatures = tuple(self.decryptors[place].signature for place in range(self.operators))
        self.convention = replace(self.convention, decryptors=signatures)
        return super().start()

    def ask(self, client: int, message: Buffer) -> bytes | None:
        """Return what a client or decryptor answers; None where it refuses or has nothing to say."""
        if header_of(message).kind not in {Batch.kind, Request.kind}:
            return super().ask(client, message)
        try:
            step = self.decryptors[client].on_message(message)
        except RefusedError as error:
            self.refused.append(("decryptor", error.code))
            return None
        self.decryptor_logs[client] += [bytes(each) for each in step.persist]
        return step.send[0].message

    def deliver(self, message: bytes) -> Step:
        """Give a message to the server; reports that it needs once more are given to it from its log."""
        step = super().deliver(message)
        for client in step.again:
            report = next(
                each for each in self.server_log if each[:4] == b"HSA1" and header_of(each)[:2] == (Report.kind, client)
            )
            step = super().deliver(report)
        return step
