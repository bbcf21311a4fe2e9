"""Bodies as they arrive: in their limits, and no more slowly than they may."""

from __future__ import annotations

import asyncio

import pytest

from hansa.core.errors import RefusedError
from hansa.serving import bodies
from hansa.serving.bodies import paced, read_body


def arriving(count, part, pause=0.0):
    """Return a ``receive`` that gives so many parts, each after a pause."""
    left = count

    async def receive():
        nonlocal left
        await asyncio.sleep(pause)
        left -= 1
        return {"type": "http.request", "body": part, "more_body": left > 0}

    return receive


def read(receive, limit=2**20, **more):
    return asyncio.run(read_body(receive, limit, **more))


def code_of(receive, limit=2**20):
    with pytest.raises(RefusedError) as caught:
        read(receive, limit)
    return caught.value.code


def test_a_body_is_all_its_parts():
    assert read(arriving(3, b"abc")) == b"abcabcabc"
    assert code_of(arriving(3, b"abc"), limit=8) == "HANSA-REQUEST-TOO-LARGE"


def test_a_body_that_trickles_ends_though_it_never_pauses(monkeypatch):
    monkeypatch.setattr(bodies, "_STALL", 0.05)
    assert code_of(arriving(10**6, b"x", pause=0.005)) == "HANSA-REQUEST-SLOW"


def test_a_large_body_on_a_slow_line_goes_on_for_as_long_as_it_takes(monkeypatch):
    monkeypatch.setattr(bodies, "_STALL", 0.2)
    monkeypatch.setattr(bodies, "_SLOWEST", 1)
    assert len(read(arriving(60, bytes(1000), pause=0.005))) == 60_000


def test_a_body_that_pauses_ends_however_much_of_it_has_come(monkeypatch):
    monkeypatch.setattr(bodies, "_IDLE", 0.02)
    first = arriving(2, bytes(2**19))

    async def receive():
        message = await first()
        if not message["more_body"]:
            await asyncio.Event().wait()
        return message

    assert code_of(receive) == "HANSA-REQUEST-SLOW"


def test_what_reads_a_paced_body_waits_for_the_callers_leaving_as_long_as_it_likes(monkeypatch):
    async def work():
        receive = paced(arriving(2, b"x", pause=0.01))
        assert [(await receive())["more_body"], (await receive())["more_body"]] == [True, False]
        monkeypatch.setattr(bodies, "_IDLE", 0.0)
        await receive()

    asyncio.run(work())


def test_a_time_limit_of_the_caller_is_the_callers():
    async def work():
        async with asyncio.timeout(0.01):
            await read_body(arriving(2, b"x", pause=60.0), 10)

    with pytest.raises(TimeoutError):
        asyncio.run(work())
