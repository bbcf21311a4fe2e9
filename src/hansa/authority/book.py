"""What an authority keeps on disk of the beacons that it drew: one for each task, for good.

SQLite, each draw one transaction that is on disk before the value leaves. A copy that is older than a draw would draw
for its task once more.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILE: Final = "authority.sqlite"
_PRAGMAS: Final = ("journal_mode = DELETE", "synchronous = EXTRA")
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS draws (
    task BLOB PRIMARY KEY, server BLOB NOT NULL, advertised BLOB NOT NULL, value BLOB NOT NULL, round BLOB NOT NULL,
    attempt INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS draws_of_a_round ON draws (round, attempt);
"""


@dataclass(frozen=True)
class Drawn:
    """What was drawn for a task: for which server, for the set of which clients (its SHA-256), and the value."""

    server: bytes
    advertised: bytes
    value: bytes


class Book:
    """An authority's file. One thread uses it at a time."""

    def __init__(self, folder: Path) -> None:
        self._on = sqlite3.connect(folder / FILE, isolation_level=None, check_same_thread=False)
        (folder / FILE).chmod(0o600)
        for pragma in _PRAGMAS:
            self._on.execute(f"PRAGMA {pragma}")
        self._on.executescript(_TABLES)

    def close(self) -> None:
        """Close the file."""
        self._on.close()

    def drawn(self, task: bytes) -> Drawn | None:
        """Return what was drawn for a task, by its hash."""
        row = self._on.execute("SELECT server, advertised, value FROM draws WHERE task = ?", (task,)).fetchone()
        return None if row is None else Drawn(*row)

    def attempts(self, round_: bytes, without: int) -> int:
        """Return for how many attempts of a round something was drawn, beside one of them."""
        (count,) = self._on.execute(
            "SELECT COUNT(DISTINCT attempt) FROM draws WHERE round = ? AND attempt != ?", (round_, without)
        ).fetchone()
        return int(count)

    def add(self, task: bytes, drawn: Drawn, round_: bytes, attempt: int) -> None:
        """Keep what was drawn for a task. Raises sqlite3.Error where there is something already, or no room."""
        row = (task, drawn.server, drawn.advertised, drawn.value, round_, attempt)
        self._on.execute("INSERT INTO draws VALUES (?, ?, ?, ?, ?, ?)", row)
