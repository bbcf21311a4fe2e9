"""What a simulation keeps for its clients: participation, and the rows of their states.

Files are memory-mapped and sparse; a round touches the cohort's rows only. A round's new rows are written to a
journal first and become current when the checkpoint that names the journal has been renamed into place. Applying a
journal twice does no harm, so a run that was killed in between applies it again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hansa.core.layout import Array, Int64s


class ClientStore:
    """Participation and states of a population, in a folder. Implements ``EligibleView`` for its owner."""

    def __init__(self, folder: Path, names: Sequence[str], first_rows: Mapping[str, Array]) -> None:
        self.folder = folder
        self.names = names
        self.first_rows = first_rows
        folder.mkdir(parents=True, exist_ok=True)
        self._last = mapped(folder / "last_round.npy", np.dtype(np.int32), (len(names),))
        self._times = mapped(folder / "times.npy", np.dtype(np.int32), (len(names),))
        self._states = {
            name: mapped(folder / f"state-{name}.npy", row.dtype, (len(names), *row.shape), sparse=True)
            for name, row in first_rows.items()
        }

    @property
    def size(self) -> int:
        """The number of clients."""
        return len(self.names)

    def ids(self, ordinals: Int64s) -> list[str]:
        """Return the names of clients."""
        return [self.names[ordinal] for ordinal in ordinals.tolist()]

    def last_round(self, ordinals: Int64s) -> Int64s:
        """Return the last round in which each took part, or -1: int64 [n]; 0 in the file means never."""
        last = self._last[ordinals].astype(np.int64)
        return np.where(last == 0, -1, last)

    def times(self, ordinals: Int64s) -> Int64s:
        """Return how often each took part: int64 [n]."""
        return self._times[ordinals].astype(np.int64)

    def states(self, ordinals: Int64s) -> dict[str, Array]:
        """Return the current rows of clients; one that never took part has the first row: name -> [n, ...]."""
        fresh = self._times[ordinals] == 0
        rows = {name: np.array(stored[ordinals]) for name, stored in self._states.items()}
        for name, stored in rows.items():
            stored[fresh] = self.first_rows[name]
        return rows

    def journal(self, round_number: int, cohort: Int64s) -> Journal:
        """Return an empty journal for a round's cohort."""
        return Journal(self, round_number, cohort, self.times(cohort) + 1)

    def apply(self, round_number: int, cohort: Int64s, times: Int64s) -> None:
        """Make the rows of a closed round's journal current, then drop the journal."""
        for name, stored in self._states.items():
            path = self._journal_path(round_number, name)
            if path.exists() and len(cohort):
                rows = np.load(path, mmap_mode="r")
                _write_rows(self.folder / f"state-{name}.npy", stored, cohort, rows)
        self._last[cohort] = round_number
        self._times[cohort] = times
        self._last.flush()
        self._times.flush()
        for path in self.folder.glob("journal-*"):
            path.unlink()

    def _journal_path(self, round_number: int, name: str) -> Path:
        return self.folder / f"journal-{round_number:08d}-{name}.npy"


class Journal:
    """The next rows of one round's cohort, by cohort position."""

    def __init__(self, store: ClientStore, round_number: int, cohort: Int64s, times: Int64s) -> None:
        self.cohort = cohort
        self.times = times
        self._rows = {
            name: mapped(
                store._journal_path(round_number, name),  # noqa: SLF001 - a journal is a part of its store
                row.dtype,
                (len(cohort), *row.shape),
            )
            for name, row in store.first_rows.items()
            if len(cohort)
        }

    def write(self, position: int, states: Mapping[str, Array]) -> None:
        """Write the next rows of consecutive cohort positions."""
        for name, rows in self._rows.items():
            rows[position : position + len(states[name])] = states[name]

    def flush(self) -> None:
        """Bring the rows to disk, before the checkpoint that names them."""
        for rows in self._rows.values():
            rows.flush()


def mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...], *, sparse: bool = False) -> np.memmap[Any, Any]:
    """Return a memory-mapped array in a file, made of zeros if the file is new.

    Its blocks are reserved at once, so that a full disk is an OSError here and not a crash at a later write; a
    sparse file (rows that may never be used) is written with :func:`_write_rows` instead.
    """
    exists = path.exists()
    array = np.lib.format.open_memmap(path, mode="r+" if exists else "w+", dtype=dtype, shape=shape)
    if not exists and not sparse:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _write_rows(path: Path, stored: np.memmap[Any, Any], ordinals: Int64s, rows: Array) -> None:
    """Write rows of a sparse mapped file by write calls, which report a full disk."""
    with path.open("r+b", buffering=0) as file:
        for ordinal, row in zip(ordinals.tolist(), rows, strict=True):
            file.seek(stored.offset + ordinal * row.nbytes)
            file.write(np.ascontiguousarray(row).tobytes())
        os.fsync(file.fileno())
