"""Reports of a megabyte, one after another at a fixed rate, each sealed, synced to disk and recorded."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any, Final

from benchmarks.federation.arrivals import Call, Generator
from benchmarks.federation.checkins import requests, told
from benchmarks.federation.jobs import open_round, plan_of, submit, update_of
from benchmarks.federation.served import Member, Meter, served
from hansa.store.records import RoundKey
from hansa.store.store import Store

PARAMETERS: Final = 262_144
"""A megabyte in single precision."""
_WARM: Final = 2.0
_CHECK_INS: Final = 200
"""A second, before the reports: each client has asked what there is to do, as no client reports without."""


def reports(*, tls: bool, rate: float, seconds: float = 25.0) -> dict[str, Any]:
    """Measure reports over TLS with a connection each, or in plain over kept connections as behind a proxy."""
    count = int(rate * (seconds + _WARM))
    with served(tls=tls) as server:
        members = server.enrolled(count + 1)  # one never reports, so that the round stays open
        plan = plan_of()
        content, digest = update_of(plan, PARAMETERS)
        run = submit(server.calls, plan, PARAMETERS, wait_for=count + 1)
        round_ = open_round(server.calls, run)
        key = RoundKey(run, "training", int(round_["round"]), int(round_["attempt"]))
        port, context = server.federation.port, server.tls()
        asked = requests(members, _CHECK_INS, len(members) / _CHECK_INS)
        Generator(port, tls=context, kept=not tls).run(asked)
        now = time.time()
        calls = [
            Call(place / rate, report(member, key, content, digest, now + place / rate))
            for place, member in enumerate(members[:count])
        ]
        warm = int(rate * _WARM)
        Generator(port, tls=context, kept=not tls).run(calls[:warm])
        measured = [Call(call.due - calls[warm].due, call.parts) for call in calls[warm:]]
        meter = Meter(server.process)
        outcome = Generator(port, tls=context, kept=not tls).run(measured)
        figures = meter.figures(len(measured))
        recorded = asyncio.run(_recorded(server.database, key))
    return {**told(outcome, len(measured)), **figures, "missing": count - recorded, "sent": count, "tls": tls}


def report(member: Member, key: RoundKey, content: bytes, digest: str, now: float) -> list[bytes]:
    """Return the parts of one report."""
    target = f"/v1/updates/{key.run}/{key.kind}/{key.round}/{key.attempt}"
    named = base64.b64encode(bytes.fromhex(digest)).decode()
    head = (
        f"PUT {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {len(content)}\r\nContent-Range: bytes 0-{len(content) - 1}/{len(content)}\r\n"
        f"Repr-Digest: sha-256=:{named}:\r\nAuthorization: {member.signed('PUT', target, content, now)}\r\n\r\n"
    )
    return [head.encode("latin-1"), content]


async def _recorded(database: str, key: RoundKey) -> int:
    """Return how many reports of a round are in the database."""
    store = await Store.open(database, migrate=False)
    try:
        async with store.reading() as rows:
            return len(await rows.reports.of(key))
    finally:
        await store.close()
