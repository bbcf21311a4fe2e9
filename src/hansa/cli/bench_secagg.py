"""Whole secure sums in one process, timed: every client's keys and shares, the real server, and exact sums.

Between two clients that are both in the sum and neither of which is timed, the pair of masks is left out: it cancels.
So large cohorts cost what the server costs, and what clients that are timed cost is what a client costs.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from secrets import token_bytes
from threading import Lock
from typing import Any, BinaryIO, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from hansa.core.ring import Ring, RingVector, Segment
from hansa.secagg.client import MaskingClient
from hansa.secagg.contribution import Contribution
from hansa.secagg.convention import Convention, register
from hansa.secagg.decryptor import Decryptor, DecryptorPolicy
from hansa.secagg.known import content_of
from hansa.secagg.masks import Mask, stream
from hansa.secagg.messages import header_of
from hansa.secagg.oneshot_client import ReportingClient
from hansa.secagg.oneshot_server import Phase as SummingPhase
from hansa.secagg.oneshot_server import SummingServer
from hansa.secagg.policy import ClientPolicy
from hansa.secagg.roster import Roster
from hansa.secagg.server import MaskingServer, Phase
from hansa.secagg.step import Outgoing, Step
from hansa.secagg.task import PHASES, DecryptorKeys, Protocol, Task

SAMPLED: Final = 8
"""Clients that are timed, where not all are."""
ALL_FOR_REAL: Final = 100
"""Cohorts of which every client masks for real."""
DECRYPTORS: Final = 2
WINDOW: Final = 8
"""Answers for each thread of the server that reach it at once."""
ARRIVAL: Final = "arrive"
"""Before the names of the server's parts that every upload costs: its SHA-256, as far as it is not beside others."""

_NAMES: Final = {
    1: "task", 2: "advert", 3: "keys", 4: "shares", 5: "deliveries", 6: "masked", 8: "survivors", 9: "consistent",
    10: "quorum", 11: "unmask", 13: "report", 14: "batch", 15: "valid", 16: "request", 17: "answer",
}  # fmt: skip
_UP: Final = {"advert", "shares", "masked", "consistent", "unmask", "report"}
_DOWN: Final = {"task", "keys", "deliveries", "survivors", "quorum"}


class NoSumError(Exception):
    """So many dropped out that there is no sum; the message says what is lacking."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is measured."""

    protocol: Protocol
    clients: int
    parameters: int
    dropout: float
    neighbours: int
    threshold: int
    bits: int
    threads: int
    records: Path | None = None
    """A folder on the disk that machines' records are synced to."""


@dataclass
class Stopwatch:
    """Seconds and bytes by name, and what processors spent on it all."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    sizes: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    synced: list[float] = field(default_factory=list)
    """How long it took to make the records of each step durable."""
    processor: float = 0.0
    """Seconds of processors, all threads together."""
    records: BinaryIO | None = None

    def run(self, name: str, work: Callable[[], Step]) -> Step:
        """Do some work and note how long it takes, and apart from that how long its records take."""
        with self.timed(name):
            step = work()
        if self.records is not None and step.persist:
            began = time.perf_counter()
            for record in step.persist:
                self.records.write(record)
            self.records.flush()
            os.fsync(self.records.fileno())
            self.synced.append(time.perf_counter() - began)
        return step

    @contextmanager
    def arriving(self, name: str) -> Iterator[None]:
        """Note by how much what is done within, on several threads, takes longer than its parts that are noted."""
        began, spent, noted, processor = time.perf_counter(), time.process_time(), self._noted(), self.processor
        yield
        more = time.perf_counter() - began - (self._noted() - noted)
        self.seconds[f"{ARRIVAL} {name}"].append(max(0.0, more))
        self.processor = processor + time.process_time() - spent

    def _noted(self) -> float:
        return sum(map(sum, self.seconds.values())) + sum(self.synced)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Note how long it takes what is done within."""
        began, spent = time.perf_counter(), time.process_time()
        yield
        self.seconds[name].append(time.perf_counter() - began)
        self.processor += time.process_time() - spent

    def weigh(self, messages: Sequence[Outgoing]) -> None:
        """Note how long messages are."""
        for _, message in messages:
            self.sizes[_NAMES[header_of(message).kind]].append(len(message))


class _Sparing(MaskingClient):
    """A client that leaves out pairs of masks that cancel, where nobody times it."""

    cancelling: Collection[int] = ()

    def _masks(self, present: Sequence[int]) -> list[Mask]:
        return super()._masks([each for each in present if each not in self.cancelling])


