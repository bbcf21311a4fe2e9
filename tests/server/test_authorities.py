"""``registrar = "authority"`` on the real server, with an authority in this process: what it holds up and what not."""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import pytest
from tests.server import test_decryptors as with_decryptors
from tests.server.by_hand import deployed, run_async
from tests.server.summing import begun, code_for, key_of, over, phase, plain_sum, started, swept
from tests.server.test_decryptors import Decryptors, parts_of, report, sums, text

from hansa.authority.app import create
from hansa.authority.book import Book, Drawn
from hansa.authority.service import AuthorityService
from hansa.authority.settings import AuthoritySettings
from hansa.authority.vouched import Vouched
from hansa.core.errors import PlanError, RefusedError
from hansa.secagg.beacon import signed_beacon
from hansa.secagg.encoding import to_bitmap
from hansa.secagg.keys import sign
from hansa.server import authority_calls, decryptor_calls
from hansa.serving.own_files import OwnFiles
from hansa.wire.generated import federation_pb2 as messages

__all__ = ["sums"]

URL = "https://authority.test"


class Notary:
    """An authority, reached as a server reaches it, but for the sockets."""

    def __init__(self, folder):
        self.own = OwnFiles(folder / "authority", "authority")
        self.key, self.vouched = self.own.identity(), Vouched(self.own)
        self.away, self.calls, self.forged = False, 0, b""
        self.service = None

    @property
    def public(self):
        return self.key.public_key().public_bytes_raw()

    def begin(self, server, devices, **settings):
        for device in devices:
            self.vouched.add(text(device.key.public_key().public_bytes_raw()))
        server_key = text(server.services.signer.published()[-1].public_key)
        own = AuthoritySettings(operator="notary", server_keys=(server_key,), folder=str(self.own.place), **settings)
        self.service = AuthorityService(own, self.key, self.vouched, Book(self.own.place), server.clock)

    async def __call__(self, request):
        self.calls += 1
        if self.away or self.service is None:
            raise httpx.ConnectError("away") from ConnectionRefusedError(errno.ECONNREFUSED, "away")
        if self.forged:
            return httpx.Response(200, stream=httpx.ByteStream(self.forged))
        return await httpx.ASGITransport(create(self.service)).handle_async_request(request)

    @property
    def table(self):
        return f'registrar="authority", authority={{url="{URL}", operator="notary", key="{text(self.public)}"}}'

    @property
    def section(self):
        return f"secure_aggregation={{maximum_cohort=5, max_weight=300.0, phase_deadline=50.0, {self.table}}}"

    @property
    def demands(self):
        return {"registrar": "authority", "authority_key": self.public}


def reached(monkeypatch, calls, handler):
    @asynccontextmanager
    async def client(_self):
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
            yield http

    monkeypatch.setattr(calls, "_client", client)


@asynccontextmanager
async def federation(folder, monkeypatch, clients=4, *, listed=None, away=False, **settings):
    """Yield a server, its authority, and clients, of which the first ``listed`` are on the list; all by default."""
    notary = Notary(folder)
    notary.away = away
    reached(monkeypatch, authority_calls.AuthorityCalls, notary)
    monkeypatch.setattr("hansa.server.decrypting._AGAIN", 0.05)
    async with deployed(folder, authority_urls=(URL,), round_deadline=100.0) as server:
        devices = await started(server, clients, notary.section)
        notary.begin(server, devices[:listed], **settings)
        yield server, notary, devices


async def through(server, parts):
    for last in (False, False, False, False, True):
        await phase(parts, last=last)
    return await over(server, parts[0])


async def abandoned(server):
    for _ in range(500):
        if events := await server.events("round.abandoned"):
            return events[0].detail["why"]
        await asyncio.sleep(0.02)
    raise TimeoutError("no round was abandoned")


async def attempt_of(device):
    """Return the number of the attempt that a client is asked to take part in, once it is."""
    for _ in range(500):
        answer = await device.check_in()
        if answer.HasField("assignment"):
            return messages.Assignment.FromString(answer.assignment.assignment).id.attempt
        await asyncio.sleep(0.01)
    raise TimeoutError("nobody is asked")


def test_the_authority_vouches_and_the_sum_is_the_plain_one(tmp_path, monkeypatch, sums):
    async def work():
        async with federation(tmp_path, monkeypatch) as (server, notary, devices):
            parts = await begun(server, devices, **notary.demands)
            assert notary.calls >= 1
            assert await through(server, parts) == "closed"
            assert sums == [plain_sum(await code_for(server, parts[0].assigned), parts)]
            await swept(server, parts[0])

    run_async(work())


