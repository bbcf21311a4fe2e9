"""Clients of a secure sum by hand: each drives its own machine over the server's calls."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from tests.server.by_hand import Deployed, Device

from hansa.algorithms.fixed_point import modulo, vectors
from hansa.algorithms.ring_plan import RingCode
from hansa.core.nouns import Batch
from hansa.core.ring import RingVector
from hansa.secagg.client import MaskingClient
from hansa.secagg.contribution import Contribution
from hansa.secagg.messages import Announcement, Masked, header_of
from hansa.secagg.policy import ClientPolicy
from hansa.server.secure_tasks import code_of
from hansa.store.records import RoundKey
from hansa.wire.generated import federation_pb2 as messages

SECURE = (
    "features.label=disease",
    "features.scaling=none",
    "evaluation.federated=false",
    "rounds=2",
    "secure_aggregation={maximum_cohort=5, max_weight=300.0}",
)
"""A plan that begins with training, in a secure sum."""
UNITS = 3
"""Units of weight that every client's update carries."""


@dataclass
class Part:
    """One client's part in one sum."""

    device: Device
    assigned: messages.Assignment
    machine: MaskingClient
    vector: RingVector
    reply: bytes
    seen: int = Announcement.kind
    told: list[bytes] = field(default_factory=list)

    @property
    def position(self) -> int:
        return self.machine.index

    async def call(self, message: bytes = b"", *, wait: float = 0.0, seen: int | None = None) -> httpx.Response:
        """Exchange once, with any message."""
        request = messages.ExchangeRequest(
            id=self.assigned.id, message=message, seen=self.seen if seen is None else seen, wait_seconds=wait
        )
        return await self.device.call("Exchange", request)

    async def say(self) -> httpx.Response:
        """Send the last reply: as a report where it is the masked vector."""
        if header_of(self.reply).kind == Masked.kind:
            return await self.device.put(self.assigned.id, self.reply)
        return await self.call(self.reply)

    async def hear(self, *, tries: int = 200) -> None:
        """Wait for the server's next message, and answer it; the answer is not sent."""
        for _ in range(tries):
            answer = await self.call()
            assert answer.status_code == 200, answer.text
            message = messages.ExchangeResponse.FromString(answer.content).message
            if message:
                self.take(message)
                return
            await asyncio.sleep(0.01)
        raise TimeoutError("the next message did not come")

    def take(self, message: bytes) -> None:
        """Answer one of the server's messages; the answer is not sent."""
        self.told.append(message)
        step = self.machine.on_message(message)
        self.seen = header_of(message).kind
        self.reply = step.send[-1].message if step.send else b""


def vector_of(code: RingCode, seed: int) -> RingVector:
    """Return the vector of one client: entries of any size that the plan counts with, whole lanes."""
    coins = np.random.default_rng(seed)
    weight = np.array([UNITS * code.weight_unit])
    named = {"count": np.ones(1), "train_loss": coins.random(1)}
    named |= {f"weight.{branch.name}": weight for branch in code.branches}
    values = np.zeros((1, code.width), dtype=code.dtype)
    for branch in code.branches:
        most = UNITS * branch.limit
        whole = coins.integers(-most, most + 1, branch.length, dtype=np.int64)
        values[0, branch.part] = modulo(whole, branch.bits)
    return vectors(code, Batch(values, code.layout.encode_lanes(named, 1), code.layout))[0]


def plain_sum(code: RingCode, parts: list[Part]) -> list[list[int]]:
    """Return the sum of clients' vectors in whole numbers of Python, modulo 2^bits of each segment."""
    return [
        [
            sum(column) % (1 << segment.bits)
            for column in zip(*(map(int, each.vector[at]) for each in parts), strict=True)
        ]
        for at, segment in enumerate(code.ring.segments)
    ]


async def started(server: Deployed, clients: int = 4, *changes: str) -> list[Device]:
    """Return clients that are active, with a run of which they are to be the cohort."""
    devices = [await server.device(f"client {number}") for number in range(clients)]
    for device in devices:
        await device.check_in()
    await server.submit(*SECURE, *changes, wait_for=clients)
    return devices


async def begun(server: Deployed, devices: list[Device], attempt: int = 1, **demands: Any) -> list[Part]:
    """Return the clients' parts in the sum of an attempt, each with its advert, which is not sent."""
    assigned = [await _assigned(device, attempt) for device in devices]
    code = await code_for(server, assigned[0])
    pinned = frozenset(device.key.public_key().public_bytes_raw() for device in devices)
    return [
        begin(server, device, each, vector_of(code, each.number), pinned, **demands)
        for device, each in zip(devices, assigned, strict=True)
    ]


def begin(
    server: Deployed,
    device: Device,
    assigned: messages.Assignment,
    vector: RingVector,
    pinned: frozenset[bytes],
    **demands: Any,
) -> Part:
    """Return a client's part in its assignment's sum. ``demands``: fields of its policy that differ."""
    known = {each.key_id: bytes(each.public_key) for each in server.services.signer.published()}
    policy = ClientPolicy(server_key=known[server.services.signer.current], pinned=pinned, **demands)
    given = Contribution(bytes.fromhex(assigned.plan_sha256), bytes.fromhex(assigned.model_sha256), vector)
    machine, step = MaskingClient.start(
        assigned.secure_sum, signer=device.key, identity=device.key.public_key().public_bytes_raw(), policy=policy,
        given=given, random=secrets.token_bytes,
    )  # fmt: skip
    return Part(device, assigned, machine, vector, step.send[0].message)


async def code_for(server: Deployed, assigned: messages.Assignment) -> RingCode:
    return code_of(await server.context(assigned.id.run), "training", assigned.cohort_size)


async def _assigned(device: Device, attempt: int) -> messages.Assignment:
    for _ in range(500):
        answer = await device.check_in()
        if answer.HasField("assignment"):
            found = messages.Assignment.FromString(answer.assignment.assignment)
            if found.id.attempt == attempt:
                return found
        await asyncio.sleep(0.01)
    raise TimeoutError("the assignment did not come")


async def phase(parts: list[Part], *, last: bool = False) -> None:
    """Let clients send what they have, in turn, then hear what comes next, unless that was the last."""
    for each in parts:
        answer = await each.say()
        assert answer.status_code == 200, answer.text
    if not last:
        for each in parts:
            await each.hear()


def key_of(part: Part) -> RoundKey:
    of = part.assigned.id
    return RoundKey(of.run, "training", of.round, of.attempt)


async def over(server: Deployed, part: Part) -> str:
    """Return the state of a sum's round once it is over."""
    for _ in range(500):
        async with server.services.store.reading() as rows:
            round_ = await rows.rounds.get(key_of(part))
        if round_.state in ("closed", "abandoned"):
            return round_.state
        await asyncio.sleep(0.01)
    raise TimeoutError(f"the round is {round_.state}")


async def swept(server: Deployed, part: Part) -> None:
    """Wait until nothing of a sum is left: no record, no masked vector."""
    for _ in range(500):
        async with server.services.store.reading() as rows:
            records = await rows.sums.of(key_of(part))
        if not records and not await server.services.blobs.names("updates/"):
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("something is left")
