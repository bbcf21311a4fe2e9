"""Backup and restore of a server with SQLite and blobs in a folder.

The database is copied first, as of one instant while the server goes on, then the blobs that it may name. Keys are not
part of it, on purpose: who takes the backup reads no update. They belong in a backup of their own, kept elsewhere.
Updates of rounds that were open are of no use after a restore: those rounds are given up and tried again.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from hansa.core.errors import StoreError
from hansa.server.settings import ServerSettings
from hansa.store.schema import parse_url

_DATABASE: Final = "hansa.sqlite"
_BLOBS: Final = "blobs"
_DONE: Final = "complete"
"""The file that is written last: a backup without it was cut off."""


def back_up(settings: ServerSettings, folder: Path) -> int:
    """Copy database and blobs into a new folder; return the bytes. Raises StoreError."""
    database, blobs = database_file(settings), blob_folder(settings)
    if not database.is_file():
        raise _unfit(f"There is no database {database}.", "Start the server once, or correct the settings.")
    try:
        folder.mkdir(mode=0o700, parents=True)
        source = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        with closing(source), closing(sqlite3.connect(folder / _DATABASE)) as target:
            source.backup(target)
        copied = sum(_copy(path, folder / _BLOBS / path.relative_to(blobs)) for path in _files(blobs))
        (folder / _DONE).touch(mode=0o600)
        os.sync()
    except FileExistsError:
        raise _unfit(f"{folder} exists.", "Name a folder that does not.") from None
    except (OSError, sqlite3.Error) as error:
        raise _unfit(f"It could not be written: {error}.", "Free some room, and back up into another folder.") from None
    return copied + (folder / _DATABASE).stat().st_size


def restore(settings: ServerSettings, folder: Path) -> None:
    """Put a backup where the settings say; nothing is overwritten. The server must not run. Raises StoreError."""
    database, blobs = database_file(settings), blob_folder(settings)
    if not (folder / _DONE).is_file():
        raise _unfit(
            f"{folder} is no backup, or one that was cut off.", "Name one that `hansa server backup` finished."
        )
    if database.exists() or next(_files(blobs), None) is not None:
        raise _unfit(f"{database} or blobs in {blobs} exist.", "Move them away: a restore overwrites nothing.")
    try:
        settings.make_folder()
        for path in _files(folder / _BLOBS):
            _copy(path, blobs / path.relative_to(folder / _BLOBS))
        _copy(folder / _DATABASE, database)
        os.sync()
    except OSError as error:
        raise _unfit(
            f"It could not be written: {error}.", "Free some room, remove what was written, try again."
        ) from None


def database_file(settings: ServerSettings) -> Path:
    """Return the file of the database. Raises StoreError where it is no file."""
    url = parse_url(settings.database_url)
    if url.get_backend_name() != "sqlite":
        raise _unfit("The database is PostgreSQL.", "Use pg_dump and pg_restore, and copy the blobs after the dump.")
    return Path(str(url.database))


def blob_folder(settings: ServerSettings) -> Path:
    """Return the folder of the blobs. Raises StoreError where they are elsewhere."""
    if "://" in settings.blobs_url and not settings.blobs_url.startswith("file://"):
        raise _unfit("The blobs are in an object store.", "Use its own versioning or replication.")
    return Path(settings.blobs_url.removeprefix("file://"))


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder; none where it does not exist. Those that are still being written are left out."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield path


def _copy(source: Path, target: Path) -> int:
    """Copy one file for its owner only; return its bytes, or 0 where it was removed meanwhile."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        return 0
    target.chmod(0o600)
    return target.stat().st_size


def _unfit(found: str, action: str) -> StoreError:
    rule = "A backup is a folder with the database and the blobs of a server."
    return StoreError("HANSA-SERVER-STORAGE", rule=rule, found=found, action=action)
