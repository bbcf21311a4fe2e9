"""Enrolling by a certificate: whose, and into what."""

from __future__ import annotations

import pytest
from tests.server.authority import Authority
from tests.server.by_hand import Device, code_of, deployed, run_async

from hansa.client.certificates import certified
from hansa.store.records import Population
from hansa.wire.generated import federation_pb2 as messages


def request_by(authority: Authority, name: str, population: str, device: Device) -> messages.EnrolRequest:
    request = certified(*authority.issue(name), population, device.key)
    request.MergeFrom(
        messages.EnrolRequest(
            public_key=device.key.public_key().public_bytes_raw(), client_version="1.0.0", consent=True
        )
    )
    return request


def test_a_certificate_of_a_trusted_authority_enrols_by_its_name_with_one_key(tmp_path):
    async def work():
        authority, other = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
        async with deployed(tmp_path, enrolment_ca=str(authority.ca)) as server:
            device, second = (Device(server.http, server.clock) for _ in range(2))
            request = request_by(authority, "a hospital", "default/hospitals", device)
            answers = [await device.call("Enrol", request, header=None) for _ in range(2)]
            told = [messages.EnrolResponse.FromString(answer.content) for answer in answers]
            assert [each.name for each in told] == ["a hospital"] * 2
            assert told[0].client == told[1].client

            for refused in (
                request_by(authority, "a hospital", "default/hospitals", second),
                request_by(authority, "another", "default/none", second),
                request_by(other, "another", "default/hospitals", second),
            ):
                assert code_of(await second.call("Enrol", refused, header=None)) == "HANSA-ENROL-CERTIFICATE"
            stolen = request_by(authority, "a thief", "default/hospitals", device)
            stolen.public_key = second.key.public_key().public_bytes_raw()
            assert code_of(await second.call("Enrol", stolen, header=None)) == "HANSA-AUTH-SIGNATURE"

    run_async(work())


@pytest.mark.parametrize(
    ("allowed", "entered"), [((), False), (("other/phones",), True), (("default/hospitals",), False)]
)
def test_certificates_enrol_with_no_tenant_that_was_not_named_for_it(tmp_path, allowed, entered):
    async def work():
        authority = Authority(tmp_path / "ca")
        settings = {"enrolment_ca": str(authority.ca), "enrolment_populations": allowed}
        async with deployed(tmp_path, **settings) as server:
            async with server.services.store.transaction() as rows:
                other = await rows.tenants.add("other")
                await rows.populations.add(Population("population-2", other.id, "phones"))
            device = Device(server.http, server.clock)
            request = request_by(authority, "a hospital", "other/phones", device)
            answer = await device.call("Enrol", request, header=None)
            assert (answer.status_code == 200) is entered
            if not entered:
                assert code_of(answer) == "HANSA-ENROL-CERTIFICATE"

    run_async(work())
