"""What a decryptor keeps on disk: keys of rounds, tasks it stands ready for, answers, and whose vectors are in a sum.

SQLite, each step one transaction that is on disk when it returns. A key of a round is overwritten as it is deleted,
with the answer: a disk that is stolen later opens nothing of the round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hansa.serving import books

FILE: Final = "decryptor.sqlite"
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS keys (
    nonce BLOB PRIMARY KEY, public BLOB NOT NULL UNIQUE, secret BLOB NOT NULL, at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS tasks (
    hash BLOB PRIMARY KEY, server BLOB NOT NULL, first BLOB, batch BLOB, request BLOB, answer BLOB, at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS spent (id BLOB PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Kept:
    """What is kept of one task. ``first`` and ``batch`` are records of its machine, until there is an answer."""

    server: bytes
    """The key of the server that asked."""
    first: bytes | None
    batch: bytes | None
    request: bytes | None
    """SHA-256 of the request that was answered."""
    answer: bytes | None


class Book:
    """A decryptor's file. One thread uses it at a time."""

    def __init__(self, folder: Path) -> None:
        self._on = books.opened(folder / FILE, _TABLES)

    def close(self) -> None:
        """Close the file."""
        self._on.close()

    def __contains__(self, name: object) -> bool:
        """Say whether something is used up: a task's hash, or a client's vector in a round."""
        row = self._on.execute(
            "SELECT 1 FROM spent WHERE id = :name UNION ALL SELECT 1 FROM tasks WHERE hash = :name", {"name": name}
        )
        return row.fetchone() is not None

    def public_of(self, nonce: bytes) -> bytes | None:
        """Return the public key that was made for a call."""
        row = self._on.execute("SELECT public FROM keys WHERE nonce = ?", (nonce,)).fetchone()
        return None if row is None else bytes(row[0])

    def secret_of(self, public: bytes) -> bytes | None:
        """Return the secret of a public key that no task has used."""
        row = self._on.execute("SELECT secret FROM keys WHERE public = ?", (public,)).fetchone()
        return None if row is None else bytes(row[0])

    def add_key(self, nonce: bytes, public: bytes, secret: bytes, at: float) -> None:
        """Keep a key until a task uses it."""
        self._on.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (nonce, public, secret, at))

    def task(self, name: bytes) -> Kept | None:
        """Return what is kept of a task, by its hash."""
        row = self._on.execute(
            "SELECT server, first, batch, request, answer FROM tasks WHERE hash = ?", (name,)
        ).fetchone()
        return None if row is None else Kept(*row)

    def begin(self, name: bytes, server: bytes, public: bytes, first: bytes, at: float) -> None:
        """Keep a task that the decryptor stands ready for; its key serves no other."""
        with self._transaction():
            self._on.execute("DELETE FROM keys WHERE public = ?", (public,))
            self._on.execute(
                "INSERT INTO tasks (hash, server, first, at) VALUES (?, ?, ?, ?)", (name, server, first, at)
            )

    def check(self, name: bytes, batch: bytes) -> None:
        """Keep the one batch of a task."""
        self._on.execute("UPDATE tasks SET batch = ? WHERE hash = ?", (batch, name))

    def answer(self, name: bytes, request: bytes, answer: bytes, uses: Iterable[bytes], at: float) -> None:
        """Keep the one answer of a task and what it uses up; forget its key and the seeds that the key opens."""
        with self._transaction():
            self._on.executemany("INSERT INTO spent VALUES (?)", [(each,) for each in uses])
            self._on.execute(
                "UPDATE tasks SET first = NULL, batch = NULL, request = ?, answer = ?, at = ? WHERE hash = ?",
                (request, answer, at, name),
            )

    def forget(self, before: float) -> None:
        """Forget keys that nobody has asked with since, and answers that were given before; what is spent stays."""
        with self._transaction():
            self._on.execute("DELETE FROM keys WHERE at < ?", (before,))
            self._on.execute(
                "UPDATE tasks SET first = NULL, batch = NULL, answer = NULL WHERE at < ?"
                " AND (first IS NOT NULL OR answer IS NOT NULL)",
                (before,),
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._on.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._on.execute("ROLLBACK")
            raise
        self._on.execute("COMMIT")
