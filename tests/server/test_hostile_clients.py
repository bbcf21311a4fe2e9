"""What clients that are enrolled, and peers that are not, cannot do to the server or to others."""

from __future__ import annotations

import asyncio
import hashlib

import httpx
import numpy as np
import pytest
from tests.server.by_hand import Device, code_of, deployed, run_async

from hansa.algorithms.prologue import statistics_layout
from hansa.core.errors import StoreError
from hansa.core.nouns import Batch
from hansa.server import closing
from hansa.server.app import create
from hansa.server.client_api import ClientApi
from hansa.server.coordinator import Coordinator
from hansa.server.following import Follower
from hansa.server.rounds_at_rest import update_prefix
from hansa.store.enrolments import Enrolments
from hansa.store.records import RoundKey
from hansa.wire.generated import federation_pb2 as messages
from hansa.wire.updates import encode_tallies, encode_update

PLAN = "evaluation.federated=false", "features.label=disease", "features.scaling=none", "rounds=3"


async def _asked(server, count=2, plan=PLAN):
    devices = [await server.device(name) for name in "abcd"[:count]]
    for device in devices:
        await device.check_in()
    await server.submit(*plan)
    return list(zip(devices, await asyncio.gather(*(device.assignment() for device in devices)), strict=True))


def test_an_acknowledged_update_stays_where_a_replica_that_is_behind_gets_another_call(tmp_path, monkeypatch):
    async def work():
        async with deployed(tmp_path) as server:
            (device, assigned), _ = await _asked(server)
            key = RoundKey(assigned.id.run, "training", assigned.id.round, assigned.id.attempt)
            standing = server.services.board.rounds[key]
            open_ = dict(standing.open)
            update = await server.update(assigned, 1.0)
            await device.put(assigned.id, update)
            kept = await server.services.blobs.names(update_prefix(key, device.id))
            assert len(kept) == 1

            removed = []
            monkeypatch.setattr(type(server.services.blobs), "delete", lambda _, name: removed.append(name))
            standing.open.update(open_)  # as on a replica that has not heard of the report yet
            assert (await device.put(assigned.id, update)).json()["verdict"] == "VERDICT_ACCEPTED"
            other = await device.put(assigned.id, await server.update(assigned, 2.0))
            assert code_of(other) == "HANSA-REPORT-ANSWERED"
            assert await server.services.blobs.names(update_prefix(key, device.id)) == kept
            assert removed == []

    run_async(work())


def test_a_part_that_does_not_come_gives_up_its_room_and_may_come_again(tmp_path, monkeypatch):
    monkeypatch.setattr("hansa.serving.bodies._STALL", 0.05)
    monkeypatch.setattr("hansa.serving.bodies._SLOWEST", 1e9)

    async def work():
        async with deployed(tmp_path, uploads_in_memory_bytes=1) as server:
            (device, assigned), (other, asked) = await _asked(server)
            update = await server.update(assigned, 1.0)

            async def stalled():
                yield update[:10]
                await asyncio.Event().wait()

            path = f"/v1/updates/{assigned.id.run}/training/{assigned.id.round}/{assigned.id.attempt}"
            headers = {"Authorization": device.header("PUT", path, update), "Content-Length": str(len(update))}
            slow = asyncio.create_task(device.http.put(path, content=stalled(), headers=headers))
            await asyncio.sleep(0.01)
            answers = await asyncio.gather(slow, other.put(asked.id, await server.update(asked, 1.0)))
            assert code_of(answers[0]) == "HANSA-REQUEST-SLOW"
            assert answers[1].json()["verdict"] == "VERDICT_ACCEPTED"  # it waited for its turn, and had it
            assert (await device.put(assigned.id, update)).json()["verdict"] == "VERDICT_ACCEPTED"

    run_async(work())


