"""A fuzzer against the client protocol: whatever an enrolled client signs is answered, and costs nobody else anything.

Calls as the specification says them are changed in their fields, bodies, headers and paths, mostly before they are
signed with the client's own key. What comes is no bug of the server's: an answer of the call, or a refusal with a code
of the catalogue and its status. Meanwhile others are asked in the same round, and it closes with what they reported.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import httpx
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import json_format
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.server import summing
from tests.server.by_hand import Deployed, Device, code_of, deployed

from hansa.core.errors import CATALOGUE
from hansa.wire.generated import federation_pb2 as messages
from hansa.wire.signatures import client_key, enrolment

PLAN = "evaluation.federated=false", "features.label=disease", "features.scaling=none", "rounds=2"
LARGEST = 16 * 1024
"""Bytes of a call's body that this server takes."""
RPC = "/hansa.v1.Federation/"
PASSING = {"HANSA-SERVER-BUSY"}
"""What a server may answer with a 5xx: come back later."""
TEXTS = ("", "a", "\x00", "é" * 9, "../..", "-1", "x" * 300, "1e999", "NaN", "null", "true", '"', "[[]]", "9" * 40)
NUMBERS = (0, 1, -1, 2, 3, 99, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, -(2**63))
FLOATS = (0.0, -0.0, -1.0, 1e-308, float("nan"), float("inf"), float("-inf"))
JSON = (None, True, -1, 1.5, 1e308, "", "x", "NaN", [], [[]], {}, {"a": {}}, 2**70)
HEADERS = {
    "Content-Type": ("application/proto", "application/json", "application/json; charset=latin-1", "text/plain", "",
                     "application/grpc", "application/connect+proto", "Application/Proto", "application/proto;q=\x7f"),
    "Content-Encoding": ("gzip", "identity", "br", "gzip, gzip", "", "GZIP"),
    "Accept-Encoding": ("gzip", "br", "*", "identity;q=0"),
    "Connect-Protocol-Version": ("1", "0", "", "²"),
    "Connect-Timeout-Ms": ("0", "5000", "-1", "x", "9" * 30),
    "Content-Length": ("0", "1", "-1", "²", "9" * 30),
    "Content-Range": ("", "bytes 0-0/1", "bytes 5-4/9", "bytes 0-9/*", "bytes -1-2/3", "bytes 0-8/99999999999", "x",
                      "bytes 0-0/0", "bytes \u0660-\u0661/\u0662", "bytes 1-1/2"),
    "Repr-Digest": ("", "sha-256=::", f"sha-256=:{'A' * 43}=:", "sha-512=:AAAA:", f"sha-256=:{'/' * 42}B=:"),
    "Range": ("bytes=0-0", "bytes=5-", "bytes=-3", "bytes=-", "bytes=9-1", "bytes=0-999999999999999999999",
              "bytes=\u0663-", "lines=1-2", "bytes=0-1,3-4", ""),
    "If-Range": ('"x"', "", "Sat, 29 Oct 1994 19:43:31 GMT"),
    "If-None-Match": ("*", '"x"', 'W/"x"', ""),
    "Authorization": ("", "Bearer x", "Hansa-Ed25519 client=x", "Hansa-Ed25519 " + "x" * 5000),
}  # fmt: skip
SEGMENTS = ("", ".", "..", "%00", "%2F", "%", "x", "0", "1", "-1", "9" * 30, "²", "A" * 64, "training", "evaluation")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get")