def test_a_server_that_forgets_its_machines_needs_the_authority_no_more_once_it_has_vouched(
    tmp_path, monkeypatch, sums
):
    async def work():
        async with federation(tmp_path, monkeypatch) as (server, notary, devices):
            parts = await begun(server, devices, **notary.demands)
            notary.away = True
            for last in (False, False, False, False, True):
                server.services.sums.drop(key_of(parts[0]))
                await phase(parts, last=last)
            assert await over(server, parts[0]) == "closed"
            assert sums == [plain_sum(await code_for(server, parts[0].assigned), parts)]

    run_async(work())


def test_a_client_that_is_not_vouched_for_is_in_no_sum_and_nobody_is_told_of_one(tmp_path, monkeypatch, sums):
    async def work():
        async with federation(tmp_path, monkeypatch, listed=3) as (server, notary, devices):
            why = await abandoned(server)
            assert "the authority does not vouch for the roster" in why
            assert "'notary': It refuses, with HANSA-AUTHORITY-STRANGER" in why
            assert "Ask its operator" in why
            assert "suspend who is not on the list" in why
            assert text(devices[3].key.public_key().public_bytes_raw()) not in why
            for device in devices:
                assert not (await device.check_in()).HasField("assignment")
            assert sums == []
            notary.vouched.add(text(devices[3].key.public_key().public_bytes_raw()))
            server.clock.time += 61.0
            parts = await begun(server, devices, await attempt_of(devices[0]), **notary.demands)
            assert await through(server, parts) == "closed"
            assert sums == [plain_sum(await code_for(server, parts[0].assigned), parts)]

    run_async(work())


def test_an_authority_that_is_away_is_asked_again_and_the_round_is_given_up_in_time(tmp_path, monkeypatch):
    async def work():
        async with federation(tmp_path, monkeypatch, away=True) as (server, notary, devices):
            for _ in range(500):
                if notary.calls >= 3:
                    break
                await asyncio.sleep(0.02)
            assert notary.calls >= 3
            assert not (await devices[0].check_in()).HasField("assignment")
            (waits,) = await server.events("round.waiting")
            assert "'notary' cannot be reached: connection refused" in waits.detail["why"]
            server.clock.time += 51.0
            why = await abandoned(server)
            assert "the authority does not vouch for the roster" in why
            assert "'notary' cannot be reached: connection refused" in why
            notary.away = False
            server.clock.time += 61.0
            assert await attempt_of(devices[0]) > 1

    run_async(work())


def test_an_authority_that_is_not_listed_any_more_is_not_called_for_a_plan_that_was_taken_before(tmp_path, monkeypatch):
    async def work():
        async with federation(tmp_path, monkeypatch, away=True) as (_, notary, _):
            pass
        notary.away, before = False, notary.calls
        async with deployed(tmp_path) as server:
            assert "'notary': The server's administrator does not list its url any more" in await abandoned(server)
            assert notary.calls == before

    run_async(work())


def test_of_a_cohort_in_groups_only_the_group_with_a_stranger_is_given_up(tmp_path, monkeypatch, sums):
    section = Notary.section.fget
    in_groups = property(lambda notary: section(notary).replace("maximum_cohort=5", "maximum_cohort=9, group_size=3"))
    monkeypatch.setattr(Notary, "section", in_groups)

    async def work():
        async with federation(tmp_path, monkeypatch, 6, listed=5) as (server, notary, devices):
            asked = []
            for device in devices * 50:
                if (await device.check_in()).HasField("assignment") and device not in asked:
                    asked.append(device)
                await asyncio.sleep(0.01)
            assert len(asked) == 3
            assert devices[5] not in asked
            parts = await begun(server, asked, **notary.demands)
            assert await through(server, parts) == "closed"
            assert sums == [plain_sum(await code_for(server, parts[0].assigned), parts)]

    run_async(work())


def test_a_higher_minimum_of_the_authority_holds(tmp_path, monkeypatch):
    async def work():
        async with federation(tmp_path, monkeypatch, minimum_cohort=5) as (server, _, _):
            assert "HANSA-AUTHORITY-FEW" in await abandoned(server)

    run_async(work())


def test_an_answer_that_is_not_by_the_plans_key_is_given_up(tmp_path, monkeypatch):
    async def work():
        notary = Notary(tmp_path)
        reached(monkeypatch, authority_calls.AuthorityCalls, notary)
        async with deployed(tmp_path, authority_urls=(URL,), round_deadline=100.0) as server:
            devices = await started(server, 4, notary.section)
            notary.forged = bytes(64)
            notary.begin(server, devices)
            assert "not by the key that the plan names" in await abandoned(server)

    run_async(work())