def test_one_client_takes_not_all_the_room_that_others_updates_need(tmp_path):
    async def work():
        async with deployed(tmp_path, uploads_in_memory_bytes=4096) as server:
            (device, assigned), (other, asked) = await _asked(server)
            path = f"/v1/updates/{assigned.id.run}/training/{assigned.id.round}/{assigned.id.attempt}"
            begun = []

            async def stalled():
                begun.append(1)
                yield b"0"
                await asyncio.Event().wait()

            def part(number):
                headers = {"Authorization": device.header("PUT", path, b"%d" % number), "Content-Length": "1024"}
                return asyncio.create_task(device.http.put(path, content=stalled(), headers=headers))

            parts = [part(number) for number in range(5)]
            refused, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            while len(refused) < 3:
                refused, _ = await asyncio.wait(parts, timeout=0.01)
            assert {code_of(each.result()) for each in refused} == {"HANSA-SERVER-BUSY"}
            assert len(begun) == 2
            answer = await other.put(asked.id, await server.update(asked, 1.0))
            assert answer.json()["verdict"] == "VERDICT_ACCEPTED"
            for each in parts:
                each.cancel()
            await asyncio.wait(parts)
            assert (await device.put(assigned.id, await server.update(assigned, 1.0))).status_code == 200

    run_async(work())


def _stalled(device, name, size, begun):
    """Return a call by a device's name whose body begins and does not go on."""

    async def body():
        begun.put_nowait(size)
        yield b"0"
        await asyncio.Event().wait()

    path = f"/hansa.v1.Federation/{name}"
    headers = {"Authorization": device.header("POST", path), "Content-Length": str(size)}
    return asyncio.create_task(device.http.post(path, content=body(), headers=headers))


