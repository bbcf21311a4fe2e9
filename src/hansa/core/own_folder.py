"""Temporary folders that do not outlive their owner, whatever ends it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final

LOCK: Final = "lock"
"""A file that the owner holds locked for as long as it lives."""
_NEW_SECONDS: Final = 60.0
"""A folder that is younger may not be locked yet."""


class OwnFolder:
    """A new folder for this user alone, removed when it is closed, dropped or the program ends.

    A process that is killed removes nothing: the next folder of the same prefix in the same place does it.
    """

    def __init__(self, prefix: str, place: Path | None = None) -> None:
        """Make a folder in ``place``, or where temporary files go."""
        place = Path(tempfile.gettempdir()) if place is None else place
        _remove_left(place, prefix)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        self._remove = weakref.finalize(self, _remove, self.path, lock)

    def close(self) -> None:
        """Remove the folder."""
        self._remove()


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _remove_left(place: Path, prefix: str) -> None:
    """Remove folders whose lock nobody holds."""
    for folder in place.glob(f"{prefix}*"):
        with suppress(OSError):  # another user's, or removed meanwhile
            if time.time() - folder.stat().st_mtime < _NEW_SECONDS:
                continue
            with (folder / LOCK).open("r+b") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
