"""A service's book: a file of SQLite for its owner only, in which what a step wrote is on disk when it returns."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

_PRAGMAS: Final = ("journal_mode = DELETE", "synchronous = EXTRA", "secure_delete = ON")
"""The last: what is deleted is overwritten."""


def opened(path: Path, tables: str) -> sqlite3.Connection:
    """Return a book, with the tables made that it lacks. One thread uses it at a time. Raises sqlite3.Error."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    path.chmod(0o600)
    try:
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        connection.executescript(tables)
    except sqlite3.Error:
        connection.close()
        raise
    return connection
