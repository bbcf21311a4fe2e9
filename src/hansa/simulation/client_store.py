"""What a simulation keeps for its clients: participation, and the rows of their states.

A round touches the cohort's rows only. Its new rows are written to a journal first and become current when the
checkpoint that names the journal has been renamed into place. Applying a journal twice does no harm, so a run that
was killed in between applies it again. States are read and written by calls: on a full disk a call reports an error,
where a mapping kills the process. Participation is mapped, and its file's room is reserved when it is made.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hansa.core.layout import Array, Int64s
from hansa.reporting.run_folder import storing


class RowFile:
    """Rows of one shape and type in a file; what was never written takes no room."""

    def __init__(self, path: Path, row: Array) -> None:
        self.shape = row.shape
        self.dtype = row.dtype
        self.row_bytes = row.nbytes
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def read(self, places: Int64s) -> Array:
        """Return the rows at some places: [n, ...]. A place that was never written has zeros."""
        rows = np.zeros((len(places), *self.shape), dtype=self.dtype)
        for row, place in zip(rows, places.tolist(), strict=True):
            found = os.pread(self._file, self.row_bytes, place * self.row_bytes)
            row.reshape(-1).view(np.uint8)[: len(found)] = np.frombuffer(found, dtype=np.uint8)
        return rows

    def write(self, places: Int64s, rows: Array) -> None:
        """Write rows to their places. Raises OSError where the disk is full."""
        for row, place in zip(np.asarray(rows, dtype=self.dtype), places.tolist(), strict=True):
            content, offset = memoryview(row.tobytes()), place * self.row_bytes
            while content:
                written = os.pwrite(self._file, content, offset)
                content, offset = content[written:], offset + written

    def flush(self) -> None:
        """Bring the rows to disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class ClientStore:
    """Participation and states of a population, in a folder; the ``EligibleView`` of a simulation.

    ``first_rows`` holds what a client keeps before it took part for the first time: name -> one row.
    """

    def __init__(self, folder: Path, names: Sequence[str], first_rows: Mapping[str, Array]) -> None:
        self.folder = folder
        self.names = names
        self.first_rows = first_rows
        with storing(folder.parent):
            self._participation = _reserved(folder / "participation.npy", len(names))
            self._states = {name: RowFile(folder / f"{name}.rows", row) for name, row in first_rows.items()}

    @property
    def size(self) -> int:
        """The number of clients."""
        return len(self.names)

    def ids(self, ordinals: Int64s) -> list[str]:
        """Return the names of clients."""
        return [self.names[ordinal] for ordinal in ordinals.tolist()]

    def last_round(self, ordinals: Int64s) -> Int64s:
        """Return the last round in which each took part, or -1: int64 [n]."""
        last, times = self._participation[ordinals].T
        return np.where(times == 0, -1, last)

    def times(self, ordinals: Int64s) -> Int64s:
        """Return how often each took part: int64 [n]."""
        return np.array(self._participation[ordinals, 1])

    def states(self, ordinals: Int64s) -> dict[str, Array]:
        """Return the current rows of clients: name -> [n, ...]."""
        if not self._states:
            return {}
        fresh = self.times(ordinals) == 0
        rows = {name: stored.read(ordinals) for name, stored in self._states.items()}
        for name, stored in rows.items():
            stored[fresh] = self.first_rows[name]
        return rows

    def journal(self, round_number: int, cohort: Int64s) -> Journal:
        """Return an empty journal for a round's cohort."""
        return Journal(self, round_number, cohort)

    def apply(self, round_number: int, cohort: Int64s, times: Int64s) -> None:
        """Make the rows of a closed round's journal current, then drop the journal."""
        with storing(self.folder.parent):
            self._apply(round_number, cohort, times)

    def _apply(self, round_number: int, cohort: Int64s, times: Int64s) -> None:
        for name, stored in self._states.items():
            path = self.journal_path(round_number, name)
            if path.exists():
                journal = RowFile(path, self.first_rows[name])
                for position in range(len(cohort)):
                    here = slice(position, position + 1)
                    stored.write(cohort[here], journal.read(np.arange(len(cohort))[here]))
                journal.close()
                stored.flush()
        self._participation[cohort] = np.stack([np.full(len(cohort), round_number), times], axis=1)
        self._participation.flush()
        for path in self.folder.glob("*.journal"):
            path.unlink()

    def journal_path(self, round_number: int, name: str) -> Path:
        """Return where a round's next rows of one state are written."""
        return self.folder / f"{round_number:08d}-{name}.journal"

    def close(self) -> None:
        """Close the files of the states."""
        for stored in self._states.values():
            stored.close()


def _reserved(path: Path, clients: int) -> np.memmap[Any, Any]:
    """Return a mapped array of (last round, times) for each client: int64 [clients, 2], zeros if it is new."""
    if not path.exists():
        unfinished = path.with_suffix(".new")
        np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.int64, shape=(clients, 2)).flush()
        with unfinished.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, unfinished.stat().st_size)
        unfinished.replace(path)
    return np.lib.format.open_memmap(path, mode="r+", dtype=np.int64, shape=(clients, 2))


class Journal:
    """The next rows of one round's cohort, by cohort position, and how often each client then took part."""

    def __init__(self, store: ClientStore, round_number: int, cohort: Int64s) -> None:
        self.cohort = cohort
        self._run = store.folder.parent
        self.times = store.times(cohort) + 1
        self._rows = {
            name: RowFile(store.journal_path(round_number, name), row) for name, row in store.first_rows.items()
        }

    def write(self, position: int, states: Mapping[str, Any]) -> None:
        """Write the next rows of consecutive cohort positions."""
        with storing(self._run):
            for name, rows in self._rows.items():
                rows.write(np.arange(position, position + len(states[name])), states[name])

    def close(self) -> None:
        """Bring the rows to disk, before the checkpoint that names them, and close the files."""
        with storing(self._run):
            for rows in self._rows.values():
                rows.flush()
                rows.close()