def test_a_server_that_signs_the_roster_itself_is_refused_by_every_client(tmp_path, monkeypatch):
    def forging(by):
        async def vouched(_self, authority, task, identities):
            return sign(by, "roster", *task.registered)

        return vouched

    async def work():
        async with federation(tmp_path, monkeypatch, listed=3) as (server, notary, devices):
            server_key = server.services.sums.decrypting.signer
            monkeypatch.setattr(authority_calls.AuthorityCalls, "vouched", forging(server_key))
            server.clock.time += 61.0
            attempt = await attempt_of(devices[0])
            with pytest.raises(RefusedError, match="not signed by its registrar"):
                await begun(server, devices, attempt, **notary.demands)
            own = {**notary.demands, "authority_key": server.services.signer.published()[-1].public_key}
            with pytest.raises(RefusedError, match="authority_key is the server's own key"):
                await begun(server, devices, attempt, **own)

    run_async(work())


def test_a_signature_of_an_earlier_round_serves_no_other_task(tmp_path, monkeypatch):
    async def work():
        kept = []
        vouched = authority_calls.AuthorityCalls.vouched

        async def keeping(self, authority, task, identities):
            if kept:
                return kept[0]  # what the server kept, after a client was taken off the list
            kept.append(await vouched(self, authority, task, identities))
            return kept[0]

        monkeypatch.setattr(authority_calls.AuthorityCalls, "vouched", keeping)
        async with federation(tmp_path, monkeypatch) as (server, notary, devices):
            parts = await begun(server, devices, **notary.demands)
            assert await through(server, parts) == "closed"
            notary.vouched.remove(text(devices[0].key.public_key().public_bytes_raw()))
            for part in parts:
                await part.device.check_in(reported=part.assigned.id)
            await attempt_of(devices[1])
            with pytest.raises(RefusedError, match="not signed by its registrar"):
                await begun(server, devices, **notary.demands)

    run_async(work())


def test_with_decryptors_the_authority_is_asked_with_their_keys_and_all_of_them_believe_it(tmp_path, monkeypatch, sums):
    async def work():
        notary, decryptors = Notary(tmp_path), Decryptors(tmp_path)
        reached(monkeypatch, authority_calls.AuthorityCalls, notary)
        reached(monkeypatch, decryptor_calls.DecryptorCalls, decryptors)
        monkeypatch.setattr("hansa.server.decrypting._AGAIN", 0.05)
        section = decryptors.section()[:-1] + f", {notary.table}}}"
        urls = {"decryptor_urls": with_decryptors.URLS, "authority_urls": (URL,)}
        async with deployed(tmp_path, round_deadline=100.0, **urls) as server:
            devices = await started(server, 5, section)
            notary.begin(server, devices)
            decryptors.begin(server, [], registrar="authority", authority_key=text(notary.public))
            parts = await parts_of(server, decryptors, devices, **notary.demands)
            await report(parts)
            assert await over(server, parts[0]) == "closed"
            assert sums == [plain_sum(await code_for(server, parts[0].assigned), parts)]

    run_async(work())


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda section: section.replace(URL, "https://elsewhere.test"), "authority.url"),
        (lambda section: section.replace('key="', 'key="x'), "authority.key"),
        (lambda section: section.partition(", authority=")[0] + "}", "registrar"),
    ],
)
def test_a_plan_names_an_authority_that_the_server_calls_by_a_key_that_is_one(tmp_path, change, path):
    async def work():
        async with deployed(tmp_path, authority_urls=(URL,)) as server:
            with pytest.raises(PlanError) as caught:
                await server.submit(change(Notary(tmp_path).section))
            assert f"secure_aggregation.{path}" in {each.path for each in caught.value.problems}

    run_async(work())


def test_a_plan_whose_authority_has_a_key_of_the_server_is_refused_when_it_is_submitted(tmp_path):
    async def work():
        async with deployed(tmp_path, authority_urls=(URL,)) as server:
            await server.services.signer.rotate()
            notary, published = Notary(tmp_path), server.services.signer.published()
            assert len(published) == 2
            for each in published:
                with pytest.raises(PlanError) as caught:
                    await server.submit(notary.section.replace(text(notary.public), text(each.public_key)))
                found = {each.path: each.message for each in caught.value.problems}
                assert "is a key of this server" in found["secure_aggregation.authority.key"]

    run_async(work())


def test_an_authority_with_another_key_than_the_plan_names_is_told_as_the_reason(tmp_path, monkeypatch):
    async def work():
        notary, other = Notary(tmp_path), Notary(tmp_path / "other")
        reached(monkeypatch, authority_calls.AuthorityCalls, notary)
        async with deployed(tmp_path, authority_urls=(URL,), round_deadline=100.0) as server:
            devices = await started(server, 4, other.section)
            notary.begin(server, devices)
            why = await abandoned(server)
            assert "'notary': Its signature over the roster is not by the key that the plan names" in why
            assert "`hansa authority key` prints there" in why

    run_async(work())


