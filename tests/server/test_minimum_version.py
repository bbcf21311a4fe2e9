"""The oldest version of clients that a population takes: at enrolment, at check-ins, and when clients are picked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.server.by_hand import Device, code_of, deployed, run_async

from hansa.server.eligibility import older
from hansa.server.opening import eligible_of


async def demand(server, version):
    async with server.services.store.transaction() as rows:
        await rows.populations.change(replace(server.population, minimum_version=version))


def test_a_client_that_is_too_old_is_neither_enrolled_nor_answered(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            known = await server.device("known", version="1.9.0")
            await demand(server, "1.10.0")
            stranger = Device(server.http, server.clock, version="1.9.9")
            token = await server.invite("stranger")
            assert code_of(await stranger.enrol(token)) == "HANSA-CLIENT-VERSION"
            assert code_of(await known.call("CheckIn", known.check_in_request())) == "HANSA-CLIENT-VERSION"
            stranger.version = known.version = "1.10.0"
            assert (await stranger.enrol(token)).status_code == 200, "its invitation was not spent"
            await known.check_in()

    run_async(work())


def test_a_client_that_is_too_old_is_not_picked(tmp_path):
    async def work():
        async with deployed(tmp_path) as server:
            for name, version in (("old", "1.9.0"), ("new", "1.10.0"), ("newest", "2.0.0")):
                await (await server.device(name, version=version)).check_in()
            context = await server.context(await server.submit(wait_for=9))
            assert (await eligible_of(server.services, context)).count == 3
            await demand(server, "1.10.0")
            assert (await eligible_of(server.services, context)).count == 2

    run_async(work())


@pytest.mark.parametrize(
    ("version", "minimum", "expected"),
    [
        ("1.9.9", "1.10.0", True),
        ("1.10.0", "1.10.0", False),
        ("1.10", "1.10.0", False),
        ("1.10.1", "1.10", False),
        ("1.10.0+local", "1.10.0", False),
        ("", "0.1", True),
        ("none", "0.1", True),
        ("1.0", None, False),
    ],
)
def test_versions_are_compared_number_by_number(version, minimum, expected):
    assert older(version, minimum) == expected
