"""A whole server in this process, without a socket, and clients that sign by hand."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import secrets
from dataclasses import dataclass, field

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.cli.job_building import build_job
from hansa.core.layout import Layout
from hansa.core.nouns import Batch
from hansa.server.app import background, create
from hansa.server.serve import open_services
from hansa.server.settings import ServerSettings
from hansa.server.submissions import Submission, store_upload, submit
from hansa.server.tokens import first_token
from hansa.store.records import Invitation, Population, RoundKey, Token
from hansa.wire.generated import federation_pb2 as messages
from hansa.wire.plans import read_plan
from hansa.wire.signatures import enrolment, sign_request
from hansa.wire.updates import encode_tallies, encode_update

PLAN = "examples/heart.toml"


@dataclass
class FakeClock:
    """A clock that stands until it is moved."""

    time: float = 1_800_000_000.0

    def now(self) -> float:
        return self.time


@dataclass
class Device:
    """A client that speaks the protocol by hand."""

    http: httpx.AsyncClient
    clock: FakeClock
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    id: str = ""
    attributes: dict[str, str] = field(default_factory=dict)
    version: str = "1.0.0"
    consent: bool = True

    def header(self, method: str, target: str, body: bytes = b"", *, at: float | None = None) -> str:
        now = self.clock.now() if at is None else at
        return sign_request(self.key, client=self.id, method=method, target=target, body=body, now=now)

    async def call(self, name: str, message, *, header: str | None = "signed") -> httpx.Response:
        path, body = f"/hansa.v1.Federation/{name}", message.SerializeToString()
        headers = {"Content-Type": "application/proto"}
        if header is not None:
            headers["Authorization"] = self.header("POST", path, body) if header == "signed" else header
        return await self.http.post(path, content=body, headers=headers)

    async def enrol(self, token: str, **changes) -> httpx.Response:
        request = {
            "token": token,
            "public_key": self.key.public_key().public_bytes_raw(),
            "key_proof": self.key.sign(enrolment(token)),
            "client_version": self.version,
            "attributes": self.attributes,
            "consent": self.consent,
            **changes,
        }
        answer = await self.call("Enrol", messages.EnrolRequest(**request), header=None)
        if answer.status_code == 200:
            self.id = messages.EnrolResponse.FromString(answer.content).client
        return answer

    async def check_in(self, wait: float = 0.0, **more) -> messages.CheckInResponse:
        answer = await self.call("CheckIn", self.check_in_request(wait, **more))
        assert answer.status_code == 200, answer.text
        return messages.CheckInResponse.FromString(answer.content)

    def check_in_request(self, wait: float = 0.0, **more) -> messages.CheckInRequest:
        return messages.CheckInRequest(
            client_version=self.version, attributes=self.attributes, consent=self.consent, wait_seconds=wait, **more
        )

    async def assignment(self, wait: float = 5.0) -> messages.Assignment:
        answer = await self.check_in(wait)
        assert answer.HasField("assignment")
        return messages.Assignment.FromString(answer.assignment.assignment)

    async def get(self, path: str, **headers) -> httpx.Response:
        return await self.http.get(path, headers={"Authorization": self.header("GET", path), **headers})

    async def put(self, of: messages.AssignmentId, body: bytes, **changes) -> httpx.Response:
        kind = messages.Kind.Name(of.kind).removeprefix("KIND_").lower()
        path = changes.pop("path", f"/v1/updates/{of.run}/{kind}/{of.round}/{of.attempt}")
        digest = base64.b64encode(hashlib.sha256(changes.pop("whole", body)).digest()).decode()
        headers = {
            "Authorization": self.header("PUT", path, body),
            "Content-Range": f"bytes 0-{len(body) - 1}/{len(body)}",
            "Repr-Digest": f"sha-256=:{digest}:",
            **changes,
        }
        return await self.http.put(path, content=body, headers=headers)


def code_of(answer: httpx.Response) -> str:
    """Return the code of a refusal, of plain HTTP or of Connect."""
    told = answer.json()
    if "error" in told:
        return told["error"]["code"]
    (detail,) = told["details"]
    value = detail["value"]
    problem = messages.Problem.FromString(base64.b64decode(value + "=" * (-len(value) % 4)))
    assert told["message"].partition(":")[0] == problem.code  # what only a message tells, no client reads
    return problem.code


@dataclass
class Deployed:
    """A server with one tenant and one population."""

    services: object
    http: httpx.AsyncClient
    clock: FakeClock
    token: Token
    population: Population
    layout: Layout = field(default_factory=lambda: Layout(()))

    async def invite(self, name: str | None = None, *, uses: int = 1, population: str | None = None, **more) -> str:
        token = secrets.token_urlsafe(32)
        digest = hashlib.sha256(token.encode()).hexdigest()
        invitation = Invitation(secrets.token_hex(8), population or self.population.id, digest, uses, **more)
        async with self.services.store.transaction() as rows:
            await rows.clients.invite(invitation, name=name, at=self.clock.now())
        return token

    async def device(self, name: str, **more) -> Device:
        device = Device(self.http, self.clock, **more)
        assert (await device.enrol(await self.invite(name))).status_code == 200
        return device

    async def submit(self, *overrides: str, wait_for: int = 2) -> str:
        plan = read_plan(PLAN, ("evaluation.baselines=[]", *overrides))
        job = build_job(plan, population=self.population.name, wait_for=wait_for)

        async def content():
            yield job.model

        await store_upload(self.services, self.token.tenant, job.body["model"], len(job.model), content())
        _, run, _ = await submit(self.services, self.token, Submission(**job.body))
        return run.id

    async def context(self, run: str):
        async with self.services.store.reading() as rows:
            found = await rows.runs.get(run)
        return await self.services.contexts.of(found)

    async def update(self, assignment: messages.Assignment, value: float = 0.0) -> bytes:
        """Return the bytes of a valid update for an assignment, each of whose values is the same."""
        context = await self.context(assignment.id.run)
        if assignment.id.kind == messages.KIND_EVALUATION:
            return encode_tallies({name: np.ones(width) for name, width in context.tally_widths.items()})
        if assignment.id.kind == messages.KIND_STATISTICS:
            from hansa.algorithms.prologue import statistics_layout

            layout = statistics_layout(context.plan.features)
            lanes = np.zeros((1, len(layout.lanes)), dtype=np.int64)
            return encode_update(Batch(np.zeros((1, 0), dtype=np.float32), lanes, layout))
        layout = context.state.layout
        lanes = layout.encode_lanes({"count": np.ones(1), "weight.params": np.ones(1)}, 1)
        return encode_update(Batch(np.full((1, layout.size), value, dtype=np.float32), lanes, layout))

    async def events(self, kind: str) -> list:
        async with self.services.store.reading() as rows:
            return [event for event in await rows.events.after(self.token.tenant, 0, 10_000) if event.kind == kind]

    async def round(self, of: messages.AssignmentId):
        kind = messages.Kind.Name(of.kind).removeprefix("KIND_").lower()
        async with self.services.store.reading() as rows:
            return await rows.rounds.get(RoundKey(of.run, kind, of.round, of.attempt))

    async def given_up(self, of: messages.AssignmentId):
        """Return a round once it is given up, and let the pause before its next attempt pass."""
        for _ in range(500):
            found = await self.round(of)
            if found.state == "abandoned":
                self.clock.time += 40
                return found
            await asyncio.sleep(0.02)
        raise TimeoutError


@contextlib.asynccontextmanager
async def serving(folder, clock, **settings):
    """One replica over some files, its background work included; yields its services and how to call it."""
    chosen = ServerSettings(folder=str(folder / "server"), **{"tick_seconds": 0.02, **settings})
    async with open_services(chosen, clock) as services:
        await first_token(services.store, chosen, clock.now())
        async with (
            background(services),
            httpx.AsyncClient(
                transport=httpx.ASGITransport(create(services)), base_url="https://hansa.test", timeout=30
            ) as http,
        ):
            yield services, http


@contextlib.asynccontextmanager
async def deployed(folder, **settings):
    """A server over temporary files, its background work included."""
    clock = FakeClock()
    async with serving(folder, clock, **settings) as (services, http):
        async with services.store.transaction() as rows:
            tenant = (await rows.tenants.all())[0]
            population = Population("population-1", tenant.id, "hospitals", schema={"region": "string"})
            if await rows.populations.get(population.id) is None:  # it is there in a server that was restored
                await rows.populations.add(population)
            token = (await rows.tokens.of(tenant.id))[0]
        yield Deployed(services, http, clock, token, population)


def run_async(work):
    """Run one coroutine to its end."""
    return asyncio.run(work)