@pytest.fixture
def drawn(monkeypatch):
    """Plans of ten clients whose graph the authority draws, against a server that lies."""
    sparse = 'protocol="secagg-plus", server="malicious", beacon="authority", expected_dropout=0.0'
    section = Notary.section.fget
    changed = property(lambda notary: section(notary).replace("maximum_cohort=5", f"maximum_cohort=10, {sparse}"))
    monkeypatch.setattr(Notary, "section", changed)


async def said(parts):
    """Let all say what they have, and hear nothing."""
    for each in parts:
        assert (await each.say()).status_code == 200


async def waiting(server, match):
    for _ in range(500):
        if found := [
            each.detail["why"] for each in await server.events("round.waiting") if match in each.detail["why"]
        ]:
            return found
        await asyncio.sleep(0.02)
    raise TimeoutError("nobody waits")


def test_the_authority_draws_the_graph_and_clients_that_suspect_the_server_give_their_sum(
    tmp_path, monkeypatch, sums, drawn
):
    async def work():
        async with federation(tmp_path, monkeypatch, 10) as (server, notary, devices):
            parts = await begun(server, devices, **notary.demands)
            task = parts[0].machine.task
            assert (task.protocol, task.neighbours, task.beacon) == ("secagg-plus", 8, "authority")
            assert await through(server, parts) == "closed"
            assert sums == [plain_sum(await code_for(server, parts[0].assigned), parts)]
            assert notary.service.book.drawn(task.hash) is not None
            await swept(server, parts[0])

    run_async(work())


def test_a_server_that_forgets_what_it_knows_around_the_draw_asks_again_and_goes_on(tmp_path, monkeypatch, sums, drawn):
    async def work():
        async with federation(tmp_path, monkeypatch, 10) as (server, notary, devices):
            parts = await begun(server, devices, **notary.demands)
            notary.away = True
            await said(parts)
            await waiting(server, "'notary' cannot be reached")
            assert (await parts[0].say()).status_code == 200, "said once more while the authority is asked"
            server.services.sums.drop(key_of(parts[0]))
            notary.away = False
            for each in parts:
                await each.hear()
            server.services.sums.drop(key_of(parts[0]))
            notary.away = True
            for last in (False, False, False, True):
                await phase(parts, last=last)
            assert await over(server, parts[0]) == "closed"
            assert sums == [plain_sum(await code_for(server, parts[0].assigned), parts)]

    run_async(work())


def test_an_authority_that_draws_nothing_in_time_ends_the_attempt_and_nothing_was_shared(tmp_path, monkeypatch, drawn):
    async def work():
        async with federation(tmp_path, monkeypatch, 10) as (server, notary, devices):
            parts = await begun(server, devices, **notary.demands)
            notary.away = True
            await said(parts)
            await waiting(server, "'notary' cannot be reached")
            server.clock.time += 51.0
            why = await abandoned(server)
            assert "the authority has drawn no beacon" in why
            assert "cannot be reached: connection refused" in why
            notary.away = False
            server.clock.time += 61.0
            assert await attempt_of(devices[0]) == 2

    run_async(work())


@pytest.mark.parametrize("way", ["another value", "another task's", "no message"])
def test_an_answer_that_is_no_beacon_of_the_authority_for_this_sum_is_given_up(tmp_path, monkeypatch, drawn, way):
    async def work():
        async with federation(tmp_path, monkeypatch, 10) as (server, notary, devices):
            parts = await begun(server, devices, **notary.demands)
            task, everybody = parts[0].machine.task, to_bitmap(range(10), 10)
            other = replace(task, round=task.round + 1)
            notary.forged = {
                "another value": signed_beacon(parts[0].device.key, task, everybody, b"v" * 32).encode(),
                "another task's": signed_beacon(notary.key, other, everybody, b"v" * 32).encode(),
                "no message": bytes(144),
            }[way]
            await said(parts)
            why = await abandoned(server)
            assert "the authority has drawn no beacon" in why
            assert "HANSA-SECAGG-" in why

    run_async(work())


def test_an_older_copy_of_the_servers_records_gets_no_second_beacon_for_a_task(tmp_path, monkeypatch, drawn):
    async def work():
        async with federation(tmp_path, monkeypatch, 10) as (server, notary, devices):
            parts = await begun(server, devices, **notary.demands)
            book, task = notary.service.book, parts[0].machine.task
            others = Drawn(server.services.signer.published()[-1].public_key, b"other clients", bytes(32))
            book.add(task.hash, others, task.report_id, task.attempt)
            await said(parts)
            assert "HANSA-AUTHORITY-DRAWN" in await abandoned(server)

    run_async(work())
