"""Clients that will not answer any more leave their rounds at once, and the rounds go on; the clock stands still."""

from __future__ import annotations

import asyncio

import pytest
from tests.server.by_hand import deployed, run_async

from hansa.store.records import RoundKey
from hansa.wire.generated import federation_pb2 as messages

PLAN = "evaluation.federated=false", "features.label=disease", "features.scaling=none", "rounds=3"
SECURE = (*PLAN, "secure_aggregation={maximum_cohort=4, max_weight=300.0}")


async def withdraw(_server, device):
    device.consent = False
    await device.check_in()


async def say_goodbye(_server, device):
    assert (await device.call("Goodbye", messages.GoodbyeRequest())).status_code == 200


def ordered(what):
    async def order(server, device):
        token = (server.services.settings.place / "owner-token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        answer = await server.http.post(f"/api/v1/clients/{device.id}/{what}", headers=headers)
        assert answer.status_code == 200, answer.text

    return order


WAYS = {
    "consent withdrawn": (withdraw, "declined"),
    "goodbye": (say_goodbye, "lost"),
    "suspended": (ordered("suspend"), "lost"),
    "retired": (ordered("retire"), "lost"),
}


async def started(server, names, *plan):
    devices = [await server.device(name) for name in names]
    for device in devices:
        await device.check_in()
    run = await server.submit(*plan, wait_for=len(devices))
    return run, devices, await asyncio.gather(*(device.assignment() for device in devices))


@pytest.mark.parametrize(("way", "fate"), WAYS.values(), ids=WAYS)
def test_a_round_goes_on_without_a_client_that_left(tmp_path, way, fate):
    async def work():
        async with deployed(tmp_path) as server:
            run, (stays, leaves), asked = await started(server, "ab", *PLAN)
            await stays.put(asked[0].id, await server.update(asked[0], 1.0))
            await way(server, leaves)
            following = await stays.assignment()
            assert (following.id.round, following.cohort_size) == (2, 1)
            async with server.services.store.reading() as rows:
                assert await rows.rounds.fate(RoundKey(run, "training", 1, 1), leaves.id) == fate
            (event,) = await server.events(f"assignment.{fate}")
            assert (event.run, event.client) == (run, leaves.id)

    run_async(work())


def test_what_was_reported_before_stays_counted(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            _, (stays, leaves), asked = await started(server, "ab", *PLAN)
            await leaves.put(asked[1].id, await server.update(asked[1], 3.0))
            await say_goodbye(server, leaves)
            await stays.put(asked[0].id, await server.update(asked[0], 1.0))
            assert (await stays.assignment()).id.round == 2
            assert (await server.round(asked[0].id)).report["reported"] == 2

    run_async(work())


def test_the_operator_sees_when_a_client_last_called(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            devices = [await server.device(name) for name in "ab"]
            await devices[0].check_in()
            at = server.clock.now()
            server.clock.time += 100
            token = (server.services.settings.place / "owner-token").read_text().strip()
            headers = {"Authorization": f"Bearer {token}"}
            found = (await server.http.get("/api/v1/populations/hospitals/clients", headers=headers)).json()["clients"]
            assert [each["last_seen"] for each in found] == [at, None]
            one = await server.http.get(f"/api/v1/clients/{devices[0].id}", headers=headers)
            assert one.json()["last_seen"] == at

    run_async(work())


@pytest.mark.parametrize(("way", "fate"), WAYS.values(), ids=WAYS)
def test_a_phase_of_a_secure_sum_does_not_wait_for_clients_that_left(tmp_path, way, fate):
    async def work():
        async with deployed(tmp_path) as server:
            _, devices, asked = await started(server, "abcd", *SECURE)
            for device in devices:
                await way(server, device)
            for _ in range(200):
                if (await server.round(asked[0].id)).state == "abandoned":
                    break
                await asyncio.sleep(0.02)
            assert (await server.round(asked[0].id)).state == "abandoned"
            assert len(await server.events(f"assignment.{fate}")) == 4

    run_async(work())
