"""What a client keeps on disk: its key, who it is, what it reported, and the rows that are its own between rounds.

Every change is one rename after the bytes are on disk, so that a process that is killed anywhere finds one of two whole
states. A report is written before its first byte leaves and is sent from there until the server has acknowledged it, so
no assignment is ever answered twice with different bytes. The next rows become current when the server says that the
report was included.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from hansa.client.records import Id, Identity, Outcome, Pending, Report
from hansa.client.room import Room
from hansa.core.errors import RefusedError, RunError
from hansa.core.killpoints import reached
from hansa.core.layout import Array

KEY: Final = "key.pem"
NEXT_KEY: Final = "next-key.pem"
IDENTITY: Final = "identity.json"
PENDING: Final = "pending"
REPORTS: Final = "reports.json"
NEWEST: Final = "newest.json"
"""Of the reports that are not kept any more: the newest round and attempt of each run and kind."""
SEED: Final = "split-seed"
OWN_METRICS: Final = "own_metrics.jsonl"
DECLINED: Final = "declined.jsonl"
_LOCK: Final = "lock"
_NEW: Final = ".new"
_KEPT_REPORTS: Final = 64
_KEPT_NEWEST: Final = 4096
_KEPT_MODELS: Final = 2
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class StateFolder:
    """A client's folder, for one process at a time. Raises RunError where it cannot be used, or is open to others."""

    def __init__(self, path: Path, most: int | None = None) -> None:
        self.path = path.expanduser().absolute()
        self.room = Room(self.path, most)
        with self.using():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _refuse_open(self.path)
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                raise _unusable(self.path, "another client works in it", "End that one, or name another.") from None
            for name in ("rows", "models", "jobs"):
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
            self._sweep()

    def close(self) -> None:
        """Let another process use the folder."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def key(self) -> Ed25519PrivateKey:
        """Return the client's key, made at the first call."""
        path = self.path / KEY
        if not path.exists():
            self._write_key(path, Ed25519PrivateKey.generate())
        return self._read_key(path)

    def _write_key(self, path: Path, key: Ed25519PrivateKey) -> None:
        self._write(path, [key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())])

    def _read_key(self, path: Path) -> Ed25519PrivateKey:
        with self.using():
            _refuse_open(path)
            try:
                read = load_pem_private_key(path.read_bytes(), password=None)
            except ValueError:
                read = None
        if not isinstance(read, Ed25519PrivateKey):
            raise _unusable(path, "it holds no Ed25519 key", "Restore it, or enrol anew with an empty folder.")
        return read

    def next_key(self, *, make: bool) -> Ed25519PrivateKey | None:
        """Return the key that is to take the key's place: one that was begun with, or made now if wanted."""
        path = self.path / NEXT_KEY
        if not path.exists() and make:
            self._write_key(path, Ed25519PrivateKey.generate())
        return self._read_key(path) if path.exists() else None

    def take_next_key(self) -> None:
        """Put the next key in the key's place."""
        with self.using():
            (self.path / NEXT_KEY).replace(self.path / KEY)
            sync_folder(self.path)

    def split_seed(self) -> bytes:
        """Return the seed by which this site tells test from training examples, made at the first call."""
        path = self.path / SEED
        if not path.exists():
            self._write(path, [secrets.token_bytes(32)])
        with self.using():
            return path.read_bytes()

    def identity(self) -> Identity | None:
        """Return who the client is, or None before it is enrolled."""
        read = self._read_json(IDENTITY)
        if read is None:
            return None
        keys = {key: base64.b64decode(value) for key, value in read.pop("server_keys").items()}
        return Identity(**read, server_keys=keys)

    def save_identity(self, identity: Identity) -> None:
        """Keep who the client is."""
        keys = {key: base64.b64encode(value).decode() for key, value in identity.server_keys.items()}
        self._write_json(IDENTITY, {**asdict(identity), "server_keys": keys})

    def pending(self) -> Pending | None:
        """Return the report that is to be sent, if there is one."""
        path = self.path / PENDING
        with self.using():
            if not path.exists():
                return None
            with path.open("rb") as file:
                head = file.readline()
                read = json.loads(head)
        return Pending(Id(**read["id"]), read["sha256"], path, len(head), int(read["size"]))

    def write_pending(self, assignment: Id, content: bytes, sha256: str, rows: Mapping[str, Array]) -> Pending:
        """Put a report, and the rows that become current if it is included, on disk."""
        self.write_rows(assignment, rows)
        head = json.dumps({"id": asdict(assignment), "sha256": sha256, "size": len(content)}).encode() + b"\n"
        self._write(self.path / PENDING, [head, content])
        return Pending(assignment, sha256, self.path / PENDING, len(head), len(content))

    def write_rows(self, assignment: Id, rows: Mapping[str, Array]) -> None:
        """Put the rows that become current if an assignment's report is included on disk."""
        if rows and assignment.kind == "training":
            import safetensors.numpy  # noqa: PLC0415 - few plans keep anything with their clients

            self._write(self._next_rows(assignment), [safetensors.numpy.save(dict(rows))])
            reached("client.rows-written")

    def acknowledged(self, pending: Pending, outcome: Outcome) -> None:
        """Note that a report has arrived (or was refused for good), and forget its bytes."""
        others = [report for report in self.reports() if report.id != pending.id]
        self._save_reports([*others, Report(pending.id, pending.sha256, outcome)])
        reached("client.report-noted")
        if outcome != "open":
            self._next_rows(pending.id).unlink(missing_ok=True)
        pending.file.unlink(missing_ok=True)

    def reports(self) -> list[Report]:
        """Return the last reports, oldest first."""
        read = self._read_json(REPORTS) or []
        return [Report(Id(**each["id"]), each["sha256"], each["outcome"]) for each in read]

    def answered(self, assignment: Id) -> bool:
        """Return whether the client has already reported for an assignment, or for a newer one that it forgot."""
        newest = (self._read_json(NEWEST) or {}).get(f"{assignment.run}/{assignment.kind}", [-1, -1])
        old = [assignment.round, assignment.attempt] <= newest
        return old or any(report.id == assignment for report in self.reports())

    def open_report(self) -> Report | None:
        """Return the oldest report whose outcome is not known."""
        return next((report for report in self.reports() if report.outcome == "open"), None)

    def learned(self, assignment: Id, outcome: Outcome) -> None:
        """Make the rows of an included report current, or drop them; then note the outcome."""
        following = self._next_rows(assignment)
        with self.using():
            if outcome == "included" and following.exists():
                following.replace(self._current_rows(assignment.run))
                sync_folder(following.parent)
            else:
                following.unlink(missing_ok=True)
        reached("client.rows-current")
        self._save_reports(
            [replace(each, outcome=outcome) if each.id == assignment else each for each in self.reports()]
        )

    def rows(self, run: str) -> dict[str, Array]:
        """Return the client's current rows of a run; none before its first included round."""
        path = self.rows_file(run)
        if path is None:
            return {}
        with self.using():
            import safetensors.numpy  # noqa: PLC0415 - few plans keep anything with their clients

            return dict(safetensors.numpy.load(path.read_bytes()))

    def rows_file(self, run: str) -> Path | None:
        """Return the file of the client's current rows of a run, if there are any."""
        path = self._current_rows(run)
        return path if path.exists() else None

    def job(self, sha256: str) -> Path:
        """Return where a job's descriptor is kept."""
        return self.path / "jobs" / _named(sha256)

    def save_job(self, sha256: str, content: bytes) -> None:
        """Keep a job's descriptor."""
        self._write(self.job(sha256), [content])

    def model(self, sha256: str) -> Path:
        """Return where a model is kept, and let go of all but the last ones."""
        kept = self.path / "models"
        wanted = kept / _named(sha256)
        with self.using():
            others = [path for path in kept.iterdir() if path.name.removesuffix(".part") != sha256]
            others.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
            for path in others[_KEPT_MODELS - 1 :]:
                path.unlink(missing_ok=True)
        return wanted

    def note(self, name: str, line: Mapping[str, Any]) -> None:
        """Append a line to one of the site's own records."""
        with self.using():
            descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(json.dumps(dict(line), sort_keys=True).encode() + b"\n")

    def read_json(self, name: str) -> Any:
        """Return what a file of the folder holds, or None where there is none."""
        return self._read_json(name)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file of the folder, as it is."""
        self._write(self.path / name, [content])

    def write_json(self, name: str, content: Any) -> None:
        """Write a file of the folder."""
        self._write_json(name, content)

    def _next_rows(self, assignment: Id) -> Path:
        return self.path / "rows" / f"{assignment.run}.{assignment.kind}-{assignment.round}-{assignment.attempt}.next"

    def _current_rows(self, run: str) -> Path:
        return self.path / "rows" / f"{run}.current"

    def _save_reports(self, reports: list[Report]) -> None:
        forgotten = reports[:-_KEPT_REPORTS]
        if forgotten:
            newest: dict[str, list[int]] = self._read_json(NEWEST) or {}
            for each in forgotten:
                of = f"{each.id.run}/{each.id.kind}"
                newest[of] = max(newest.pop(of, [-1, -1]), [each.id.round, each.id.attempt])
            self._write_json(NEWEST, dict(list(newest.items())[-_KEPT_NEWEST:]))
        dropped = [each for each in forgotten if each.outcome == "open"]
        self._write_json(REPORTS, [asdict(each) for each in reports[-_KEPT_REPORTS:]])
        for each in dropped:  # nobody told what became of it in so many reports
            self._next_rows(each.id).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what a process that was killed had begun to write, and next rows of which no report tells."""
        for folder in (self.path, self.path / "rows", self.path / "jobs"):
            for path in folder.glob(f"*{_NEW}"):
                path.unlink()
        for path in self.path.glob("work-*"):
            shutil.rmtree(path)
        told = [report.id for report in self.reports() if report.outcome == "open"]
        pending = self.pending()
        summed = self._read_json("sum/head.json")
        going_on = [*([pending.id] if pending else []), *([Id(**summed["id"])] if summed else [])]
        known = {self._next_rows(each) for each in (*told, *going_on)}
        for path in (self.path / "rows").glob("*.next"):
            if path not in known:
                path.unlink()

    def _read_json(self, name: str) -> Any:
        path = self.path / name
        with self.using():
            try:
                return json.loads(path.read_bytes())
            except FileNotFoundError:
                return None
            except ValueError:
                raise _unusable(path, "it is no JSON", "Restore it from a backup, or enrol anew.") from None

    def _write_json(self, name: str, content: Any) -> None:
        self._write(self.path / name, [json.dumps(content, indent=1).encode()])

    def _write(self, path: Path, chunks: Iterable[bytes]) -> None:
        """Write a file that only its owner reads, on disk before it has its name."""
        new = path.with_name(path.name + _NEW)
        with self.using():
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with os.fdopen(os.open(new, flags, 0o600), "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
            sync_folder(path.parent)

    @contextmanager
    def using(self) -> Iterator[None]:
        """Turn what goes wrong with the folder into RunError."""
        try:
            yield
        except OSError as error:
            raise _unusable(self.path, error.strerror or str(error), "Mend that, or name another folder.") from error


def _refuse_open(path: Path) -> None:
    """Raise RunError for a path that others may enter or read, or that is not this user's."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise _unusable(path, "it is a symbolic link", "Name the folder itself.")
    if status.st_uid != os.geteuid():
        raise _unusable(path, "it belongs to another user", "Run as its owner, or name another.")
    if status.st_mode & 0o077:
        mode = f"its mode is {stat.S_IMODE(status.st_mode):o}, so that others may enter"
        raise _unusable(path, mode, f"Close it: chmod -R go= {path}")


def _named(sha256: str) -> str:
    if not _SHA256.fullmatch(sha256):
        raise RefusedError(
            "HANSA-REQUEST-INVALID",
            rule="What is fetched is named by its SHA-256, 64 hexadecimal digits.",
            found="The server named something else.",
            action="Tell the operator of the server.",
        )
    return sha256


def sync_folder(path: Path) -> None:
    """Bring a folder's names to disk, where the file system can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(path: Path, why: str, action: str) -> RunError:
    return RunError(
        "HANSA-CLIENT-FOLDER",
        rule="A client keeps its key and state in a folder of its own that nobody else may enter.",
        found=f"{path}: {why}.",
        action=action,
    )