@dataclass
class Bench:
    """One secure sum: its people, its vectors, and what was measured."""

    work: Workload

    def __post_init__(self) -> None:
        count = self.work.clients
        self.identities = [Ed25519PrivateKey.generate() for _ in range(count)]
        self.roster = Roster(tuple(_public(each) for each in self.identities))
        self.server_key = Ed25519PrivateKey.generate()
        self.ring = Ring((Segment("params", self.work.parameters, self.work.bits),))
        self.vectors = [_vector(self.ring) for _ in range(4)]
        gone = int(count * self.work.dropout)
        self.dropped = frozenset(range(0, count, count // gone)[:gone] if gone else ())
        left = [each for each in range(count) if each not in self.dropped]
        self.timed = frozenset(
            left if count <= ALL_FOR_REAL or self.work.protocol == "oneshot-seeds" else left[:SAMPLED]
        )
        self.clients, self.server, self.decryptors = Stopwatch(), Stopwatch(), Stopwatch()
        self.pool, self.taking = ThreadPoolExecutor(self.work.threads), Lock()

    def run(self) -> dict[str, Any]:
        """Run it and return what was measured."""
        with ExitStack() as stack:
            if self.work.records is not None:
                for each in (self.clients, self.server, self.decryptors):
                    each.records = stack.enter_context(tempfile.TemporaryFile(dir=self.work.records))
            gc.disable()  # as timeit does: what all the clients hold here is on no server, to be looked through there
            stack.callback(gc.enable)
            result, survivors = self._one_shot() if self.work.protocol == "oneshot-seeds" else self._masked()
        total = self.ring.zeros()
        for client in survivors:
            for mine, more in zip(total, self._vector_of(client), strict=True):
                np.add(mine, more, out=mine)
        exact = result is not None and all(
            np.array_equal(mine, plain) for mine, plain in zip(result, self.ring.reduce(total), strict=True)
        )
        return self._answer(exact=exact, survivors=len(survivors))

    def _vector_of(self, client: int) -> RingVector:
        return self.vectors[client % len(self.vectors)]

    def _convention(self, decryptors: tuple[DecryptorKeys, ...] = ()) -> Convention:
        work = self.work
        left = work.clients - len(self.dropped)
        task = Task(
            protocol=work.protocol, run="bench", round=1, attempt=1, plan_sha256=bytes(32), model_sha256=bytes(32),
            roster_root=self.roster.root, roster_size=work.clients, registrar="pinned", ring=self.ring,
            minimum_cohort=left, minimum_survivors=left, neighbours=work.neighbours, threshold=work.threshold,
            decryptors=decryptors,
        )  # fmt: skip
        return Convention(
            task=task,
            roster=self.roster,
            signer=self.server_key,
            registration=register(self.server_key, self.roster),
        )

    def _policy(self, decryptors: tuple[DecryptorKeys, ...] = ()) -> ClientPolicy:
        return ClientPolicy(
            server_key=_public(self.server_key),
            pinned=frozenset(self.roster.identities),
            server="curious" if self.work.protocol == "secagg-plus" else "malicious",
            decryptors={each.operator: each.identity for each in decryptors},
        )

    def _start(self, kind: Any, client: int, announcement: bytes, policy: ClientPolicy) -> tuple[Any, Step]:
        machine, step = kind.start(
            announcement, signer=self.identities[client], identity=self.roster.identities[client], policy=policy,
            given=Contribution(bytes(32), bytes(32), self._vector_of(client)), random=token_bytes,
        )  # fmt: skip
        return machine, step

    def _report(self, client: int, announcement: bytes, policy: ClientPolicy) -> Step:
        return self._start(ReportingClient, client, announcement, policy)[1]

    def _masked(self) -> tuple[RingVector | None, tuple[int, ...]]:
        policy, machines = self._policy(), dict[int, _Sparing]()
        convention = self._convention()
        with self.server.timed("start"):
            server, step = MaskingServer.start(convention, threads=self.work.threads)
        spared = frozenset(range(self.work.clients)) - self.timed - self.dropped

        def answer(client: int, message: bytes) -> Step:
            if client in machines:
                return machines[client].on_message(message)
            machines[client], first = self._start(_Sparing, client, message, policy)
            machines[client].cancelling = spared if client in spared else ()
            return first

        for phase in PHASES:
            if server.phase is Phase.ABORTED:
                raise NoSumError(server.abort_reason)
            self.clients.weigh(step.send)
            asked = [each for each in step.send if phase != "mask" or each.to not in self.dropped]
            for some in self._windows(asked):
                answers = []
                for client, message in some:
                    name = phase if client in self.timed else "not timed"
                    reply = self.clients.run(name, partial(answer, client, message))
                    self.clients.weigh(reply.send)
                    answers += [reply.send[0].message]
                step = (self._upload if phase == "mask" else self._deliver)(server, phase, answers)
            if not step.send and server.phase.name.lower() == phase:
                step = self.server.run(f"close {phase}", server.on_deadline)
        if server.phase is not Phase.DONE:
            raise NoSumError(server.abort_reason)
        return server.result, server.survivors

    def _windows(self, asked: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
        """Yield those asked in groups whose answers reach the server at once."""
        size = WINDOW * self.work.threads
        yield from (asked[start : start + size] for start in range(0, len(asked), size))

    def _deliver(self, server: MaskingServer | SummingServer, phase: str, messages: Sequence[bytes]) -> Step:
        """Give answers to the server; the last one of a phase also closes it."""
        step = Step()
        for message in messages:
            step = self._taken(server, phase, message, b"")
        return step

    def _upload(self, server: MaskingServer | SummingServer, phase: str, messages: Sequence[bytes]) -> Step:
        """Give vectors to the server: each is hashed on one of its threads, as all that is uploaded, and then taken.

        The server takes one at a time, while others are hashed; arrival is what hashing adds to that.
        """

        def upload(message: bytes) -> Step:
            content = content_of(message)
            with self.taking:
                return self._taken(server, phase, message, content)

        with self.server.arriving(phase):
            steps = list((map if self.work.threads == 1 else self.pool.map)(upload, messages))
        return next((step for step in steps if step.send), steps[-1])

    def _taken(self, server: MaskingServer | SummingServer, phase: str, message: bytes, content: bytes) -> Step:
        name = f"{'close' if len(server.waits_for) == 1 else 'take'} {phase}"
        return self.server.run(name, partial(server.on_message, message, content))

    def _one_shot(self) -> tuple[RingVector | None, tuple[int, ...]]:
        secrets = [token_bytes(32) for _ in range(DECRYPTORS)]
        signers = [Ed25519PrivateKey.generate() for _ in range(DECRYPTORS)]
        named = tuple(
            DecryptorKeys(operator=f"operator {place}", identity=_public(signer), sealing=_sealing(secret))
            for place, (signer, secret) in enumerate(zip(signers, secrets, strict=True))
        )
        convention = self._convention(named)
        decryptors = [
            Decryptor.start(
                convention.task.content, convention.registration, secret=secret, signer=signer,
                identity=_public(signer), threads=self.work.threads,
                policy=DecryptorPolicy(operator=f"operator {place}", server_key=_public(self.server_key),
                                       pinned=frozenset(self.roster.identities)),
            )[0]
            for place, (signer, secret) in enumerate(zip(signers, secrets, strict=True))
        ]  # fmt: skip
        convention = Convention(
            task=convention.task, roster=self.roster, signer=self.server_key, registration=convention.registration,
            decryptors=tuple(each.signature for each in decryptors),
        )  # fmt: skip
        policy = self._policy(named)
        with self.server.timed("start"):
            server, step = SummingServer.start(convention)
        self.clients.weigh(step.send)
        for some in self._windows([each for each in step.send if each.to not in self.dropped]):
            reports = []
            for client, message in some:
                reply = self.clients.run("report", partial(self._report, client, message, policy))
                self.clients.weigh(reply.send)
                reports += [reply.send[0].message]
            step = self._upload(server, "collect", reports)
        step = step if step.send else self.server.run("close collect", server.on_deadline)
        for phase in ("check", "decrypt"):
            for place, message in step.send:
                reply = self.decryptors.run(phase, partial(decryptors[place].on_message, message))
                self.decryptors.weigh(reply.send)
                step = self._deliver(server, phase, [reply.send[0].message])
        return (server.result if server.phase is SummingPhase.DONE else None), server.survivors

    def _answer(self, *, exact: bool, survivors: int) -> dict[str, Any]:
        server = {name: sum(times) for name, times in self.server.seconds.items()}
        after = sum(seconds for name, seconds in server.items() if not name.startswith(ARRIVAL))
        phases = [name for name in self.clients.seconds if name != "not timed"]
        client = {name: 1000 * statistics.median(self.clients.seconds[name]) for name in phases}
        sizes = {name: statistics.mean(found) for name, found in self.clients.sizes.items()}
        answer: dict[str, Any] = {
            **{name: value for name, value in asdict(self.work).items() if name != "records"},
            "exact": exact,
            "survivors": survivors,
            "clients_timed": len(self.timed),
            "client_ms": {**client, "total": sum(client.values())},
            "server_seconds": {**server, "after arrival": after, "total": sum(server.values())},
            "server_processor_seconds": self.server.processor,
            "bytes_up": {name: size for name, size in sizes.items() if name in _UP},
            "bytes_down": {name: size for name, size in sizes.items() if name in _DOWN},
        }
        if self.decryptors.seconds:
            each = {name: statistics.mean(times) for name, times in self.decryptors.seconds.items()}
            answer["decryptor_seconds"] = {**each, "total": sum(each.values())}
        if self.work.records is not None:
            answer["fsync"] = {
                "client, ms": 1000 * sum(self.clients.synced) / self.work.clients,
                "server, s": sum(self.server.synced),
                "decryptor, s": sum(self.decryptors.synced) / DECRYPTORS,
            }
        return answer


def _vector(ring: Ring) -> RingVector:
    (segment,) = ring.segments
    words = np.frombuffer(stream(token_bytes(32), segment.length * segment.dtype.itemsize), segment.dtype)
    return (words & segment.dtype.type(segment.mask),)


def _public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


def _sealing(secret: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
