"""Backups of a server on SQLite and a local folder, made while it works: the database, then the blobs, but no keys.

Whoever finds a backup reads no update: the keys are not in it, and those of closed rounds exist no more. To restore
needs the key provider as it is, for the server's signing key. A round that was open when the backup was made is
abandoned and tried again, for its updates may have come later than the backup.

Clients remember more than a restored server: each answers an attempt once, also one that the server knows nothing of
any more. So the attempts that follow a restore have numbers that none had before: seconds since 2025, which no count of
attempts overtakes, for a round is tried again after a second at the earliest.

What was spent of a privacy budget after the backup was made is unknown to it, and so are the rows of correlated noise
that were released: no scope of the ledger spends until an owner has set its limit anew.

On PostgreSQL, back up with pg_dump (or the archive of the write-ahead log), and buckets by their versioning; after a
restore run :func:`after_restore`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from hansa.core.errors import StoreError
from hansa.store import tables
from hansa.store.failures import of_disk
from hansa.store.files import sync_folder, write_new
from hansa.store.schema import current, parse_url
from hansa.store.sqlite import private_file
from hansa.store.store import Store

_DATABASE: Final = "hansa.sqlite"
_BLOBS: Final = "blobs"
_CONTENTS: Final = "backup.json"
_FORMAT: Final = 1
_PAGES: Final = 4096
_EPOCH: Final = 1_735_689_600
"""2025-01-01, UTC."""
ATTEMPTS: Final = "attempts"
"""The note of a run that says above which number its attempts are."""


def back_up(url: str, blobs: Path | None, folder: Path, *, now: float) -> int:
    """Write a backup into a folder that is new or empty; return its size in bytes.

    Raises StoreError for a database that is not SQLite, for a folder that holds something, and when the disk is full.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite":
        raise _refused(
            "A database on PostgreSQL is backed up with pg_dump.", "pg_dump --format=custom, then restore it."
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(folder.iterdir()):
        raise _refused(f"{folder} holds something already.", "Name a new folder.")
    try:
        _copy_database(Path(str(parsed.database)), folder / _DATABASE)
        if blobs is not None:
            _copy_blobs(blobs, folder / _BLOBS)
        files: dict[str, Any] = {
            name: {"size": path.stat().st_size, "sha256": _sha256(path)} for name, path in _files(folder)
        }
        contents = {"format": _FORMAT, "schema": current(parsed).number, "made_at": now, "files": files}
        write_new(folder / _CONTENTS, json.dumps(contents, indent=1).encode())
        sync_folder(folder)
    except OSError as error:
        raise of_disk(error) or error from error
    return sum(int(each["size"]) for each in files.values())


def check(folder: Path) -> list[str]:
    """Return what is wrong with a backup, in sentences; an empty list says that it is whole and can be restored."""
    try:
        contents: dict[str, Any] = json.loads((folder / _CONTENTS).read_bytes())
        files = contents["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{folder} is no whole backup: {_CONTENTS} is missing or cannot be read."]
    if contents.get("format") != _FORMAT or contents.get("schema", 0) > tables.SCHEMA:
        return ["The backup was made by a newer version."]
    found = dict(_files(folder))
    problems = [f"{name} is missing." for name in sorted(files.keys() - found.keys())]
    present = sorted(files.keys() & found.keys())
    problems += [f"{name} was changed." for name in present if _sha256(found[name]) != files[name]["sha256"]]
    if not problems:
        problems += _problems_of_database(found[_DATABASE])
    return problems


async def restore(folder: Path, url: str, blobs: Path | None, *, now: float) -> int:
    """Put a backup where a server will look for it; return how many open rounds were abandoned.

    Raises StoreError for a backup that is not whole, and where there is a database or there are blobs already.
    """
    problems = check(folder)
    if problems:
        raise _refused(problems[0], "Use another backup.")
    target = Path(str(parse_url(url).database))
    journal = target.with_name(target.name + "-wal")
    taken = [
        str(path) for path in (target, journal, blobs) if path is not None and path.exists() and not _is_empty(path)
    ]
    if taken:
        raise _refused(f"There is something at {taken[0]} already.", "Move it away first.")
    private_file(target)
    shutil.copyfile(folder / _DATABASE, target)
    if blobs is not None and (folder / _BLOBS).is_dir():
        shutil.copytree(folder / _BLOBS, blobs, dirs_exist_ok=True)
    store = await Store.open(url)
    try:
        return await after_restore(store, now=now)
    finally:
        await store.close()


async def after_restore(store: Store, *, now: float) -> int:
    """Give up all rounds that are open, and number attempts as none was before; return how many rounds.

    To be called once a database was put back by whatever means, before a server works with it.
    """
    async with store.transaction() as rows:
        opened = await rows.rounds.all_open()
        for round_ in opened:
            why = "the server was restored from a backup"
            await rows.rounds.change(replace(round_, state="abandoned", closed_at=now, report={"why": why}))
            assigned = await rows.rounds.assigned(round_.id)
            await rows.rounds.set_fates(round_.id, {each.client: "lost" for each in assigned if each.fate is None})
            run = await rows.runs.get(round_.id.run)
            if run is not None:
                detail = {"kind": round_.id.kind, "round": round_.id.round, "attempt": round_.id.attempt, "why": why}
                await rows.events.add("round.abandoned", tenant=run.tenant, at=now, run=run.id, detail=detail)
        for run in await rows.runs.going_on():
            await rows.runs.change(replace(run, notes=_restored(run.notes, now)))
        await rows.ledger.restored(now)
    return len(opened)


def _restored(notes: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Return a run's notes after a restore: nobody trains, no update is held, attempts have fresh numbers."""
    after = {**notes, ATTEMPTS: max(int(now) - _EPOCH, int(notes.get(ATTEMPTS, 0)) + 1)}
    if "buffer" in notes:
        after["buffer"] = {**notes["buffer"], "training": {}, "held": {}}
    return after


def _copy_database(source: Path, target: Path) -> None:
    """Copy a database while others write to it."""
    private_file(target)
    with contextlib.closing(sqlite3.connect(source)) as live, contextlib.closing(sqlite3.connect(target)) as copy:
        live.backup(copy, pages=_PAGES, sleep=0.01)
        copy.execute("PRAGMA journal_mode=DELETE").close()


def _copy_blobs(source: Path, target: Path) -> None:
    """Copy blobs; one that is removed meanwhile is none that the backup needs."""

    def copy(of: str, to: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(of, to)

    with contextlib.suppress(shutil.Error):
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".incoming"), copy_function=copy)


def _problems_of_database(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        said = [str(row[0]) for row in database.execute("PRAGMA integrity_check")]
        broken = len(database.execute("PRAGMA foreign_key_check").fetchall())
    problems = [] if said == ["ok"] else [f"The database is damaged: {said[0]}."]
    return problems + ([f"{broken} rows of the database refer to others that are missing."] if broken else [])


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != _CONTENTS:
            yield path.relative_to(folder).as_posix(), path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(each.name != ".incoming" for each in path.iterdir())


def _refused(found: str, action: str) -> StoreError:
    rule = "A backup is written to a new folder, and restored where there is nothing yet."
    return StoreError("HANSA-SERVER-SETTINGS", rule=rule, found=found, action=action)
