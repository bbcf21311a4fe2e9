"""What clients may do, what is refused, and that nothing is lost or counted twice by it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import safetensors.numpy
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.server.by_hand import Device, code_of, deployed, run_async

from hansa.wire.generated import federation_pb2 as messages
from hansa.wire.signatures import assignment, client_key, verify

TRAINING = "evaluation.federated=false", "features.label=disease", "features.scaling=none", "rounds=3"
"""A plan that begins with training."""


def test_another_key_an_unknown_client_a_wrong_clock_and_a_repeated_call_are_refused(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")
            path, message = "/hansa.v1.Federation/CheckIn", device.check_in_request()
            body = message.SerializeToString()
            thief = Device(server.http, server.clock, id=device.id)
            assert code_of(await thief.call("CheckIn", message)) == "HANSA-AUTH-SIGNATURE"
            stranger = Device(server.http, server.clock, id="nobody")
            assert code_of(await stranger.call("CheckIn", message)) == "HANSA-AUTH-UNKNOWN"
            for skew in (-400, 400):
                header = device.header("POST", path, body, at=server.clock.now() + skew)
                assert code_of(await device.call("CheckIn", message, header=header)) == "HANSA-AUTH-CLOCK"
            header = device.header("POST", path, body)
            assert (await device.call("CheckIn", message, header=header)).status_code == 200
            assert code_of(await device.call("CheckIn", message, header=header)) == "HANSA-AUTH-REPLAYED"
            other = device.header("POST", "/hansa.v1.Federation/Goodbye", body)
            assert code_of(await device.call("CheckIn", message, header=other)) == "HANSA-AUTH-SIGNATURE"

    run_async(work())


def test_a_client_takes_another_key_and_the_old_one_is_worth_nothing(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            device, other = await server.device("a"), await server.device("b")
            old, new = device.key, Ed25519PrivateKey.generate()

            async def rotate(key, proof=None, of=device):
                proof = key.sign(client_key(of.id)) if proof is None else proof
                return await of.call(
                    "RotateKey",
                    messages.RotateKeyRequest(public_key=key.public_key().public_bytes_raw(), key_proof=proof),
                )

            for proof in (b"", old.sign(client_key(device.id)), new.sign(client_key(other.id))):
                assert code_of(await rotate(new, proof)) == "HANSA-AUTH-SIGNATURE"
            stolen = await rotate(other.key, other.key.sign(client_key(device.id)))
            assert code_of(stolen) == "HANSA-AUTH-SIGNATURE"  # a key that another client has
            assert (await rotate(new)).status_code == 200
            assert code_of(await device.call("CheckIn", device.check_in_request())) == "HANSA-AUTH-SIGNATURE"
            device.key = new
            assert (await rotate(new)).status_code == 200
            await device.check_in()
            async with server.services.store.reading() as rows:
                events = await rows.events.after(server.token.tenant, 0, 100)
            assert [event.client for event in events if event.kind == "client.key-rotated"] == [device.id]

    run_async(work())


def test_who_waits_while_the_server_takes_another_key_hears_of_it_with_what_it_signs(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            waiting = asyncio.create_task(devices[0].check_in(20.0))
            await asyncio.sleep(0.1)
            made = await server.services.signer.rotate()
            await server.submit(*TRAINING)
            answer = await waiting
            assert answer.assignment.key_id == made
            keys = {key.key_id: bytes(key.public_key) for key in answer.server_keys}
            verify(keys[made], answer.assignment.signature, assignment(answer.assignment.assignment))

    run_async(work())


@pytest.mark.parametrize(("state", "code"), [("suspended", "HANSA-CLIENT-STATE"), ("retired", "HANSA-CLIENT-RETIRED")])
def test_a_client_that_is_out_is_refused_from_the_next_call_on(tmp_path, state, code):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")
            await device.check_in()
            async with server.services.store.transaction() as rows:
                await rows.clients.set_state(device.id, state, at=server.clock.now(), why="test")
            await server.services.clients.follow()
            assert code_of(await device.call("CheckIn", device.check_in_request())) == code

    run_async(work())


def test_an_invitation_lets_in_whom_it_says_once(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            token = await server.invite("a")
            first, second = Device(server.http, server.clock), Device(server.http, server.clock)
            assert (await first.enrol(token)).status_code == 200
            known = first.id
            assert (await first.enrol(token)).status_code == 200
            assert first.id == known
            assert code_of(await second.enrol(token)) == "HANSA-ENROL-TOKEN"
            assert code_of(await second.enrol("no such token")) == "HANSA-ENROL-TOKEN"
            late = await server.invite("b", expires_at=server.clock.now() - 1)
            assert code_of(await second.enrol(late)) == "HANSA-ENROL-TOKEN"
            fresh = await server.invite("c")
            assert code_of(await second.enrol(fresh, key_proof=b"x" * 64)) == "HANSA-AUTH-SIGNATURE"
            assert code_of(await second.enrol(fresh, attributes={"age": "7"})) == "HANSA-CLIENT-ATTRIBUTES"
            assert (await second.enrol(fresh)).status_code == 200

    run_async(work())


def test_a_round_goes_from_assignments_to_a_model_that_can_be_fetched(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            await server.submit(*TRAINING)
            asked = await asyncio.gather(*(device.assignment() for device in devices))
            assert [each.number for each in asked] == [0, 1]
            assert {each.id.round for each in asked} == {1}
            model = await devices[0].get(f"/v1/models/{asked[0].model_sha256}")
            assert len(model.content) == asked[0].model_size
            part = await devices[0].get(f"/v1/models/{asked[0].model_sha256}", Range="bytes=8-15")
            assert (part.status_code, part.content) == (206, model.content[8:16])
            assert (await devices[0].get(f"/v1/jobs/{asked[0].job_sha256}")).json()["population"] == "hospitals"
            for value, device, each in zip((1.0, 3.0), devices, asked, strict=True):
                answer = await device.put(each.id, await server.update(each, value))
                assert answer.json()["verdict"] == "VERDICT_ACCEPTED"
            reported = {"reported": asked[0].id}
            for _ in range(100):
                outcome = (await devices[0].check_in(0.0, **reported)).outcome
                if outcome != messages.OUTCOME_OPEN:
                    break
                await asyncio.sleep(0.02)
            assert outcome == messages.OUTCOME_INCLUDED
            again = await devices[0].assignment()
            assert again.id.round == 2
            model = await devices[0].get(f"/v1/models/{again.model_sha256}")
            assert set(safetensors.numpy.load(model.content)["model"].tolist()) == {2.0}

    run_async(work())


def test_reports_are_counted_once_whatever_is_sent_how_often(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            await server.submit(*TRAINING)
            device, asked = devices[0], await devices[0].assignment()
            update = await server.update(asked, 1.0)
            for _ in range(3):
                assert (await device.put(asked.id, update)).json()["verdict"] == "VERDICT_ACCEPTED"
            other = await device.put(asked.id, await server.update(asked, 2.0))
            assert (other.status_code, code_of(other)) == (409, "HANSA-REPORT-ANSWERED")
            round_ = await server.round(asked.id)
            async with server.services.store.reading() as rows:
                assert len(await rows.reports.of(round_.id)) == 1
            stranger = await server.device("stranger")
            assert code_of(await stranger.put(asked.id, update)) == "HANSA-REPORT-UNEXPECTED"
            wrong = messages.AssignmentId(run=asked.id.run, kind=asked.id.kind, round=7, attempt=1)
            assert code_of(await devices[1].put(wrong, update)) == "HANSA-REPORT-UNEXPECTED"

    run_async(work())


def test_what_is_no_update_is_refused_and_named_to_the_operator(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "abc"]
            for device in devices:
                await device.check_in()
            await server.submit(*TRAINING, wait_for=3)
            asked = await asyncio.gather(*(device.assignment() for device in devices))
            good = await server.update(asked[0], 1.0)
            arrays = safetensors.numpy.load(good)
            poisoned = {**arrays, "values": np.full_like(arrays["values"], np.nan)}
            answer = await devices[0].put(asked[0].id, safetensors.numpy.save(poisoned))
            assert (answer.status_code, code_of(answer)) == (400, "HANSA-REPORT-NOT-FINITE")
            short = {**arrays, "values": arrays["values"][1:]}
            answer = await devices[1].put(asked[1].id, safetensors.numpy.save(short))
            assert code_of(answer) == "HANSA-REPORT-INVALID"
            named = {(event.detail["name"], event.detail["code"]) for event in await server.events("report.refused")}
            assert named == {("a", "HANSA-REPORT-NOT-FINITE"), ("b", "HANSA-REPORT-INVALID")}
            assert (await devices[2].put(asked[2].id, good)).json()["verdict"] == "VERDICT_ACCEPTED"
            again = await devices[2].assignment()
            assert again.id.round == 2
            closed = await server.round(asked[2].id)
            assert (closed.state, closed.report["cohort"]) == ("closed", 1)

    run_async(work())


def test_malformed_uploads_change_nothing(tmp_path):
    async def work():
        async with deployed(tmp_path, largest_update_bytes=1 << 20) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            await server.submit(*TRAINING)
            device, asked = devices[0], await devices[0].assignment()
            update = await server.update(asked, 1.0)
            assert code_of(await device.put(asked.id, update, whole=b"other")) == "HANSA-UPLOAD-DIGEST"
            for changed in ({"Content-Range": "bytes 0-1/2"}, {"Content-Range": "x"}, {"Repr-Digest": "sha-256=:x:"}):
                assert code_of(await device.put(asked.id, update, **changed)) == "HANSA-REQUEST-INVALID"
            far = {"Content-Range": f"bytes 9-{len(update) + 8}/{len(update) + 9}"}
            assert code_of(await device.put(asked.id, update, **far)) == "HANSA-UPLOAD-OFFSET"
            huge = {"Content-Range": f"bytes 0-{len(update) - 1}/{1 << 40}"}
            assert code_of(await device.put(asked.id, update, **huge)) == "HANSA-REQUEST-TOO-LARGE"
            path = f"/v1/updates/{asked.id.run}/nonsense/1/1"
            assert code_of(await device.put(asked.id, update, path=path)) == "HANSA-NOT-FOUND"
            assert (await device.put(asked.id, update)).json()["verdict"] == "VERDICT_ACCEPTED"

    run_async(work())


def test_an_update_in_parts_goes_on_where_it_broke_off(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            await server.submit(*TRAINING)
            device, asked = devices[0], await devices[0].assignment()
            update = await server.update(asked, 1.0)
            cut, total = 100, len(update)
            first = await device.put(
                asked.id, update[:cut], whole=update, **{"Content-Range": f"bytes 0-{cut - 1}/{total}"}
            )
            assert (first.status_code, first.json()["offset"]) == (202, str(cut))
            rest = {"Content-Range": f"bytes {cut}-{total - 1}/{total}"}
            assert (await device.put(asked.id, update[cut:], whole=update, **rest)).json()["verdict"] == (
                "VERDICT_ACCEPTED"
            )

    run_async(work())


def test_without_consent_nobody_is_picked_again(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            devices[0].consent = False
            await devices[0].check_in()
            await server.submit(*TRAINING, wait_for=1)
            asked = await devices[1].assignment()
            assert asked.cohort_size == 1
            assert not (await devices[0].check_in(0.1)).HasField("assignment")
            assert [event.client for event in await server.events("client.withdrew-consent")] == [devices[0].id]

    run_async(work())


def test_a_run_for_which_too_few_clients_are_there_says_so_once_until_it_goes_on(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")
            await device.check_in()
            run, why = await server.submit(*TRAINING, wait_for=2), "(--wait-for) needs 2 eligible clients"
            for _ in range(500):
                if why in ((found := (await server.context(run)).run).why or ""):
                    break
                await asyncio.sleep(0.02)
            assert found.state == "running"
            for _ in range(5):
                await device.check_in(0.05)
            (event,) = await server.events("run.waiting")
            assert event.detail == {"why": found.why}
            await (await server.device("b")).check_in()
            await device.assignment()
            assert (await server.context(run)).run.why is None

    run_async(work())


def test_a_round_that_all_decline_rests_before_it_is_tried_again_and_the_last_reason_is_told(tmp_path):
    async def work():
        async with deployed(tmp_path, max_attempts=2) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            run = await server.submit(*TRAINING)

            async def decline(attempt):
                asked = await asyncio.gather(*(device.assignment() for device in devices))
                assert asked[0].id.attempt == attempt
                for device in devices:
                    await device.check_in(0.0, declined=asked[0].id)
                return asked[0].id

            first = await decline(1)
            for _ in range(10):
                assert not (await devices[0].check_in(0.05)).HasField("assignment")
            assert (await server.given_up(first)).report["why"] == "2 of 2 declined"
            await server.given_up(await decline(2))
            paused = await until_paused(server, run)
            assert paused.why.startswith("[HANSA-RUN-ATTEMPTS]")
            assert "2 of 2 declined" in paused.why
            token = (server.services.settings.place / "owner-token").read_text().strip()
            headers = {"Authorization": f"Bearer {token}"}
            assert (await server.http.post(f"/api/v1/runs/{run}/resume", headers=headers)).status_code == 200
            await decline(3)

    run_async(work())


async def until_paused(server, run):
    for _ in range(200):
        async with server.services.store.reading() as rows:
            found = await rows.runs.get(run)
        if found.state == "paused":
            return found
        await asyncio.sleep(0.02)
    raise TimeoutError


def test_who_only_looks_changes_nothing_and_sees_what_others_are_asked(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            looker = await server.device("looker")
            await devices[0].check_in()
            looker.consent = False
            assert not (await looker.check_in(looks=True)).HasField("assignment")
            await server.submit(*TRAINING)  # waits for two
            await looker.check_in(looks=True)
            await asyncio.sleep(0.2)
            assert not (await devices[0].check_in()).HasField("assignment")
            await devices[1].check_in()
            asked = await devices[0].assignment()
            shown = messages.Assignment.FromString((await looker.check_in(looks=True)).assignment.assignment)
            assert (shown.id, shown.cohort_size, shown.client) == (asked.id, 2, looker.id)
            assert (await looker.get(f"/v1/models/{shown.model_sha256}")).status_code == 200
            update = await server.update(shown, 1.0)
            assert code_of(await looker.put(shown.id, update)) == "HANSA-REPORT-UNEXPECTED"
            looker.attributes = {"age": "7"}
            refused = await looker.call("CheckIn", looker.check_in_request(looks=True))
            assert code_of(refused) == "HANSA-CLIENT-ATTRIBUTES"
            async with server.services.store.reading() as rows:
                kept = await rows.clients.get(looker.id)
            assert (kept.state, kept.consent, kept.attributes) == ("enrolled", True, {})
            assert server.services.board.callers.count(server.population.id) == 2

    run_async(work())


@pytest.mark.parametrize("needed", ["report_goal", "minimum_reports"])
def test_a_straggler_is_told_politely_and_the_round_is_tried_again_where_too_few_came(tmp_path, needed):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            await server.submit(*TRAINING, "schedule.round_deadline=60.0", f"schedule.{needed}=2")
            asked = await asyncio.gather(*(device.assignment() for device in devices))
            update = await server.update(asked[0], 1.0)
            assert (await devices[0].put(asked[0].id, update)).json()["verdict"] == "VERDICT_ACCEPTED"
            server.clock.time += 61
            assert (await server.given_up(asked[0].id)).report["why"] == "1 of 2 picked clients reported in time"
            again = await devices[0].assignment()
            assert (again.id.round, again.id.attempt) == (1, 2)
            assert again.model_sha256 == asked[0].model_sha256
            late = await devices[1].put(asked[1].id, await server.update(asked[1], 2.0))
            assert late.json()["verdict"] == "VERDICT_LATE"
            answer = await devices[0].check_in(0.0, reported=asked[0].id)
            assert answer.outcome == messages.OUTCOME_NOT_INCLUDED

    run_async(work())


def test_a_declined_assignment_is_not_waited_for(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            await server.submit(*TRAINING)
            asked = await asyncio.gather(*(device.assignment() for device in devices))
            await devices[0].check_in(0.0, declined=asked[0].id)
            await devices[1].put(asked[1].id, await server.update(asked[1], 1.0))
            assert (await devices[1].assignment()).id.round == 2

    run_async(work())


def test_parts_that_were_begun_do_not_get_into_an_update_that_comes_whole(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            await server.submit(*TRAINING)
            asked = await asyncio.gather(*(device.assignment() for device in devices))
            update = await server.update(asked[0], 1.0)
            cut, total = 100, len(update)
            for start, stop in ((0, cut), (cut, cut + 50)):
                begun = {"Content-Range": f"bytes {start}-{stop - 1}/{total}"}
                await devices[0].put(asked[0].id, update[start:stop], whole=update, **begun)
            assert (await devices[0].put(asked[0].id, update)).json()["verdict"] == "VERDICT_ACCEPTED"
            await devices[1].put(asked[1].id, update)
            assert (await devices[1].assignment()).id.round == 2
            assert (await server.round(asked[0].id)).report["cohort"] == 2

    run_async(work())


def test_an_update_of_another_form_than_the_transforms_make_is_refused(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            await server.submit(*TRAINING, 'transforms=[{kind="weigh-by-size"}, {kind="int8-rotation", block=64}]')
            asked = await devices[0].assignment()
            arrays = safetensors.numpy.load(await server.update(asked, 1.0))
            assert code_of(await devices[0].put(asked.id, safetensors.numpy.save(arrays))) == "HANSA-REPORT-INVALID"
            asked = await devices[1].assignment()
            form = {"values": np.zeros(64, dtype=np.int8), "side/scales": np.zeros(1, dtype=np.float32)}
            answer = await devices[1].put(asked.id, safetensors.numpy.save({"lanes": arrays["lanes"], **form}))
            assert answer.json()["verdict"] == "VERDICT_ACCEPTED", answer.text

    run_async(work())


def test_an_acknowledged_update_that_overflows_as_it_is_decoded_does_not_end_the_run(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "abc"]
            for device in devices:
                await device.check_in()
            await server.submit(*TRAINING, 'transforms=[{kind="int8-rotation", block=64}]')
            asked = await asyncio.gather(*(device.assignment() for device in devices))
            lanes = safetensors.numpy.load(await server.update(asked[0], 0.0))["lanes"]
            for device, each, scale in zip(devices, asked, (3e38, 1.0, 1.0), strict=True):
                form = {"values": np.full(64, 127, dtype=np.int8), "side/scales": np.full(1, scale, dtype=np.float32)}
                answer = await device.put(each.id, safetensors.numpy.save({"lanes": lanes, **form}))
                assert answer.json()["verdict"] == "VERDICT_ACCEPTED"
            await server.given_up(asked[0].id)
            again = await devices[1].assignment()
            assert (again.id.round, again.id.attempt, again.model_sha256) == (1, 2, asked[0].model_sha256)
            assert [event.client for event in await server.events("client.suspended")] == [devices[0].id]

    run_async(work())


def test_what_nobody_foresaw_is_told_without_a_word_of_it(tmp_path, monkeypatch):
    async def work():
        async with deployed(tmp_path) as server:
            device = await server.device("a")

            async def broken(*_):
                raise KeyError("a private detail")

            monkeypatch.setattr("hansa.server.client_api.ClientApi._check_in", broken)
            answer = await device.call("CheckIn", device.check_in_request())
            assert (answer.status_code, code_of(answer)) == (500, "HANSA-INTERNAL")
            assert "private" not in answer.text

    run_async(work())


def test_what_happens_is_counted_without_a_word_of_who(tmp_path):
    scraper = "the token of the scraper"

    async def work():
        async with deployed(tmp_path, metrics_token=scraper) as server:
            devices = [await server.device(name) for name in "ab"]
            for device in devices:
                await device.check_in()
            await server.submit(*TRAINING)
            asked = await asyncio.gather(*(device.assignment() for device in devices))
            for device, each in zip(devices, asked, strict=True):
                await device.put(each.id, await server.update(each, 1.0))
            await devices[0].assignment()
            headers = {"Authorization": f"Bearer {scraper}"}
            text = (await server.http.get("/metrics", headers=headers)).text
            for line in (
                'hansa_check_ins_total{answer="assignment"}',
                'hansa_reports_total{verdict="VERDICT_ACCEPTED"}',
                'hansa_rounds_total{kind="training",outcome="closed"}',
            ):
                assert line in text
            assert not any(device.id in text for device in devices)

    run_async(work())
