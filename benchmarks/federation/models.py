"""A model of a gigabyte: fetched by silos in plain HTTP, their updates of a gigabyte sent back, the round closed."""

from __future__ import annotations

import base64
import hashlib
import http.client
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.federation.jobs import open_round, plan_of, submit, update_of
from benchmarks.federation.served import Member, Process, Served, served
from hansa.store.records import RoundKey

PARAMETERS: Final = 250_000_000
"""A gigabyte in single precision."""
_SILOS: Final = 4
_PART: Final = 8 << 20
_BLOCK: Final = 1 << 20
_POLL: Final = 0.2
_PATIENCE: Final = 600.0


def model(*, parameters: int = PARAMETERS) -> dict[str, Any]:
    """Measure what a server's memory grows by while a large model goes out, and while as large updates come in."""
    with served(tls=False) as server:
        members = server.enrolled(_SILOS)
        plan = plan_of(rounds=1)
        content, digest = update_of(plan, parameters)
        run = submit(server.calls, plan, parameters, wait_for=_SILOS)
        opened = open_round(server.calls, run)
        key = RoundKey(run, "training", int(opened["round"]), int(opened["attempt"]))
        size = len(content)
        down = _watched(server.process, lambda: _together(members, lambda one: _fetch(server, one, opened["model"])))
        update = (content, digest)
        up = _watched(
            server.process, lambda: _together(members, lambda one: _send(server, one, key, update, last=False))
        )
        closing = _watched(server.process, lambda: _end(server, members, key, update, run))
    return {
        "bytes": size,
        "download_growth_mb": down.growth,
        "download_mb_a_second": _SILOS * size / 1e6 / down.seconds,
        "upload_growth_mb": up.growth,
        "upload_mb_a_second": _SILOS * size / 1e6 / up.seconds,
        "close_growth_mb": closing.growth,
        "close_seconds": closing.seconds,
        "rest_mb": down.before,
        "rest_after_mb": closing.after,
    }


@dataclass(frozen=True)
class Watched:
    """Seconds, and memory in megabytes: before, and how much more at the most."""

    seconds: float
    before: float
    growth: float
    after: float


def _watched(process: Process, work: Callable[[], object]) -> Watched:
    process.forget_peak()
    before, began = process.resident(), time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    return Watched(seconds, before / 1e6, (process.peak() - before) / 1e6, process.resident() / 1e6)


def _together(members: Sequence[Member], work: Callable[[Member], object]) -> None:
    """Do something for each member at the same time. Raises what went wrong with one of them."""
    wrong: list[BaseException] = []

    def one(member: Member) -> None:
        try:
            work(member)
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            wrong.append(error)

    threads = [threading.Thread(target=one, args=(member,)) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


def _fetch(server: Served, member: Member, digest: str) -> None:
    """Fetch the model, the second half by a range of its own, as after a connection that broke."""
    target, found = f"/v1/models/{digest}", hashlib.sha256()
    connection = http.client.HTTPConnection("127.0.0.1", server.federation.port, timeout=120)
    place = 0
    for stop in ("half", "end"):
        headers = {"Authorization": member.signed("GET", target, b"", time.time())}
        if place:
            headers["Range"] = f"bytes={place}-"
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        if answer.status != (206 if place else 200):
            raise RuntimeError(f"the model was answered with {answer.status}")
        until = int(answer.headers["Content-Length"]) // (2 if stop == "half" else 1)
        while until > 0 and (block := answer.read(min(_BLOCK, until))):
            found.update(block)
            place += len(block)
            until -= len(block)
        connection.close()
    if found.hexdigest() != digest:
        raise RuntimeError("another model came")


def _send(server: Served, member: Member, key: RoundKey, update: tuple[bytes, str], *, last: bool) -> None:
    """Send an update in parts but for the last one, or that."""
    content, digest = update
    starts = range(0, len(content), _PART)
    target = f"/v1/updates/{key.run}/{key.kind}/{key.round}/{key.attempt}"
    named = base64.b64encode(bytes.fromhex(digest)).decode()
    connection = http.client.HTTPConnection("127.0.0.1", server.federation.port, timeout=120)
    for start in starts[-1:] if last else starts[:-1]:
        part = content[start : start + _PART]
        headers = {
            "Authorization": member.signed("PUT", target, part, time.time()),
            "Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}",
            "Content-Type": "application/octet-stream",
            "Repr-Digest": f"sha-256=:{named}:",
        }
        connection.request("PUT", target, body=part, headers=headers)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status not in (200, 202):
            raise RuntimeError(f"a part was answered with {answer.status}: {said[:300]!r}")
    connection.close()


def _end(server: Served, members: Sequence[Member], key: RoundKey, update: tuple[bytes, str], run: str) -> None:
    """Send the last parts, and wait until the round is closed."""
    _together(members, lambda one: _send(server, one, key, update, last=True))
    until = time.monotonic() + _PATIENCE
    while int(server.calls.get(f"/runs/{run}")["round"]) < key.round:
        if time.monotonic() > until:
            raise TimeoutError("the round was not closed")
        time.sleep(_POLL)
