"""Every route of the application and every call of the protocol, tried by those whom it is not for.

Both are read from the application and from the protocol's own description, so that none can be forgotten: a parameter
or a route that is not known here fails these tests.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Mount, Route
from tests.server.by_hand import Deployed, Device, code_of, deployed, run_async

from hansa.server.app import create
from hansa.server.tokens import new_secret, new_token
from hansa.store.records import Population
from hansa.wire.generated import federation_pb2 as messages

PLAN = "evaluation.federated=false", "features.label=disease", "features.scaling=none", "rounds=9"
PUBLIC = {
    ("GET", "/api/v1/openapi.json"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/sign-in"),
    ("GET", "/style.css"),
}
"""What is for everybody: it says nothing of anybody."""
UNSIGNED = "Enrol"
METHODS = [method.name for method in messages.DESCRIPTOR.services_by_name["Federation"].methods]
ORIGIN = {"Origin": "https://hansa.test"}
UPLOAD = {
    "Content-Range": "bytes 0-1/2",
    "Repr-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(b'{}').digest()).decode()}:",
}
BUDGET = {"epsilon": 4.0, "delta": 1e-5, "unit": "client", "adjacency": "zero-out", "populations": ["hospitals"]}


@dataclass
class Scene:
    """A server with a run in its second round, and another tenant beside."""

    server: Deployed
    routes: list[tuple[str, str]]
    names: dict[str, str]
    device: Device
    asked: messages.Assignment
    owner: str
    strange: dict[str, str | None]
    """Tokens that are no good: how they are called -> the token."""
    other_owner: str
    other: Population

    def path(self, template: str) -> str:
        names = self.names
        if template.startswith("/v1/jobs"):
            names = {"sha256": self.asked.job_sha256}
        return re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: names[found[1]], template)

    async def call(self, method: str, template: str, authorization: str | None = None) -> httpx.Response:
        headers = {**ORIGIN, **UPLOAD} | ({} if authorization is None else {"Authorization": authorization})
        content = {} if method in ("GET", "HEAD", "DELETE") else {"content": b"{}"}
        return await self.server.http.request(method, self.path(template), headers=headers, **content)

    def signed(self, method: str, template: str, device: Device, **more) -> str:
        body = b"" if method in ("GET", "HEAD", "DELETE") else b"{}"
        return device.header(method, self.path(template), body, **more)

    def is_protocol(self, template: str) -> bool:
        return template.startswith("/v1/")

    async def of_own(self) -> dict:
        """Return all that the own tenant's owner is told."""
        read = [path for method, path in self.routes if method == "GET" and path.startswith("/api/v1")]
        answers = {path: await self.call("GET", path, f"Bearer {self.owner}") for path in read}
        assert {path for path, answer in answers.items() if answer.status_code != 200} == set()
        return {path: answer.content for path, answer in answers.items()}

    async def stranger(self, name: str) -> Device:
        """Return a client of the other tenant."""
        device = Device(self.server.http, self.server.clock)
        invited = await self.server.invite(name, population=self.other.id)
        assert (await device.enrol(invited)).status_code == 200
        return device


def leaves(routes, prefix=""):
    """Return (method, path) of every route."""
    for route in routes:
        if isinstance(route, Mount):
            yield from leaves(route.routes, prefix + route.path)
        elif hasattr(route, "original_router"):  # a router as newer FastAPI includes it
            yield from leaves(route.original_router.routes, prefix + route.include_context.prefix)
        else:
            assert isinstance(route, Route | APIRoute), route
            yield from ((method, prefix + route.path) for method in sorted(route.methods))


async def scene_of(server) -> Scene:
    devices = [await server.device(name) for name in "ab"]
    for device in devices:
        await device.check_in()
    run = await server.submit(*PLAN)
    for device in devices:
        asked = await device.assignment()
        await device.put(asked.id, await server.update(asked, 1.0))
    asked = await devices[0].assignment()
    assert asked.id.round == 2
    now = server.clock.now()
    owner = (server.services.settings.place / "owner-token").read_text().strip()
    strange: dict[str, str | None] = {"none": None, "malformed": "a b", "a stranger's": new_secret("token")}
    async with server.services.store.transaction() as rows:
        tenant = await rows.tenants.add("another organisation")
        other = Population("population-2", tenant.id, "elsewhere")
        await rows.populations.add(other)
        theirs, other_owner = new_token(tenant.id, "owner", "theirs", now + 3600)
        expired, strange["expired"] = new_token(server.token.tenant, "owner", "expired", now - 1)
        revoked, strange["revoked"] = new_token(server.token.tenant, "owner", "revoked", now + 3600)
        for each in (theirs, expired, revoked):
            await rows.tokens.add(each)
        await rows.tokens.revoke(revoked.id, now)
        released = asked.model_sha256
        job = (await rows.runs.get(run)).job
    names = {"run": run, "kind": "training", "round": "2", "number": "2", "attempt": "1", "sha256": released,
             "job": job, "client": devices[0].id, "token_id": expired.id, "population": "hospitals",
             "scope": "hospitals"}  # fmt: skip
    routes = list(leaves(create(server.services).others.routes))
    scene = Scene(server, routes, names, devices[0], asked, owner, strange, other_owner, other)
    headers = {"Authorization": f"Bearer {owner}"}
    assert (await server.http.put("/api/v1/ledger/hospitals", json=BUDGET, headers=headers)).is_success
    return scene


def tried(tmp_path, work):
    async def go():
        async with deployed(tmp_path) as server:
            await work(await scene_of(server))

    run_async(go())


