"""What an authority keeps on disk of the beacons that it drew: one for each task, for good.

SQLite, each draw one transaction that is on disk before the value leaves. A copy that is older than a draw would draw
for its task once more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hansa.serving import books

FILE: Final = "authority.sqlite"
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS draws (
    task BLOB PRIMARY KEY, server BLOB NOT NULL, advertised BLOB NOT NULL, value BLOB NOT NULL, round BLOB NOT NULL,
    clients BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS draws_of_a_round ON draws (round);
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
        self._on = books.opened(folder / FILE, _TABLES)

    def close(self) -> None:
        """Close the file."""
        self._on.close()

    def drawn(self, task: bytes) -> Drawn | None:
        """Return what was drawn for a task, by its hash."""
        row = self._on.execute("SELECT server, advertised, value FROM draws WHERE task = ?", (task,)).fetchone()
        return None if row is None else Drawn(*row)

    def clients(self, round_: bytes) -> list[bytes]:
        """Return for whom something was drawn in a round: of each draw, what :meth:`add` was given."""
        found = self._on.execute("SELECT clients FROM draws WHERE round = ?", (round_,))
        return [clients for (clients,) in found]

    def add(self, task: bytes, drawn: Drawn, round_: bytes, clients: bytes) -> None:
        """Keep what was drawn for a task. Raises sqlite3.Error where there is something already, or no room.

        ``clients`` are marks of those who advertised, joined, which say of nobody who that is without its key.
        """
        row = (task, drawn.server, drawn.advertised, drawn.value, round_, clients)
        self._on.execute("INSERT INTO draws VALUES (?, ?, ?, ?, ?, ?)", row)
