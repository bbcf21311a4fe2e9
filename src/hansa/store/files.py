"""Files that are on disk when a call returns."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows, where a server is not run in production
    fcntl = None  # type: ignore[assignment]


def sync(descriptor: int) -> None:
    """Wait until what was written to a descriptor is on disk, through the disk's own cache too."""
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync stops at the disk's cache
    if full is None:
        os.fsync(descriptor)
    else:  # pragma: no cover - macOS
        fcntl.fcntl(descriptor, full)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    if os.name == "nt":  # pragma: no cover - Windows has no such thing
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: Path, within: Path) -> None:
    """Make a folder and those above it that are missing, down from ``within``, each for the owner alone and on disk."""
    if folder == within or folder.is_dir():
        return
    make_folders(folder.parent, within)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    sync_folder(folder.parent)


def write_new(path: Path, content: bytes) -> None:
    """Write a file that only its owner may read, and sync it; its name may not be on disk. Refuses to overwrite."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        write_all(descriptor, content)
        sync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of some bytes."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
