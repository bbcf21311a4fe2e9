"""Who took part when: a log of cohorts, to which a round adds its own, and a table made of it when it is asked for.

A round costs as many bytes as its cohort has numbers, one after another. The table, (last round, times) for every
client, is needed by samplers and client states that look back; a plan without them never makes it. A log that has
grown far beyond the table is folded into one on disk.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa.core.layout import Int64s
from hansa.reporting.run_folder import bring_to_disk
from hansa.simulation.row_file import write_all

LOG: Final = "cohorts.log"
_HEAD: Final = 2
"""Numbers before a cohort's: the round and how many there are."""
_SHORTEST: Final = 64 << 20
"""Bytes of a log that is never worth folding."""
_TABLES: Final = 4
"""A longer log is folded when it has so many times the bytes of the table."""

Table = NDArray[np.int32]


class Participation:
    """Participation of a population up to a round; later records in the log do not count."""

    def __init__(self, folder: Path, clients: int) -> None:
        self.folder = folder
        self.clients = clients
        self.round = 0
        self._table: Table | None = None
        self._file = os.open(folder / LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def restore(self, round_number: int) -> None:
        """Go back, or on, to a closed round: what the log says of later ones is cut off."""
        self.round = round_number
        self._table = None
        log = self._log()
        os.ftruncate(self._file, 8 * _end(log, round_number))

    def record(self, round_number: int, cohort: Int64s) -> None:
        """Write a cohort to the log. It counts once it is applied."""
        content = np.concatenate([[round_number, len(cohort)], cohort]).astype("<i8")
        write_all(self._file, content, None)

    def apply(self, round_number: int, cohort: Int64s) -> None:
        """Count a recorded cohort: its round has closed."""
        self.round = round_number
        if self._table is not None:
            self._table[cohort, 0] = round_number
            self._table[cohort, 1] += 1

    def last_round(self, ordinals: Int64s) -> Int64s:
        """Return the last round in which each took part, or -1: int64 [n]."""
        last, times = np.asarray(self._looked_up()[ordinals], dtype=np.int64).T
        return np.where(times == 0, -1, last)

    def times(self, ordinals: Int64s) -> Int64s:
        """Return how often each took part: int64 [n]."""
        return np.asarray(self._looked_up()[ordinals, 1], dtype=np.int64)

    def flush(self) -> None:
        """Bring the log to disk."""
        os.fsync(self._file)

    def fold(self) -> None:
        """Fold a long log into a table on disk. The current round's checkpoint must be there."""
        if os.fstat(self._file).st_size <= max(_SHORTEST, _TABLES * 8 * self.clients):
            return
        older, path = self._tables(), self._path(self.round)
        unfinished = path.with_suffix(".new")
        with unfinished.open("wb") as file:
            self._looked_up().astype("<i4", copy=False).tofile(file)
        bring_to_disk(unfinished)
        unfinished.replace(path)
        bring_to_disk(self.folder)
        os.ftruncate(self._file, 0)
        for number in set(older) - {self.round}:
            self._path(number).unlink()

    def close(self) -> None:
        """Close the log."""
        os.close(self._file)

    def _looked_up(self) -> Table:
        """Return (last round, times) of every client: int32 [clients, 2]; pages of zeros take no memory."""
        if self._table is None:
            base = max((number for number in self._tables() if number <= self.round), default=0)
            table = np.zeros((self.clients, 2), dtype=np.int32)
            if base:
                table[:] = np.fromfile(self._path(base), dtype="<i4").reshape(self.clients, 2)
            log, start = self._log(), 0
            stop = _end(log, self.round)
            while start < stop:
                number, first = int(log[start]), start + _HEAD
                start = first + int(log[start + 1])
                if number > base:
                    table[log[first:start], 0] = number
                    table[log[first:start], 1] += 1
            self._table = table
        return self._table

    def _log(self) -> Int64s:
        return np.fromfile(self.folder / LOG, dtype="<i8").astype(np.int64, copy=False)

    def _path(self, number: int) -> Path:
        return self.folder / f"cohorts-{number:012d}.table"

    def _tables(self) -> list[int]:
        """Return the rounds up to which tables on disk count."""
        return [int(path.stem.partition("-")[2]) for path in self.folder.glob("cohorts-*.table")]


def _end(log: Int64s, round_number: int) -> int:
    """Return where the records of whole cohorts up to a round end."""
    end = 0
    while end + _HEAD <= len(log) and log[end] <= round_number:
        after = end + _HEAD + int(log[end + 1])
        if after > len(log):
            break
        end = after
    return end