def passes(answer: httpx.Response) -> bool:
    """Return whether somebody got more than the way to sign in."""
    to_sign_in = answer.status_code == 303 and answer.headers["location"] == "/sign-in"
    return answer.status_code < 400 and not to_sign_in


def test_whom_they_are_for_they_answer(tmp_path):
    """What the other tests refuse is refused for the caller's sake, and not because it is not there."""

    async def work(scene):
        assert len(scene.routes) > 45
        await scene.of_own()
        for method, template in scene.routes:
            if method in ("GET", "HEAD") and scene.is_protocol(template):
                answer = await scene.call(method, template, scene.signed(method, template, scene.device))
                assert answer.is_success, (method, template, answer.status_code)
        assert (await scene.call("GET", "/metrics", f"Bearer {scene.owner}")).status_code == 200
        session = await scene.server.http.post("/sign-in", data={"token": scene.owner}, headers=ORIGIN)
        scene.server.http.cookies.update(session.cookies)
        for template in ("/runs", "/runs/{run}", "/clients"):
            assert (await scene.call("GET", template)).status_code == 200

    tried(tmp_path, work)


def test_no_route_lets_in_who_has_no_good_token_or_signature(tmp_path):
    async def work(scene):
        out = await scene.server.device("retired")
        async with scene.server.services.store.transaction() as rows:
            await rows.clients.set_state(out.id, "retired", at=scene.server.clock.now(), why="test")
        await scene.server.services.clients.follow()
        before = await scene.of_own()
        unknown, thief = (Device(scene.server.http, scene.server.clock, id=each) for each in ("x", scene.device.id))
        now = scene.server.clock.now()
        for method, template in scene.routes:
            open_ = ("GET" if method == "HEAD" else method, template) in PUBLIC
            for name, token in scene.strange.items():
                answer = await scene.call(method, template, None if token is None else f"Bearer {token}")
                assert passes(answer) == open_, (method, template, name, answer.status_code)
                if template.startswith("/api/v1") and not open_:
                    assert answer.status_code == 401, (method, template, name)
            if scene.is_protocol(template):
                for device, more in ((unknown, {}), (thief, {}), (out, {}), (scene.device, {"at": now - 400})):
                    answer = await scene.call(method, template, scene.signed(method, template, device, **more))
                    assert answer.status_code in (401, 403), (method, template, device.id, more)
        assert await scene.of_own() == before

    tried(tmp_path, work)


def test_no_route_gives_another_tenant_anything(tmp_path):
    async def work(scene):
        before = await scene.of_own()
        device = await scene.stranger("theirs")
        marks = [scene.names["run"], scene.names["job"], scene.names["client"], scene.device.id, scene.asked.job_sha256]
        session = await scene.server.http.post("/sign-in", data={"token": scene.other_owner}, headers=ORIGIN)
        for method, template in scene.routes:
            if scene.is_protocol(template):
                authorization = scene.signed(method, template, device)
            else:
                authorization = f"Bearer {scene.other_owner}"
                scene.server.http.cookies = session.cookies
            answer = await scene.call(method, template, authorization)
            uploads = (method, template) == ("PUT", "/api/v1/models/{sha256}")  # named by what it holds
            if "{" in template and not uploads:
                assert answer.status_code >= 400, (method, template, answer.status_code)
            assert not any(mark in answer.text for mark in marks if mark not in str(answer.url)), (method, template)
        assert await scene.of_own() == before

    tried(tmp_path, work)


def request_of(method: str, asked: messages.AssignmentId):
    """Return a request whose every name of an assignment is that of somebody else's."""
    request = getattr(messages, f"{method}Request")()
    for field in request.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.name == "AssignmentId":
            getattr(request, field.name).CopyFrom(asked)
    return request


@pytest.mark.parametrize("method", METHODS)
def test_no_call_of_the_protocol_lets_in_who_it_is_not_for(tmp_path, method):
    async def work(scene):
        server = scene.server
        request, path = request_of(method, scene.asked.id), f"/hansa.v1.Federation/{method}"
        if method == UNSIGNED:
            late = await server.invite("late", expires_at=server.clock.now() - 1)
            for token in ("", "no such token", late):
                answer = await Device(server.http, server.clock).enrol(token)
                assert answer.status_code >= 400, token
            return
        body = request.SerializeToString()
        for name, header in (("none", None), ("a token", f"Bearer {scene.owner}")):
            assert code_of(await scene.device.call(method, request, header=header)) == "HANSA-AUTH-MISSING", name
        for identity, code in (("x", "HANSA-AUTH-UNKNOWN"), (scene.device.id, "HANSA-AUTH-SIGNATURE")):
            stranger = Device(server.http, server.clock, id=identity)
            assert code_of(await stranger.call(method, request)) == code
        old = scene.device.header("POST", path, body, at=server.clock.now() - 400)
        assert code_of(await scene.device.call(method, request, header=old)) == "HANSA-AUTH-CLOCK"
        before, other = await scene.of_own(), await scene.stranger("theirs")
        answer = await other.call(method, request)
        if answer.status_code == 200:  # it is about the caller alone
            assert scene.names["run"].encode() not in answer.content
            assert method in ("CheckIn", "Goodbye")
        assert await scene.of_own() == before

    tried(tmp_path, work)


def test_an_invitation_of_another_tenant_lets_into_that_one_only(tmp_path):
    async def work(scene):
        before, device = await scene.of_own(), await scene.stranger("theirs")
        async with scene.server.services.store.reading() as rows:
            assert (await rows.clients.get(device.id)).population == scene.other.id
        assert await scene.of_own() == before

    tried(tmp_path, work)
