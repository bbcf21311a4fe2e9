"""Ten thousand clients that check in every ten seconds, and have nothing to do."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.federation.arrivals import Call, Generator, Outcome, percentile
from benchmarks.federation.served import VERSION, Member, Meter, served
from hansa.wire.generated import federation_pb2 as messages

CLIENTS: Final = 10_000
EVERY: Final = 10.0
_TARGET: Final = "/hansa.v1.Federation/CheckIn"
_WARM: Final = EVERY
"""Seconds of calls before those that are measured: every client has called once."""


def check_ins(*, tls: bool, seconds: float = 60.0, clients: int = CLIENTS) -> dict[str, Any]:
    """Measure check-ins over TLS with a connection each, or in plain over kept connections as behind a proxy."""
    with served(tls=tls, settings={"long_poll_seconds": 0}) as server:
        members = server.enrolled(clients)
        rate = clients / EVERY
        calls = requests(members, rate, _WARM + seconds)
        warm = int(rate * _WARM)
        port, context = server.federation.port, server.tls()
        Generator(port, tls=context, kept=not tls).run(calls[:warm])
        begins = calls[warm].due
        measured = [Call(call.due - begins, call.parts) for call in calls[warm:]]
        before, meter = server.database_digests(), Meter(server.process)
        outcome = Generator(port, tls=context, kept=not tls).run(measured)
        figures = meter.figures(len(measured))
        written = server.database_digests() != before
    return {**told(outcome, len(measured)), **figures, "written": written, "clients": clients, "tls": tls}


def told(outcome: Outcome, calls: int) -> dict[str, Any]:
    """Return the figures of an outcome."""
    return {
        "calls": calls,
        "rate": calls / outcome.seconds,
        "seconds": outcome.seconds,
        "errors": outcome.errors,
        "statuses": dict(outcome.statuses),
        "refusals": {body.decode("utf-8", "replace"): count for body, count in outcome.bodies.most_common(3)},
        "connections": outcome.connections,
        **{f"p{share:g}_ms": 1000 * percentile(outcome.latencies, share / 100) for share in (50, 95, 99, 99.9)},
        "most_ms": 1000 * max(outcome.latencies, default=float("nan")),
        "late_p99_ms": 1000 * percentile(outcome.late, 0.99),
    }


def requests(members: Sequence[Member], rate: float, seconds: float) -> list[Call]:
    """Return signed check-ins: each client calls at a moment of its own in every interval."""
    chance = random.Random(7)  # noqa: S311 - when clients call
    interval = len(members) / rate
    phases = [chance.random() * interval for _ in members]
    body = messages.CheckInRequest(client_version=VERSION, consent=True).SerializeToString()
    planned = [
        (phase + turn * interval, member)
        for turn in range(int(seconds / interval) + 1)
        for phase, member in zip(phases, members, strict=True)
        if phase + turn * interval < seconds
    ]
    now = time.time()
    return [
        Call(due, [checked_in(member, body, now + due)]) for due, member in sorted(planned, key=lambda each: each[0])
    ]


def checked_in(member: Member, body: bytes, now: float) -> bytes:
    """Return the bytes of one check-in."""
    head = (
        f"POST {_TARGET} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/proto\r\n"
        f"Connect-Protocol-Version: 1\r\nContent-Length: {len(body)}\r\n"
        f"Authorization: {member.signed('POST', _TARGET, body, now)}\r\n\r\n"
    )
    return head.encode("latin-1") + body
