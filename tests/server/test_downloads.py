"""Models and job descriptors as clients fetch them: whole, in ranges, not where they have them; and who keeps them."""

from __future__ import annotations

import asyncio

import pytest
from tests.server.by_hand import Deployed, Device, deployed, run_async

from hansa.server.settings import read_settings

PLAN = "evaluation.federated=false", "features.label=disease", "features.scaling=none", "rounds=1"
KINDS = ["models", "jobs"]


async def asked(server: Deployed) -> tuple[Device, dict[str, str]]:
    """Return a client that is asked something, and the digests of what it is to fetch."""
    device = await server.device("a")
    await device.check_in()
    await server.submit(*PLAN, wait_for=1)
    assigned = await device.assignment()
    return device, {"models": assigned.model_sha256, "jobs": assigned.job_sha256}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_client_has_is_not_sent_again_and_what_it_lacks_is(tmp_path, kind):
    async def work():
        async with deployed(tmp_path) as server:
            device, digests = await asked(server)
            path, etag = f"/v1/{kind}/{digests[kind]}", f'"{digests[kind]}"'
            whole = await device.get(path)
            assert (whole.status_code, whole.headers["etag"]) == (200, etag)
            assert int(whole.headers["content-length"]) == len(whole.content)
            known = await device.get(path, **{"If-None-Match": etag})
            assert (known.status_code, known.content, known.headers["etag"]) == (304, b"", etag)
            assert known.headers["cache-control"] == whole.headers["cache-control"]
            other = await device.get(path, **{"If-None-Match": '"other"'})
            assert (other.status_code, other.content) == (200, whole.content)

    run_async(work())


@pytest.mark.parametrize("kind", KINDS)
def test_a_download_goes_on_where_it_ended_if_it_is_of_the_same_bytes(tmp_path, kind):
    async def work():
        async with deployed(tmp_path) as server:
            device, digests = await asked(server)
            path, etag = f"/v1/{kind}/{digests[kind]}", f'"{digests[kind]}"'
            whole = (await device.get(path)).content
            size = len(whole)
            ranges = {
                "bytes=8-": (8, size), "bytes=8-15": (8, 16), "bytes=-5": (size - 5, size),
                f"bytes={size - 1}-{size + 9}": (size - 1, size), f"bytes=-{size + 1}": (0, size),
            }  # fmt: skip
            for wanted, (start, stop) in ranges.items():
                part = await device.get(path, **{"Range": wanted, "If-Range": etag})
                assert (part.status_code, part.content) == (206, whole[start:stop]), wanted
                assert part.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
            assert (await device.get(path, Range="bytes=8-15")).content == whole[8:16]
            stale = await device.get(path, **{"Range": "bytes=8-", "If-Range": '"other"'})
            assert (stale.status_code, stale.content) == (200, whole)
            for beyond in (f"bytes={size}-", "bytes=9-8", "bytes=-0"):
                refused = await device.get(path, Range=beyond)
                assert (refused.status_code, refused.content) == (416, b"")
                assert refused.headers["content-range"] == f"bytes */{size}"
            odd = await device.get(path, Range="lines=1-2")
            assert (odd.status_code, odd.content) == (200, whole)

    run_async(work())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("value", "kept"), [("false", "private"), ("true", "public")])
def test_caches_on_the_way_may_keep_it_only_where_the_server_is_set_so(tmp_path, value, kept, kind):
    settings = read_settings(environment={"HANSA_SERVER_SHARED_CACHES": value})

    async def work():
        async with deployed(tmp_path, shared_caches=settings.shared_caches) as server:
            device, digests = await asked(server)
            path = f"/v1/{kind}/{digests[kind]}"
            answers = await asyncio.gather(
                device.get(path), device.get(path, Range="bytes=1-"), device.get(path, **{"If-None-Match": "x"})
            )
            said = {answer.headers["cache-control"] for answer in answers}
            assert said == {f"{kept}, max-age=31536000, immutable"}
            unsigned = await server.http.get(path)  # of the server itself nobody gets it unsigned
            assert (unsigned.status_code, "public" in unsigned.headers.get("cache-control", "")) == (401, False)

    run_async(work())


def test_no_cache_on_the_way_keeps_anything_unless_it_is_asked_for():
    assert read_settings(environment={}).shared_caches is False
