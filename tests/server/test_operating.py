"""What an operator lives through: a full disk, a lost device, a version that is taken back."""

from __future__ import annotations

import asyncio
import errno

from tests.server.by_hand import Device, code_of, deployed, run_async
from tests.server.test_restore import answered

from hansa.store.schema import downgrade, parse_url, upgrade

PLAN = ("features.label=disease", "features.scaling=none", "evaluation.federated=false", "rounds=9")


async def started(server, *plan):
    devices = [await server.device(name) for name in "ab"]
    for device in devices:
        await device.check_in()
    await server.submit(*(plan or PLAN))
    return devices


def test_a_full_disk_refuses_reports_until_there_is_room_and_each_is_counted_once(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    async def work():
        async with deployed(tmp_path) as server:
            devices = await started(server)
            asked = await asyncio.gather(*(device.assignment() for device in devices))
            update = await server.update(asked[0], 1.0)
            with monkeypatch.context() as patched:
                patched.setattr("hansa.store.blobs.sync", full)
                refused = await devices[0].put(asked[0].id, update)
            assert (refused.status_code, code_of(refused)) == (507, "HANSA-SERVER-STORAGE")
            for device, of in zip(devices, asked, strict=True):
                assert (await device.put(of.id, await server.update(of, 1.0))).json()["verdict"] == "VERDICT_ACCEPTED"
            assert (await devices[0].assignment()).id.round == 2
            assert await server.events("report.refused") == []
            report = (await server.round(asked[0].id)).report
            assert (report["selected"], report["reported"]) == (2, 2)

    run_async(work())


def test_a_lost_device_is_suspended_and_enrols_again_under_its_number_with_another_key(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            lost, other = await started(server)
            assert (await lost.assignment()).number == 0
            its = await other.assignment()
            secret = (server.services.settings.place / "owner-token").read_text().strip()

            async def order(path, **body):
                headers = {"Authorization": f"Bearer {secret}"}
                answer = await server.http.post(f"/api/v1/{path}", headers=headers, json=body or None)
                assert answer.is_success, answer.text
                return answer.json()

            await order(f"clients/{lost.id}/suspend")
            invited = await order("populations/hospitals/invitations", client=lost.id)
            device = Device(server.http, server.clock)
            assert (await device.enrol(invited["token"])).status_code == 200
            assert device.id == lost.id
            assert code_of(await lost.call("CheckIn", lost.check_in_request())) == "HANSA-AUTH-SIGNATURE"
            await order(f"clients/{device.id}/resume")
            await device.check_in()
            await other.put(its.id, await server.update(its, 1.0))
            assert (await device.assignment(10.0)).number == 0

    run_async(work())


def test_a_run_goes_on_after_the_schema_went_back_and_came_forward_again(tmp_path):
    seen = set()

    async def work():
        async with deployed(tmp_path) as server:
            devices = await started(server)
            assert await answered(server, devices, seen, 2) == 2
            url = parse_url(server.services.settings.database_url)
        assert (await asyncio.to_thread(downgrade, url, 1)).number == 1
        await asyncio.to_thread(upgrade, url)
        async with deployed(tmp_path) as again:
            for device in devices:
                device.http, device.clock = again.http, again.clock
            assert await answered(again, devices, seen, 2) == 4

    run_async(work())