def test_whoever_writes_a_clients_name_holds_two_bodies_of_it_and_hinders_nobody_else(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            device, other = await server.device("a"), await server.device("b")
            begun = asyncio.Queue()
            calls = [_stalled(device, "CheckIn", 1024, begun) for _ in range(5)]
            refused, held = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            while len(refused) < 3:
                refused, held = await asyncio.wait(calls, timeout=0.01)
            assert {code_of(each.result()) for each in refused} == {"HANSA-SERVER-BUSY"}
            assert begun.qsize() == len(held) == 2
            await other.check_in()
            for each in held:
                each.cancel()
            await asyncio.wait(held)
            await device.check_in()

    run_async(work())


def test_large_calls_wait_for_room_in_memory_and_small_ones_do_not(tmp_path):
    async def work():
        async with deployed(tmp_path, uploads_in_memory_bytes=2**18) as server:
            device, other = await server.device("a"), await server.device("b")
            begun = asyncio.Queue()
            held = _stalled(device, "Exchange", 2**18, begun)
            await begun.get()
            waiting = _stalled(other, "Exchange", 2**18 - 1, begun)
            await other.check_in()
            await device.check_in()
            assert begun.empty()
            held.cancel()
            await asyncio.wait([held])
            assert await begun.get() == 2**18 - 1
            waiting.cancel()
            await asyncio.wait([waiting])

    run_async(work())


def test_an_update_comes_in_so_many_parts_at_most(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            (device, assigned), _ = await _asked(server)
            small = {"Content-Range": f"bytes 0-9/{2**30}"}
            answer = await device.put(assigned.id, b"0" * 10, whole=b"", **small)
            assert (answer.status_code, code_of(answer)) == (400, "HANSA-REQUEST-INVALID")
            assert await server.services.blobs.names("updates/") == []

    run_async(work())


def test_no_part_is_kept_of_what_is_larger_than_the_update_that_was_asked_for(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            (device, assigned), (other, its) = await _asked(server)
            part = {"Content-Range": f"bytes 0-{2**20 - 1}/{2**24}"}
            answer = await device.put(assigned.id, bytes(2**20), whole=b"", **part)
            assert (answer.status_code, code_of(answer)) == (400, "HANSA-REPORT-INVALID")
            assert await server.services.blobs.names("updates/") == []
            assert [event.client for event in await server.events("report.refused")] == [device.id]
            assert (await other.put(its.id, await server.update(its))).json()["verdict"] == "VERDICT_ACCEPTED"

    run_async(work())


@pytest.mark.parametrize("run", ["run%00", "..%2f..", "%F0%9F%98%80", "r" * 65])
def test_what_is_no_name_of_a_run_names_nothing(tmp_path, run):
    async def work():
        async with deployed(tmp_path) as server:
            (device, assigned), _ = await _asked(server)
            answer = await device.put(assigned.id, b"0", path=f"/v1/updates/{run}/training/1/1")
            assert answer.status_code == 404

    run_async(work())


def test_a_report_on_what_is_no_name_of_a_run_is_malformed(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")
            named = messages.AssignmentId(run="\0", kind=messages.KIND_TRAINING, round=1, attempt=1)
            answer = await device.call("CheckIn", device.check_in_request(reported=named))
            assert code_of(answer) == "HANSA-REQUEST-INVALID"

    run_async(work())


@pytest.mark.parametrize("version", ["9" * 5000, "1.0\0"])
def test_a_version_that_is_none_is_refused_at_every_call(tmp_path, version):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")
            device.version = version
            assert code_of(await device.call("CheckIn", device.check_in_request())) == "HANSA-CLIENT-VERSION"
            answer = await device.enrol(await server.invite("b"))
            assert code_of(answer) == "HANSA-CLIENT-VERSION"

    run_async(work())


def test_the_body_of_an_update_is_not_read_before_its_sender_is_known(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")
            device.id = "0" * 24
            read = []

            async def body():
                read.append(1)
                yield b"0" * 1024

            path = "/v1/updates/run-1/training/1/1"
            headers = {"Authorization": device.header("PUT", path)}
            answer = await server.http.put(path, content=body(), headers=headers)
            assert (answer.status_code, code_of(answer), read) == (401, "HANSA-AUTH-UNKNOWN", [])

    run_async(work())


def test_little_is_read_of_a_call_before_its_sender_is_known(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")
            read = []

            async def body():
                for _ in range(64):
                    read.append(2**14)
                    yield bytes(2**14)

            for name, client in (("Enrol", None), ("CheckIn", None), ("CheckIn", "0" * 24), ("CheckIn", device.id)):
                read.clear()
                device.id, path = client, f"/hansa.v1.Federation/{name}"
                headers = {"Authorization": device.header("POST", path)} if client else {}
                answer = await server.http.post(path, content=body(), headers=headers)
                assert answer.status_code in {400, 401, 413, 415}
                assert sum(read) == (2**20 if client and client != "0" * 24 else 9 * 2**14)

    run_async(work())


@pytest.mark.parametrize("path", ["/hansa.v1.Federation/Enrol", "/v1/updates/run-1/training/1/1"])
def test_a_body_that_pauses_for_long_ends(tmp_path, monkeypatch, path):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")
            monkeypatch.setattr("hansa.serving.bodies._IDLE", 0.05)

            async def body():
                yield b"0"
                await asyncio.sleep(10.0)

            method = "PUT" if "updates" in path else "POST"
            headers = {"Authorization": device.header(method, path)}
            answer = await server.http.request(method, path, content=body(), headers=headers)
            assert code_of(answer) == "HANSA-REQUEST-SLOW"

    run_async(work())


def test_a_bug_in_plain_http_is_told_without_a_word_of_it(tmp_path, monkeypatch):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")

            async def broken(*_):
                raise KeyError("a private detail")

            monkeypatch.setattr("hansa.server.transfers.Transfers._is_needed", broken)
            transport = httpx.ASGITransport(create(server.services), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="https://hansa.test") as http:
                device.http = http
                answer = await device.get(f"/v1/jobs/{'0' * 64}")
            assert (answer.status_code, code_of(answer)) == (500, "HANSA-INTERNAL")
            assert "private" not in answer.text

    run_async(work())


def test_signatures_are_remembered_as_long_as_their_clock_lets_them_in(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            device, path = await server.device("a"), "/hansa.v1.Federation/CheckIn"
            request = device.check_in_request()
            ahead = device.header("POST", path, request.SerializeToString(), at=server.clock.now() + 299)
            assert (await device.call("CheckIn", request, header=ahead)).status_code == 200
            await device.check_in()
            seen = server.services.authenticate.seen
            assert sum(map(len, seen.values())) == 2
            server.clock.time += 500
            assert code_of(await device.call("CheckIn", request, header=ahead)) == "HANSA-AUTH-REPLAYED"
            assert sum(map(len, seen.values())) == 1
            server.clock.time += 500
            await device.check_in()
            assert sum(map(len, seen.values())) == 1

    run_async(work())


def test_an_enrolment_is_told_once_however_often_it_is_repeated(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            device, token = Device(server.http, server.clock), await server.invite("a")
            for _ in range(3):
                assert (await device.enrol(token)).status_code == 200
            assert [event.client for event in await server.events("client.enrolled")] == [device.id]

    run_async(work())


def test_a_replica_keeps_nothing_of_runs_that_it_does_not_look_after(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            coordinator = Coordinator(server.services)
            coordinator.contexts["gone"] = object()
            coordinator.failures["gone"], coordinator.resting["gone"] = 1, 0.0
            await coordinator.tick()
            assert (coordinator.contexts, coordinator.failures, coordinator.resting) == ({}, {}, {})

    run_async(work())


@pytest.mark.parametrize("state", ["suspended", "retired"])
def test_a_first_check_in_that_is_under_way_undoes_no_decision_of_the_operator(tmp_path, state):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")
            let_in = await server.services.clients.get(device.id)
            async with server.services.store.transaction() as rows:
                await rows.clients.set_state(device.id, state, 0.0, "the operator says so")
            await ClientApi(server.services)._declared(let_in, device.check_in_request())
            async with server.services.store.reading() as rows:
                assert (await rows.clients.get(device.id)).state == state

    run_async(work())


def test_who_is_retired_stays_so(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")
            async with server.services.store.transaction() as rows:
                for state in ("retired", "active", "suspended"):
                    await rows.clients.set_state(device.id, state, 0.0, "")
                assert (await rows.clients.get(device.id)).state == "retired"

    run_async(work())


def test_a_replica_that_lost_its_lease_as_it_folded_blames_nobody_for_what_another_swept(tmp_path, monkeypatch):
    async def work():
        async with deployed(tmp_path) as server:
            asked = await _asked(server)
            left = []

            async def close(context, round_, reports, **more):
                left.append((context, round_, reports, more["key"]))
                return await closed(context, round_, reports, **more)

            closed = closing.close
            monkeypatch.setattr(closing, "close", close)
            for device, assigned in asked:
                await device.put(assigned.id, await server.update(assigned, 1.0))
            for _ in range(500):
                if await server.events("round.closed") and not await server.services.blobs.names("updates/"):
                    break
                await asyncio.sleep(0.02)
            context, round_, reports, sealing_key = left[0]
            monkeypatch.setattr(type(server.services.keys), "unwrap", lambda *_: sealing_key)
            with pytest.raises(StoreError) as caught:  # another has swept them: the round is looked at anew
                await Coordinator(server.services)._close(context, round_, reports)
            assert caught.value.code == "HANSA-NOT-FOUND"
            assert await server.events("client.suspended") == []

    run_async(work())


def test_what_a_server_wrote_before_it_died_is_not_swept_as_it_comes_back(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            path = server.services.blobs.path(f"models/{'0' * 64}")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"of a round that is about to be closed again")
            server.clock.time = path.stat().st_mtime + 7200.0
            follower = Follower(server.services)
            await follower.start()
            await follower._sweep()
            assert path.exists()
            server.clock.time += 601.0
            await follower._sweep()
            assert not path.exists()

    run_async(work())


def _lanes(layout, weight, count=1):
    return layout.encode_lanes({"count": np.full(1, float(count)), "weight.params": np.full(1, float(weight))}, 1)


async def _send(server, device, assigned, value, weight=1.0, count=1):
    layout = (await server.context(assigned.id.run)).state.layout
    values = np.full((1, layout.size), value, dtype=np.float32)
    return await device.put(assigned.id, encode_update(Batch(values, _lanes(layout, weight, count), layout)))


def test_an_update_that_counts_nobody_is_refused_and_named(tmp_path):
    """Its weight would move the model, and no report of the round would show it."""

    async def work():
        async with deployed(tmp_path) as server:
            (device, assigned), _ = await _asked(server)
            answer = await _send(server, device, assigned, 1e-3, count=0)
            assert (answer.status_code, code_of(answer)) == (400, "HANSA-REPORT-INVALID")
            assert len(await server.events("report.refused")) == 1

    run_async(work())


WEIGHED = 'transforms=[{kind="clip",clip_norm=1.0},{kind="weigh-by-size",maximum=300}]'


@pytest.mark.parametrize(
    ("transforms", "value", "weight", "whose"),
    [
        ("transforms=[]", 3.3e38, 1, "its norm"),
        ("transforms=[]", 1e9, 1, "its norm"),
        ("transforms=[]", 0.0, 300, "its weight"),
        ("transforms=[]", 1e-3, 0, "its weight of nothing"),
        ('transforms=[{kind="clip",clip_norm=1.0}]', 1.0, 1, "its norm"),
        (WEIGHED, 0.1, 2**24, "its weight"),
        (WEIGHED, 100.0, 300, "its norm"),
    ],
)
def test_a_client_beyond_the_plans_bounds_is_refused_and_named_and_its_round_goes_on(
    tmp_path, transforms, value, weight, whose
):
    async def work():
        async with deployed(tmp_path) as server:
            (device, assigned), (other, its) = await _asked(server, plan=(*PLAN, transforms))
            answer = await _send(server, device, assigned, value, weight)
            assert (answer.status_code, code_of(answer)) == (400, "HANSA-REPORT-INVALID"), whose
            assert [event.client for event in await server.events("report.refused")] == [device.id]
            heavy = 300 if transforms == WEIGHED else 1
            assert (await _send(server, other, its, 0.1 * heavy, heavy)).json()["verdict"] == "VERDICT_ACCEPTED"

    run_async(work())


def test_where_the_plan_bounds_no_weight_the_servers_setting_does(tmp_path):
    async def work():
        async with deployed(tmp_path, largest_update_weight=300) as server:
            plan = (*PLAN, 'transforms=[{kind="weigh-by-size"}]')
            (device, assigned), (other, its) = await _asked(server, plan=plan)
            answer = await _send(server, device, assigned, 1.0, 301)
            assert (answer.status_code, code_of(answer)) == (400, "HANSA-REPORT-INVALID")
            assert "'weight.params' is above 300" in answer.json()["error"]["found"]
            assert [event.client for event in await server.events("report.refused")] == [device.id]
            assert (await _send(server, other, its, 1.0, 300)).json()["verdict"] == "VERDICT_ACCEPTED"

    run_async(work())


def test_no_client_has_more_examples_in_statistics_than_the_setting_says(tmp_path):
    async def work():
        async with deployed(tmp_path, largest_update_weight=300) as server:
            (device, assigned), (other, its) = await _asked(server, plan=("rounds=3",))
            assert assigned.id.kind == messages.KIND_STATISTICS
            layout = statistics_layout((await server.context(assigned.id.run)).plan.features)
            for each, of, count, expected in ((device, assigned, 301, 400), (other, its, 300, 200)):
                lanes = {lane.name: np.full(1, count if lane.name.startswith("n.") else 0.0) for lane in layout.lanes}
                update = encode_update(Batch(np.zeros((1, 0), dtype=np.float32), layout.encode_lanes(lanes, 1), layout))
                assert (await each.put(of.id, update)).status_code == expected
            assert [event.client for event in await server.events("report.refused")] == [device.id]

    run_async(work())


def test_an_update_that_is_too_large_once_decoded_suspends_its_client(tmp_path):
    async def work():
        async with deployed(tmp_path, largest_update_norm=10.0) as server:
            plan = (*PLAN, 'transforms=[{kind="int8-rotation"}]')
            (device, assigned), (other, its) = await _asked(server, plan=plan)
            context = await server.context(assigned.id.run)
            for each, of, scale in ((device, assigned, 1.0), (other, its, 0.0)):
                form = context.encoded
                values = np.ones((1, *form["values"].shape), dtype=np.int8)
                side = {"scales": np.full((1, *form["side/scales"].shape), scale, dtype=np.float32)}
                update = Batch(values * 127, _lanes(context.state.layout, 1), context.state.layout, side)
                assert (await each.put(of.id, encode_update(update))).json()["verdict"] == "VERDICT_ACCEPTED"
            await asyncio.sleep(0.5)
            assert [event.client for event in await server.events("client.suspended")] == [device.id]

    run_async(work())


def test_a_few_clients_whose_updates_explode_do_not_end_a_run(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "abc"]
            for device in devices:
                await device.check_in()
            run = await server.submit(*PLAN[:-1], "rounds=9", "transforms=[]", wait_for=3)
            for value in (1e-3, 1e-3, 1e-3, 1e6):
                asked = await asyncio.gather(*(device.assignment() for device in devices))
                for position, (device, each) in enumerate(zip(devices, asked, strict=True)):
                    answer = await _send(server, device, each, 1e-3 if position else value)
                    assert answer.json()["verdict"] == "VERDICT_ACCEPTED"
                await asyncio.sleep(0.5)
            async with server.services.store.reading() as rows:
                assert (await rows.runs.get(run)).state == "running"
            assert [event.client for event in await server.events("client.suspended")] == [devices[0].id]

    run_async(work())


def test_a_call_that_is_replayed_elsewhere_does_not_bring_back_a_consent_that_was_withdrawn(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")
            path, body = "/hansa.v1.Federation/CheckIn", device.check_in_request().SerializeToString()
            headers = {"Content-Type": "application/proto", "Authorization": device.header("POST", path, body)}
            assert (await server.http.post(path, content=body, headers=headers)).status_code == 200
            server.clock.time += 1.0
            device.consent = False
            await device.check_in()
            server.services.authenticate.seen.clear()  # as in another replica, or after a restart
            assert (await server.http.post(path, content=body, headers=headers)).status_code == 200
            async with server.services.store.reading() as rows:
                assert not (await rows.clients.get(device.id)).consent
            assert len(await server.events("client.consented")) <= 1

    run_async(work())


def test_who_begins_another_update_keeps_the_one_that_it_sent_last(tmp_path):
    """Another replica may have taken it whole, and be about to record it."""

    async def work():
        async with deployed(tmp_path) as server:
            (device, assigned), _ = await _asked(server)
            key = RoundKey(assigned.id.run, "training", assigned.id.round, assigned.id.attempt)
            digests = []
            for value in (1.0, 2.0, 3.0):
                update = await server.update(assigned, value)
                part = {"Content-Range": f"bytes 0-99/{len(update)}"}
                assert (await device.put(assigned.id, update[:100], whole=update, **part)).status_code == 202
                digests.append(hashlib.sha256(update).hexdigest())
                await asyncio.sleep(0.02)
            kept = {name.split("/")[-2] for name in await server.services.blobs.names(update_prefix(key, device.id))}
            assert kept == set(digests[1:])

    run_async(work())


def test_tallies_beyond_their_metric_are_refused_and_named(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            await server.submit("features.label=disease", "features.scaling=none", "rounds=2")
            asked = await asyncio.gather(*(device.assignment() for device in devices))
            if asked[0].id.kind == messages.KIND_TRAINING:
                for device, each in zip(devices, asked, strict=True):
                    await device.put(each.id, await server.update(each))
                asked = await asyncio.gather(*(device.assignment() for device in devices))
            assert asked[0].id.kind == messages.KIND_EVALUATION
            widths = (await server.context(asked[0].id.run)).tally_widths
            bad = encode_tallies({name: np.full(width, -1.0) for name, width in widths.items()})
            assert code_of(await devices[0].put(asked[0].id, bad)) == "HANSA-REPORT-INVALID"
            assert [event.client for event in await server.events("report.refused")] == [devices[0].id]

    run_async(work())


def test_an_invitation_that_nobody_was_given_waits_for_no_turn_to_write(tmp_path, monkeypatch):
    async def work():
        async with deployed(tmp_path) as server:
            redeemed = []
            monkeypatch.setattr(Enrolments, "redeem", lambda *_, **__: redeemed.append(1))
            answer = await Device(server.http, server.clock).enrol("no invitation")
            assert (code_of(answer), redeemed) == ("HANSA-ENROL-TOKEN", [])

    run_async(work())
