"""Rows in a sparse file, read and written by calls: rows that lie side by side in one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hansa.core.layout import Array, Int64s


class RowFile:
    """Rows of one shape and type in a file; what was never written takes no room."""

    def __init__(self, path: Path, row: Array) -> None:
        self.row_bytes = row.nbytes
        self.dtype = row.dtype
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self._changed = False

    def read(self, places: Int64s, rows: Array, at: Int64s) -> None:
        """Read the rows at some places [k] into ``rows[at]``. A place that was never written has zeros."""
        for place, first, count in _runs(places, at):
            view, offset = _bytes(rows[first : first + count]), place * self.row_bytes
            while len(view):
                found = os.preadv(self._file, [view], offset)
                if not found:  # past the end of the file
                    view[:] = bytes(len(view))
                    break
                view, offset = view[found:], offset + found

    def write(self, places: Int64s, rows: Array, at: Int64s) -> None:
        """Write ``rows[at]`` to some places [k]. Raises OSError where the disk is full."""
        rows = np.ascontiguousarray(rows, dtype=self.dtype)
        self._changed = True
        for place, first, count in _runs(places, at):
            write_all(self._file, rows[first : first + count], place * self.row_bytes)

    def flush(self) -> None:
        """Bring what was written to disk."""
        if self._changed:
            os.fsync(self._file)
            self._changed = False

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def write_all(file: int, content: Array, offset: int | None) -> None:
    """Write an array's bytes at an offset, or at the end (None), in as many calls as it takes. Raises OSError."""
    view = _bytes(content)
    while len(view):
        written = os.write(file, view) if offset is None else os.pwrite(file, view, offset)
        view, offset = view[written:], None if offset is None else offset + written


def _bytes(rows: Array) -> memoryview:
    return rows.reshape(-1).view(np.uint8).data


def _runs(places: Int64s, at: Int64s) -> Iterator[tuple[int, int, int]]:
    """Yield (place, position, count) of rows that are neighbours both in the file and in memory."""
    if not len(places):
        return
    cuts = np.flatnonzero((np.diff(places) != 1) | (np.diff(at) != 1)) + 1
    starts = np.concatenate([[0], cuts])
    counts = np.diff(np.concatenate([starts, [len(places)]]))
    yield from zip(places[starts].tolist(), at[starts].tolist(), counts.tolist(), strict=True)
