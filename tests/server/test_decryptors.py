"""oneshot-seeds on the real server, with decryptors in this process: what goes well, fails and is refused."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.server.by_hand import code_of as refusal
from tests.server.by_hand import deployed, run_async
from tests.server.summing import Part, _assigned, code_for, key_of, over, plain_sum, started, swept, vector_of

from hansa.core.errors import PlanError
from hansa.decryptor.app import create
from hansa.decryptor.book import Book
from hansa.decryptor.service import DecryptorService
from hansa.decryptor.settings import DecryptorSettings
from hansa.secagg import keys
from hansa.secagg.contribution import Contribution
from hansa.secagg.encoding import prefixed
from hansa.secagg.known import content_of
from hansa.secagg.oneshot_client import ReportingClient
from hansa.secagg.oneshot_messages import Report
from hansa.secagg.policy import ClientPolicy
from hansa.server import closing, decryptor_calls
from hansa.server.secure_tasks import Prepared
from hansa.serving.own_files import OwnFiles
from hansa.wire.generated import federation_pb2 as messages
from hansa.wire.service_calls import signed_call

OPERATORS = ("north", "south")
URLS = tuple(f"https://{each}.test" for each in OPERATORS)


class Decryptors:
    """Two services, reached as a server reaches them, but for the sockets."""

    def __init__(self, folder):
        self.folder, self.services, self.away = folder, {}, set()
        self.keys = {each: OwnFiles(folder / each, "decryptor").identity() for each in OPERATORS}

    def begin(self, server, devices, **settings):
        public = server.services.signer.published()[-1].public_key
        peers = tuple(text(device.key.public_key().public_bytes_raw()) for device in devices)
        for each in OPERATORS:
            own = DecryptorSettings(
                operator=each, server_keys=(text(public),), peers=peers, folder=str(self.folder / each), **settings
            )
            self.services[each] = DecryptorService(own, self.keys[each], Book(self.folder / each), server.clock)

    async def __call__(self, request):
        operator = request.url.host.partition(".")[0]
        if operator in self.away:
            raise httpx.ConnectError("away")
        inside = httpx.ASGITransport(create(self.services[operator]))
        return await inside.handle_async_request(request)

    def public(self, operator):
        return self.keys[operator].public_key().public_bytes_raw()

    def section(self, **more):
        named = ", ".join(
            f'{{name="{each}", operator="{each}", url="{url}", key="{text(self.public(each))}"}}'
            for each, url in zip(OPERATORS, URLS, strict=True)
        )
        others = "".join(f", {name}={json.dumps(value)}" for name, value in more.items())
        return (
            'secure_aggregation={protocol="oneshot-seeds", maximum_cohort=9, max_weight=300.0, phase_deadline=50.0, '
            f"decryptors=[{named}]{others}}}"
        )


def text(key):
    return base64.b64encode(key).decode()


@asynccontextmanager
async def federation(folder, monkeypatch, clients=5, *, section=None, **settings):
    """Yield a server, its decryptors, and what its clients will report."""
    decryptors = Decryptors(folder)

    @asynccontextmanager
    async def client(_self):
        async with httpx.AsyncClient(transport=httpx.MockTransport(decryptors)) as http:
            yield http

    monkeypatch.setattr(decryptor_calls.DecryptorCalls, "_client", client)
    monkeypatch.setattr("hansa.server.decrypting._AGAIN", 0.05)
    async with deployed(folder, decryptor_urls=URLS, round_deadline=100.0) as server:
        devices = await started(server, clients, section or decryptors.section())
        decryptors.begin(server, devices, **settings)
        yield server, decryptors, devices


async def parts_of(server, decryptors, devices, attempt=1, **demands):
    assigned = [await _assigned(device, attempt) for device in devices]
    code = await code_for(server, assigned[0])
    return [
        begin(server, decryptors, device, each, vector_of(code, each.number), **demands)
        for device, each in zip(devices, assigned, strict=True)
    ]


def begin(server, decryptors, device, assigned, vector, **demands):
    own = device.key.public_key().public_bytes_raw()
    policy = ClientPolicy(
        server_key=server.services.signer.published()[-1].public_key, pinned=frozenset({own}),
        decryptors={each: decryptors.public(each) for each in OPERATORS}, **demands,
    )  # fmt: skip
    given = Contribution(bytes.fromhex(assigned.plan_sha256), bytes.fromhex(assigned.model_sha256), vector)
    machine, step = ReportingClient.start(
        assigned.secure_sum, signer=device.key, identity=own, policy=policy, given=given, random=secrets.token_bytes
    )
    return Part(device, assigned, machine, vector, step.send[0].message)


async def report(parts):
    for part in parts:
        answer = await part.device.put(part.assigned.id, part.reply)
        assert answer.status_code == 200, answer.text


@pytest.fixture
def sums(monkeypatch):
    seen, close_sum = [], closing.close_sum

    async def seeing(*args, totals, **more):
        seen.extend([list(map(int, each)) for each in total] for total, _ in totals)
        return await close_sum(*args, totals=totals, **more)

    monkeypatch.setattr(closing, "close_sum", seeing)
    return seen


def test_all_report_and_the_sum_is_the_plain_one(tmp_path, monkeypatch, sums):
    async def work():
        async with federation(tmp_path, monkeypatch) as (server, decryptors, devices):
            parts = await parts_of(server, decryptors, devices)
            await report(parts)
            assert await over(server, parts[0]) == "closed"
            assert sums == [plain_sum(await code_for(server, parts[0].assigned), parts)]
            for part in parts:
                told = await part.device.check_in(reported=part.assigned.id)
                assert told.outcome == messages.OUTCOME_INCLUDED
                assert refusal(await part.call(seen=0)) == "HANSA-REPORT-UNEXPECTED"  # nothing is left of the sum
            await swept(server, parts[0])

    run_async(work())


def test_who_does_not_report_costs_nothing_and_is_late_afterwards(tmp_path, monkeypatch, sums):
    async def work():
        async with federation(tmp_path, monkeypatch) as (server, decryptors, devices):
            parts = await parts_of(server, decryptors, devices)
            decryptors.away.add("south")
            await report(parts[:4])
            server.clock.time += 101.0
            for _ in range(500):
                if (await server.round(parts[0].assigned.id)).state == "aggregating":
                    break
                await asyncio.sleep(0.01)
            late = await parts[4].device.put(parts[4].assigned.id, parts[4].reply)
            assert (late.status_code, late.json()["verdict"]) == (200, "VERDICT_LATE")
            decryptors.away.clear()
            assert await over(server, parts[0]) == "closed"
            assert sums == [plain_sum(await code_for(server, parts[0].assigned), parts[:4])]
            told = await parts[4].device.check_in(reported=parts[4].assigned.id)
            assert told.outcome == messages.OUTCOME_NOT_INCLUDED

    run_async(work())


def test_a_report_that_a_decryptor_cannot_open_is_left_out_and_refused(tmp_path, monkeypatch, sums):
    async def work():
        async with federation(tmp_path, monkeypatch) as (server, decryptors, devices):
            parts = await parts_of(server, decryptors, devices)
            bad = parts[1]
            whole = Report.decode(bad.reply, bad.machine.task_hash)
            seeds = whole.seeds[:80] + bytes(80)
            fields = keys.u32(bad.position), content_of(bad.reply), seeds
            signature = keys.sign(bad.device.key, "report", bad.machine.task_hash, *fields)
            bad.reply = replace(whole, seeds=seeds, signature=signature).encode()
            await report(parts)
            assert await over(server, parts[0]) == "closed"
            assert sums == [plain_sum(await code_for(server, parts[0].assigned), [parts[0], *parts[2:]])]
            told = await bad.device.check_in(reported=bad.assigned.id)
            assert told.outcome == messages.OUTCOME_NOT_INCLUDED

    run_async(work())


def test_the_server_forgets_its_machines_between_all_that_happens(tmp_path, monkeypatch, sums):
    async def work():
        async with federation(tmp_path, monkeypatch) as (server, decryptors, devices):
            parts = await parts_of(server, decryptors, devices)
            decryptors.away |= set(OPERATORS)
            for part in parts:
                server.services.sums.drop(key_of(part))
                await report([part])
            for operator in OPERATORS:
                server.services.sums.drop(key_of(parts[0]))
                decryptors.away.discard(operator)
                await asyncio.sleep(0.2)
            assert await over(server, parts[0]) == "closed"
            assert sums == [plain_sum(await code_for(server, parts[0].assigned), parts)]

    run_async(work())


def test_without_a_decryptor_nothing_is_announced_and_the_round_is_given_up(tmp_path, monkeypatch):
    async def work():
        async with federation(tmp_path, monkeypatch) as (server, decryptors, devices):
            decryptors.away.add("north")
            sums = server.services.sums
            for _ in range(1000):
                if any(each.trouble for round_ in sums.held.values() for each in round_.sums):
                    break
                await asyncio.sleep(0.01)
            assert not (await devices[0].check_in()).HasField("assignment")
            server.clock.time += 51.0
            for _ in range(300):
                if events := await server.events("round.abandoned"):
                    break
                await asyncio.sleep(0.02)
            assert "the decryptors do not stand ready" in events[0].detail["why"]
            assert "'north' cannot be reached" in events[0].detail["why"]

    run_async(work())


def test_a_decryptor_with_a_higher_minimum_refuses_and_the_operator_learns_who(tmp_path, monkeypatch):
    async def work():
        async with federation(tmp_path, monkeypatch, minimum_survivors=4) as (server, _, _):
            for _ in range(300):
                if events := await server.events("round.abandoned"):
                    break
                await asyncio.sleep(0.02)
            assert "refuses, with HANSA-SECAGG-REFUSED" in events[0].detail["why"]

    run_async(work())


def test_groups_have_a_sum_each_from_the_same_decryptors(tmp_path, monkeypatch, sums):
    async def work():
        section = Decryptors(tmp_path).section(group_size=3)
        async with federation(tmp_path, monkeypatch, 7, section=section) as (server, decryptors, devices):
            parts = await parts_of(server, decryptors, devices)
            tasks = {}
            for part in parts:
                tasks.setdefault(part.machine.task_hash, []).append(part)
            await report(parts)
            assert await over(server, parts[0]) == "closed"
            code = await code_for(server, parts[0].assigned)
            assert sorted(map(len, tasks.values())) == [3, 4]
            assert sorted(sums) == sorted(plain_sum(code, group) for group in tasks.values())

    run_async(work())


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda text: text.replace(URLS[1], "https://elsewhere.test"), "decryptors.1.url"),
        (lambda text: text.replace('", key="', '", key="x'), "decryptors.0.key"),
    ],
)
def test_a_plan_names_decryptors_that_the_server_calls_by_keys_that_are_keys(tmp_path, change, path):
    async def work():
        async with deployed(tmp_path, decryptor_urls=URLS) as server:
            with pytest.raises(PlanError) as caught:
                await server.submit(change(Decryptors(tmp_path).section()))
            assert f"secure_aggregation.{path}" in {each.path for each in caught.value.problems}

    run_async(work())


def test_calls_that_no_known_server_signed_are_refused(tmp_path, monkeypatch):
    async def work():
        async with federation(tmp_path, monkeypatch) as (server, decryptors, _):
            transport = httpx.MockTransport(decryptors)
            async with httpx.AsyncClient(transport=transport) as http:
                for header, code in (({}, "HANSA-AUTH-MISSING"), (signed_by_another(server), "HANSA-AUTH-SIGNATURE")):
                    answer = await http.post(f"{URLS[0]}/v1/keys", content=bytes(32), headers=header)
                    assert answer.json()["error"]["code"] == code
                assert (await http.get(f"{URLS[0]}/healthz")).json() == {"status": "alive"}
                assert (await http.get(f"{URLS[0]}/readyz")).json()["operator"] == "north"
                signer = server.services.sums.decrypting.signer
                for body, status, code in (
                    (bytes(70_000), 413, "HANSA-REQUEST-TOO-LARGE"), (bytes(33), 401, "HANSA-AUTH-SIGNATURE"),
                ):  # fmt: skip
                    signed = body if len(body) > 33 else bytes(32)
                    headers = signed_call(signer, "/v1/keys", signed, server.clock.now())
                    answer = await http.post(f"{URLS[0]}/v1/keys", content=body, headers=headers)
                    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
                headers["Content-Digest"] = "none"
                answer = await http.post(f"{URLS[0]}/v1/keys", content=bytes(32), headers=headers)
                assert answer.json()["error"]["code"] == "HANSA-REQUEST-INVALID"

    def signed_by_another(server):
        return signed_call(Ed25519PrivateKey.generate(), "/v1/keys", bytes(32), server.clock.now())

    run_async(work())


def prepared_before(monkeypatch, count):
    """Let so many sums be prepared with a record that cannot be read, as an older version wrote it."""
    encode, left = Prepared.encode, [None] * count

    def as_before(prepared):
        if not left:
            return encode(prepared)
        left.pop()
        parts = zip(prepared.keys, prepared.signatures, strict=True)
        return b"".join(prefixed(each.operator.encode(), each.identity, each.sealing, made) for each, made in parts)

    monkeypatch.setattr(Prepared, "encode", as_before)


def test_a_sum_whose_record_cannot_be_read_is_given_up_and_its_run_goes_on(tmp_path, monkeypatch):
    async def work():
        prepared_before(monkeypatch, 1)
        async with federation(tmp_path, monkeypatch) as (server, decryptors, devices):
            parts = await parts_of(server, decryptors, devices)
            server.services.sums.drop(key_of(parts[0]))
            for _ in range(500):
                if events := [*await server.events("round.abandoned"), *await server.events("run.paused")]:
                    break
                await asyncio.sleep(0.02)
            assert [event.kind for event in events] == ["round.abandoned"]
            assert "records are missing or damaged" in events[0].detail["why"]

    run_async(work())


def test_of_two_groups_one_whose_record_cannot_be_read_is_left_out(tmp_path, monkeypatch, sums):
    async def work():
        prepared_before(monkeypatch, 1)
        section = Decryptors(tmp_path).section(group_size=3)
        async with federation(tmp_path, monkeypatch, 7, section=section) as (server, decryptors, devices):
            parts = await parts_of(server, decryptors, devices)
            server.services.sums.drop(key_of(parts[0]))
            tasks = {}
            for part in parts:
                tasks.setdefault(part.machine.task_hash, []).append(part)
                await part.device.put(part.assigned.id, part.reply)
            assert await over(server, parts[0]) == "closed"
            code = await code_for(server, parts[0].assigned)
            (found,) = sums
            assert found in [plain_sum(code, group) for group in tasks.values()]

    run_async(work())
