"""A server on a core of its own, with clients that were enrolled beforehand, watched from outside."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import ssl
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hansa.cli.local_federation import LocalFederation
from hansa.cli.operator_client import Operator, operator
from hansa.store.enrolments import Newcomer
from hansa.store.store import Store
from hansa.wire.signatures import sign_request

POPULATION: Final = "load"
VERSION: Final = "1.0"
SERVER_CORE: Final = 0
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Member:
    """An enrolled client and its key."""

    id: str
    number: int
    key: Ed25519PrivateKey

    def signed(self, method: str, target: str, body: bytes, now: float) -> str:
        """Return the Authorization header of a request."""
        return sign_request(self.key, client=self.id, method=method, target=target, body=body, now=now)


@dataclass(frozen=True)
class Process:
    """What a running process uses."""

    pid: int

    def cpu_seconds(self) -> float:
        """Return the processor time of all its threads so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident(self) -> int:
        """Return its resident memory now, in bytes."""
        return self._status("VmRSS")

    def peak(self) -> int:
        """Return its largest resident memory since ``forget_peak``, in bytes."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """Let the peak be what is resident now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5", encoding="ascii")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        return 0


@dataclass(frozen=True)
class Served:
    """A local federation whose server has a core of its own, and its operator."""

    federation: LocalFederation
    calls: Operator
    process: Process

    @property
    def folder(self) -> Path:
        """Return the server's folder."""
        return self.federation.folder / "server"

    @property
    def database(self) -> str:
        """Return the URL of the server's database."""
        return f"sqlite+aiosqlite:///{self.folder / 'hansa.sqlite'}"

    def tls(self) -> ssl.SSLContext | None:
        """Return what connections trust, or None where they are plain."""
        if not self.federation.url.startswith("https"):
            return None
        return ssl.create_default_context(cafile=str(self.federation.ca))

    def database_digests(self) -> dict[str, str]:
        """Return the digests of the database's file and of its write-ahead log."""
        files = (self.folder / name for name in ("hansa.sqlite", "hansa.sqlite-wal"))
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.exists()}

    def enrolled(self, count: int, attributes: Mapping[str, Any] | None = None) -> list[Member]:
        """Return clients that are put into a new population, active, without the calls that enrol them."""
        return asyncio.run(enrol(self.database, self.calls, count, attributes or {}))


@contextmanager
def served(*, tls: bool, settings: Mapping[str, Any] | None = None) -> Iterator[Served]:
    """Start a server in a new folder, on its core; this process and what it starts later have the others."""
    folder = Path(tempfile.mkdtemp(prefix="hansa-load-"))
    chosen = {"tls": "development" if tls else "off", **(settings or {})}
    cores = os.sched_getaffinity(0)
    try:
        with LocalFederation(folder, chosen) as federation:
            os.sched_setaffinity(0, {SERVER_CORE})
            federation.start_server()
            os.sched_setaffinity(0, cores - {SERVER_CORE} or cores)
            ca = federation.ca if tls else None
            with operator(federation.url, federation.token_file, ca) as calls:
                yield Served(federation, calls, Process(federation.processes["server"].pid))
    finally:
        os.sched_setaffinity(0, cores)
        shutil.rmtree(folder, ignore_errors=True)


async def enrol(database: str, calls: Operator, count: int, attributes: Mapping[str, Any]) -> list[Member]:
    """Put active clients into a new population of the server's first tenant; return them in order of number."""
    schema = {name: "string" if isinstance(value, str) else "number" for name, value in attributes.items()}
    population = calls.call("POST", "/populations", {"name": POPULATION, "attributes": schema})["id"]
    keys = [Ed25519PrivateKey.generate() for _ in range(count)]
    newcomers = [
        Newcomer(None, key.public_key().public_bytes_raw(), attributes, VERSION, consent=True, state="active")
        for key in keys
    ]
    store = await Store.open(database, migrate=False)
    try:
        async with store.transaction() as rows:
            await rows.clients.add_many(population, newcomers, at=time.time())
        async with store.reading() as rows:
            clients = await rows.clients.numbered(population, np.arange(count))
    finally:
        await store.close()
    return [Member(client.id, client.number, key) for client, key in zip(clients, keys, strict=True)]


@dataclass
class Meter:
    """What a process used in between: made at the start, asked at the end."""

    process: Process

    def __post_init__(self) -> None:
        self.process.forget_peak()
        self._before = self.process.cpu_seconds(), time.perf_counter(), self.process.resident()

    def figures(self, calls: int) -> dict[str, float]:
        """Return processor time a call in milliseconds, the share of a core, and memory in megabytes."""
        cpu, began, before = self._before
        used = self.process.cpu_seconds() - cpu
        return {
            "cpu_ms_a_call": 1000 * used / max(1, calls),
            "core_share": used / (time.perf_counter() - began),
            "rss_before_mb": before / 1e6,
            "rss_peak_mb": self.process.peak() / 1e6,
        }