@dataclass(frozen=True)
class Call:
    """A request before it is signed; ``message`` is what a call of Connect has for its body."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    message: Any = None


@dataclass
class Scene:
    """A server, and clients that are asked something: those that fuzz, the first of them now, and others."""

    server: Deployed
    devices: list[Device]
    others: list[Device] = field(default_factory=list)
    seen: Counter[str | int] = field(default_factory=Counter)
    asked: messages.Assignment | None = None
    update: bytes = b""
    said: bytes = b""
    """A message of the fuzzer to a secure sum."""

    @property
    def fuzzer(self) -> Device:
        return self.devices[0]

    async def send(self, call: Call, coins: Random) -> None:
        """Send a call, signed: now and then over something else, or twice."""
        headers = [(name.encode(), value.encode()) for name, value in call.headers.items()]
        request = httpx.Request(call.method, f"https://hansa.test{call.path}", content=call.body, headers=headers)
        body = b"else" if coins.random() < 0.05 else call.body
        if not call.path.startswith(f"{RPC}Enrol"):
            signature = self.fuzzer.header(call.method, request.url.raw_path.decode(), body)
            request.headers.setdefault("Authorization", signature)
        for _ in range(1 + (coins.random() < 0.05)):
            self.judge(call, await asyncio.wait_for(self.server.http.send(request), 20))

    def judge(self, call: Call, answer: httpx.Response) -> None:
        """Hold an answer to what the specification promises of every one."""
        if answer.status_code in (200, 202, 204, 206, 304, 416):
            self.seen[answer.status_code] += 1
            return
        ours = answer.request.url.path.startswith((RPC, "/v1/")) and answer.content  # a HEAD is answered without
        code = code_of(answer) if ours else f"no code: {answer.status_code}"
        self.seen[code] += 1
        assert code in CATALOGUE or not ours, call
        assert answer.status_code < 500 or code in PASSING, (call, answer.text)


def enrol(scene: Scene) -> Call:
    key, token = Ed25519PrivateKey.generate(), scene.said.decode()
    public, proof = key.public_key().public_bytes_raw(), key.sign(enrolment(token))
    request = messages.EnrolRequest(token=token, public_key=public, key_proof=proof, client_version="1.0.0")
    request.attributes["region"] = '"north"'
    return rpc("Enrol", request)


def check_in(scene: Scene) -> Call:
    return rpc("CheckIn", scene.fuzzer.check_in_request(0.0, reported=asked(scene).id))


def exchange(scene: Scene) -> Call:
    return rpc("Exchange", messages.ExchangeRequest(id=asked(scene).id, message=scene.said, seen=1))


def rotate_key(scene: Scene) -> Call:
    key = Ed25519PrivateKey.generate()
    public, proof = key.public_key().public_bytes_raw(), key.sign(client_key(scene.fuzzer.id))
    return rpc("RotateKey", messages.RotateKeyRequest(public_key=public, key_proof=proof))


def goodbye(_: Scene) -> Call:
    return rpc("Goodbye", messages.GoodbyeRequest())


def put(scene: Scene) -> Call:
    total = len(scene.update)
    end = total // (1 + sum(scene.seen.values()) % 2)  # the whole, or its first half
    digest = base64.b64encode(hashlib.sha256(scene.update).digest()).decode()
    headers = {"Content-Range": f"bytes 0-{end - 1}/{total}", "Repr-Digest": f"sha-256=:{digest}:"}
    return Call("PUT", place(scene), scene.update[:end], headers)


def offset(scene: Scene) -> Call:
    return replace(put(scene), method="HEAD", body=b"")


def model(scene: Scene) -> Call:
    digest = asked(scene).model_sha256
    headers = {"Range": "bytes=8-", "If-Range": f'"{digest}"', "If-None-Match": '"other"'}
    return Call("GET", f"/v1/models/{digest}", headers=headers)


def job(scene: Scene) -> Call:
    return Call("GET", f"/v1/jobs/{asked(scene).job_sha256}", headers={"Range": "bytes=1-2"})


def rpc(name: str, message: Any) -> Call:
    return Call("POST", RPC + name, headers={"Content-Type": "application/proto"}, message=message)


def asked(scene: Scene) -> messages.Assignment:
    assert scene.asked is not None
    return scene.asked


def place(scene: Scene) -> str:
    of = asked(scene).id
    return f"/v1/updates/{of.run}/training/{of.round}/{of.attempt}"


def changed(call: Call, coins: Random) -> Call:
    """Return a call with a few of its parts changed, or none."""
    if call.message is not None:
        call = _encoded(call, coins)
    for change in (_body, _headers, _path, _method):
        if coins.random() < 0.3:
            call = change(call, coins)
    return call


def _encoded(call: Call, coins: Random) -> Call:
    """Return a call with its message, changed in some fields, as its body."""
    message = type(call.message).FromString(call.message.SerializeToString())
    if coins.random() < 0.6:
        _change_fields(message, coins)
    if coins.random() < 0.6:
        return replace(call, body=message.SerializeToString())
    told = json_format.MessageToDict(message)
    if coins.random() < 0.5:
        names = [*told, *(each.json_name for each in message.DESCRIPTOR.fields), "other"]
        told[coins.choice(names)] = coins.choice(JSON)
    headers = {**call.headers, "Content-Type": "application/json"}
    return replace(call, body=json.dumps(told).encode(), headers=headers)


def _change_fields(message: Any, coins: Random) -> None:
    """Put values that parsers and servers get wrong into some fields, those within fields too."""
    for each in message.DESCRIPTOR.fields:
        if coins.random() < 0.6:
            continue
        if each.message_type is not None and each.message_type.GetOptions().map_entry:
            for _ in range(coins.choice((1, 2, 70))):
                getattr(message, each.name)[coins.choice(TEXTS) + str(coins.random())[:3]] = coins.choice(TEXTS)
        elif each.message_type is not None and not each.is_repeated:
            getattr(message, each.name).SetInParent()
            _change_fields(getattr(message, each.name), coins)
        else:
            with contextlib.suppress(ValueError, TypeError):  # a number that the field cannot hold
                value = _value(each, coins)
                setattr(message, each.name, value) if not each.is_repeated else getattr(message, each.name).append(
                    value
                )


def _value(of: Any, coins: Random) -> Any:
    if of.type == of.TYPE_BYTES:
        return coins.choice((b"", b"\0", bytes(32), bytes(64), b"\xff" * 32, b"x" * 5000))
    if of.type == of.TYPE_STRING:
        return coins.choice(TEXTS)
    if of.type == of.TYPE_BOOL:
        return coins.random() < 0.5
    return coins.choice(FLOATS if of.type == of.TYPE_DOUBLE else NUMBERS)


def _body(call: Call, coins: Random) -> Call:
    """Return a call with another body; of an update, sometimes with what it announces as for that body."""
    at = coins.randrange(len(call.body) + 1)
    flipped = bytearray(call.body or b"x")
    flipped[min(at, len(flipped) - 1) if coins.random() < 0.5 else 0] ^= 1 << coins.randrange(8)
    body = coins.choice((
        bytes(flipped), call.body[:at], call.body + b"\0\xff", b"", b"{", b"[" * 9000, bytes(at), b"\xff" * 9,
        call.body + bytes(LARGEST), bytes(66_000), gzip.compress(call.body), gzip.compress(bytes(10**6)),
    ))  # fmt: skip
    if call.method != "PUT" or coins.random() < 0.5 or body[100:] == call.body[100:]:
        return replace(call, body=body)
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    announced = {"Content-Range": f"bytes 0-{len(body) - 1}/{len(body)}", "Repr-Digest": f"sha-256=:{digest}:"}
    return replace(call, body=body, headers=call.headers | announced)


def _headers(call: Call, coins: Random) -> Call:
    headers = dict(call.headers)
    for _ in range(coins.randrange(1, 4)):
        name = coins.choice([*HEADERS, *headers])
        if name in headers and coins.random() < 0.3:
            del headers[name]
        elif name in HEADERS:
            headers[name] = coins.choice(HEADERS[name])
    return replace(call, headers=headers)


def _path(call: Call, coins: Random) -> Call:
    parts = call.path.split("/")
    match coins.randrange(5):
        case 0:
            return replace(call, path=f"{call.path}?{coins.choice(('', 'a=1', 'encoding=json&message={}', '%'))}")
        case 1:
            return replace(call, path=call.path + coins.choice(("/", "//", "/x", ";x")))
        case 2:
            del parts[coins.randrange(1, len(parts))]
            return replace(call, path="/".join(parts) or "/")
        case _:
            parts[coins.randrange(2, len(parts))] = coins.choice(SEGMENTS)
            return replace(call, path="/".join(parts))


def _method(call: Call, coins: Random) -> Call:
    return replace(call, method=coins.choice(METHODS))


@pytest.fixture
def runner():
    with asyncio.Runner() as made:
        yield made


@contextlib.contextmanager
def running(runner: asyncio.Runner, folder: Any, **more: Any):
    """A server that runs whenever the runner does."""
    limits = {"calls_per_second": 0, "largest_request_bytes": LARGEST, "long_poll_seconds": 0.01}
    context = deployed(folder, upload_part_bytes=64 * 1024, **limits | more)
    server = runner.run(context.__aenter__())
    try:
        yield server
    finally:
        runner.run(context.__aexit__(None, None, None))


def fuzz(runner: asyncio.Runner, scene: Scene, made: Callable[[Scene], Call], before: Any, examples: int) -> None:
    """Send calls that are changed in ways that hypothesis draws."""

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(coins=st.randoms(use_true_random=True))
    def call(coins: Random) -> None:
        async def one() -> None:
            await before(scene)
            await scene.send(changed(made(scene), coins), coins)

        runner.run(one())

    call()


async def asked_in_a_round(server: Deployed, fuzzers: int) -> Scene:
    devices = [await server.device(str(number)) for number in range(fuzzers + 2)]
    for device in devices:
        await device.check_in()
    await server.submit(*PLAN, wait_for=len(devices))
    assigned = await summing._assigned(devices[0], 1)
    update = await server.update(assigned, 2.0)
    return Scene(server, devices[:-2], devices[-2:], asked=assigned, update=update)


async def innocent_are_counted(scene: Scene) -> None:
    """Let the others report, and the fuzzers where they still may; the round closes, and the others are in it once."""
    of = asked(scene)
    for device, value in zip(scene.others, (1.0, 3.0), strict=True):
        answer = await device.put(of.id, await scene.server.update(of, value))
        assert answer.json()["verdict"] == "VERDICT_ACCEPTED"
    for device in scene.devices:
        await device.put(of.id, scene.update)
    for device in scene.others:
        again = await summing._assigned(device, 1)
        while again.id.round == 1:
            await asyncio.sleep(0.01)
            again = await summing._assigned(device, 1)
        assert (await device.check_in(reported=of.id)).outcome == messages.OUTCOME_INCLUDED
    released = await scene.others[0].get(f"/v1/models/{again.model_sha256}")
    assert set(safetensors.numpy.load(released.content)["model"].tolist()) == {2.0}  # with a fuzzer's 2 or without


async def nothing(_: Scene) -> None:
    """Leave everything as it is before a call."""


async def invited(scene: Scene) -> None:
    scene.said = (await scene.server.invite()).encode()


async def enrolled_again(scene: Scene) -> None:
    """Have a client fuzz that nothing is asked of, and another where that one is retired or has another key."""
    answer = await scene.fuzzer.call("CheckIn", scene.fuzzer.check_in_request(looks=True))
    if len(scene.devices) == 1 or answer.status_code != 200:
        scene.devices.insert(0, await scene.server.device(f"another {len(scene.devices)}"))


async def still_asked(scene: Scene) -> None:
    """Have the next client fuzz where one has answered, or is asked no more; the last goes on."""
    while len(scene.devices) > 1 and not (await scene.fuzzer.check_in()).HasField("assignment"):
        scene.devices.pop(0)


CALLS = [
    (enrol, invited, 100, {200, "HANSA-ENROL-TOKEN", "HANSA-CLIENT-ATTRIBUTES"}),
    (check_in, nothing, 400, {200, "HANSA-CLIENT-ATTRIBUTES", "HANSA-CLIENT-VERSION"}),
    (exchange, nothing, 150, {"HANSA-REPORT-UNEXPECTED"}),
    (rotate_key, enrolled_again, 120, {200, "HANSA-AUTH-SIGNATURE"}),
    (goodbye, enrolled_again, 60, {200}),
    (put, still_asked, 300, {200, 202, "HANSA-REPORT-INVALID"}),
    (offset, nothing, 150, {204}),
    (model, nothing, 200, {206, "HANSA-NOT-FOUND"}),
    (job, nothing, 100, {206, "HANSA-NOT-FOUND"}),
]
"""What is called, what is done before each call, how many calls, and answers that must be among theirs."""


@pytest.mark.parametrize(("made", "before", "examples", "expected"), CALLS, ids=[made.__name__ for made, *_ in CALLS])
def test_whatever_is_sent_is_answered_with_a_code_and_the_others_are_counted_once(
    tmp_path, runner, made, before, examples, expected
):
    with running(runner, tmp_path) as server:
        scene = runner.run(asked_in_a_round(server, 12 if made is put else 1))
        fuzz(runner, scene, made, before, examples)
        assert expected <= set(scene.seen), scene.seen
        runner.run(asyncio.wait_for(innocent_are_counted(scene), 20))


@pytest.mark.parametrize("made", [exchange, put], ids=["exchange", "put"])
def test_a_secure_sum_ends_with_the_others_whatever_one_of_them_sent(tmp_path, runner, made):
    with running(runner, tmp_path) as server:

        async def begun() -> tuple[Scene, list[summing.Part]]:
            parts = await summing.begun(server, await summing.started(server))
            first = parts[0]
            return Scene(server, [first.device], asked=first.assigned, update=first.reply, said=first.reply), parts[1:]

        async def ended() -> None:
            for _ in range(4):
                await summing.phase(others)
            await summing.phase(others, last=True)
            assert await summing.over(server, others[0]) == "closed"
            for part in others:
                outcome = (await part.device.check_in(reported=part.assigned.id)).outcome
                assert outcome == messages.OUTCOME_INCLUDED

        scene, others = runner.run(begun())
        fuzz(runner, scene, made, nothing, 100)
        refused = {event.client for event in runner.run(server.events("report.refused"))}
        assert refused == {scene.fuzzer.id}  # so that the sum does not wait for it
        runner.run(asyncio.wait_for(ended(), 30))


UNREADABLE = {
    "no message": ({}, b"\xff\xff", 400, "HANSA-REQUEST-INVALID"),
    "no JSON": ({"Content-Type": "application/json"}, b"{", 400, "HANSA-REQUEST-INVALID"),
    "another media type": ({"Content-Type": "text/plain"}, b"", 400, "HANSA-REQUEST-INVALID"),
    "gRPC": ({"Content-Type": "application/grpc+proto"}, b"", 400, "HANSA-REQUEST-INVALID"),
    "no gzip": ({"Content-Encoding": "gzip"}, b"x", 400, "HANSA-REQUEST-INVALID"),
    "another compression": ({"Content-Encoding": "br"}, b"x", 400, "HANSA-REQUEST-INVALID"),
    "another version": ({"Connect-Protocol-Version": "2"}, b"", 400, "HANSA-REQUEST-INVALID"),
    "a bomb": ({"Content-Encoding": "gzip"}, gzip.compress(bytes(10**6)), 413, "HANSA-REQUEST-TOO-LARGE"),
    "too short a time": ({"Connect-Timeout-Ms": "1"}, None, 503, "HANSA-SERVER-BUSY"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_the_connect_library_refuses_by_itself_has_a_code_too(tmp_path, runner, name):
    more, body, status, code = UNREADABLE[name]
    with running(runner, tmp_path, long_poll_seconds=5.0) as server:

        async def called() -> httpx.Response:
            device = await server.device("a")
            content = device.check_in_request(5.0).SerializeToString() if body is None else body
            signed = {"Authorization": device.header("POST", f"{RPC}CheckIn", content)}
            headers = {"Content-Type": "application/proto", **signed, **more}
            return await server.http.post(f"{RPC}CheckIn", content=content, headers=headers)

        answer = runner.run(called())
        assert (answer.status_code, code_of(answer)) == (status, code)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", f"{RPC}Nothing"), ("GET", "/v1/nothing"), ("DELETE", f"/v1/models/{'a' * 64}")]
)
def test_what_is_no_call_of_the_protocol_is_not_there(tmp_path, runner, method, path):
    with running(runner, tmp_path) as server:
        answer = runner.run(server.http.request(method, path, headers={"Content-Type": "application/proto"}))
        assert (answer.status_code, code_of(answer)) == (404, "HANSA-NOT-FOUND")
