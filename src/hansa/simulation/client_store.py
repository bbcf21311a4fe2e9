"""What a simulation keeps for its clients: participation, and the rows of their states.

A round touches the cohort's rows only. A client's state has two rows in two files, which take turns: its next row is
written where the current one is not, and which is current follows from how often the client took part. So a round
closes, for every client at once, when its checkpoint is renamed into place; a round that was not closed has changed
nothing. States are read and written by calls: on a full disk a call reports an error, where a mapping kills the
process.

At most once a second what has closed is brought to disk, files before the checkpoint that counts on them. A row that
the checkpoint on disk counts on is not written over before a later one is there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from hansa.core.errors import RunError
from hansa.core.layout import Array, Int64s
from hansa.reporting.run_folder import METRICS, bring_to_disk, storing
from hansa.simulation.checkpoint import boot, latest, make_durable
from hansa.simulation.participation import Participation
from hansa.simulation.row_file import RowFile

_SECONDS: Final = 1.0
"""Rounds of so many seconds, at most, may be lost by a power cut."""


class ClientStore:
    """Participation and states of a population, in a folder; the ``EligibleView`` of a simulation.

    ``first_rows`` holds what a client keeps before it took part for the first time: name -> one row.
    """

    def __init__(self, folder: Path, names: Sequence[str], first_rows: Mapping[str, Array]) -> None:
        self.folder = folder
        self.names = names
        self.first_rows = first_rows
        self._on_disk = 0
        self._brought = -np.inf
        with storing(folder.parent):
            self._participation = Participation(folder, len(names))
            self._states = {
                name: tuple(RowFile(folder / f"{name}.{turn}.rows", row) for turn in range(2))
                for name, row in first_rows.items()
            }

    @property
    def size(self) -> int:
        """The number of clients."""
        return len(self.names)

    @property
    def on_disk(self) -> int:
        """The round up to which everything is on disk, where a power cut does not lose it."""
        return self._on_disk

    def ids(self, ordinals: Int64s) -> list[str]:
        """Return the names of clients."""
        return [self.names[ordinal] for ordinal in ordinals.tolist()]

    def last_round(self, ordinals: Int64s) -> Int64s:
        """Return the last round in which each took part, or -1: int64 [n]."""
        return self._participation.last_round(ordinals)

    def times(self, ordinals: Int64s) -> Int64s:
        """Return how often each took part: int64 [n]."""
        return self._participation.times(ordinals)

    def states(self, ordinals: Int64s) -> dict[str, Array]:
        """Return the current rows of clients: name -> [n, ...]."""
        if not self._states:
            return {}
        times = self.times(ordinals)
        rows = {name: np.broadcast_to(row, (len(ordinals), *row.shape)).copy() for name, row in self.first_rows.items()}
        for turn in range(2):
            here = np.flatnonzero((times > 0) & (times % 2 == turn))
            for name, turns in self._states.items():
                turns[turn].read(ordinals[here], rows[name], here)
        return rows

    def journal(self, round_number: int, cohort: Int64s) -> Journal:
        """Return what takes the next rows of a round's cohort."""
        if self._states and (self.last_round(cohort) > self._on_disk).any():
            self.bring_to_disk()
        return Journal(self, round_number, cohort)

    def write(self, ordinals: Int64s, times: Int64s, states: Mapping[str, Array]) -> None:
        """Write the rows of clients that will then have taken part so often."""
        with storing(self.folder.parent):
            for turn in range(2):
                here = np.flatnonzero(times % 2 == turn)
                for name, turns in self._states.items():
                    turns[turn].write(ordinals[here], states[name], here)

    def record(self, round_number: int, cohort: Int64s) -> None:
        """Note a cohort, before the checkpoint of its round."""
        with storing(self.folder.parent):
            self._participation.record(round_number, cohort)

    def apply(self, round_number: int, cohort: Int64s) -> None:
        """Make the rows of a closed round's journal current, and bring it to disk if it is time."""
        self._participation.apply(round_number, cohort)
        if time.monotonic() - self._brought >= _SECONDS or not boot():
            self.bring_to_disk()
            with storing(self.folder.parent):
                self._participation.fold()

    def restore(self, round_number: int) -> None:
        """Go on from a closed round; what was noted of later ones is dropped."""
        with storing(self.folder.parent):
            self._participation.restore(round_number)
        self.bring_to_disk()

    def bring_to_disk(self) -> None:
        """Bring every closed round to disk, where a power cut does not lose it."""
        run = self.folder.parent
        with storing(run):
            if (path := latest(self.folder)) is not None:
                for stored in self._files():
                    stored.flush()
                self._participation.flush()
                bring_to_disk(run / METRICS)
                bring_to_disk(run)
                make_durable(self.folder, path)
                self._brought = time.monotonic()
        self._on_disk = self._participation.round

    def close(self) -> None:
        """Bring closed rounds to disk, as far as it takes them, and close the files."""
        with suppress(RunError):
            self.bring_to_disk()
        self._participation.close()
        for stored in self._files():
            stored.close()

    def _files(self) -> list[RowFile]:
        return [stored for turns in self._states.values() for stored in turns]


class Journal:
    """The next rows of one round's cohort, by cohort position. They become current when the round has closed."""

    def __init__(self, store: ClientStore, round_number: int, cohort: Int64s) -> None:
        self.cohort = cohort
        self._store = store
        self._round = round_number
        self._times = store.times(cohort) + 1 if store.first_rows else None

    def write(self, position: int, states: Mapping[str, Any]) -> None:
        """Write the next rows of consecutive cohort positions."""
        if self._times is None:
            return
        count = len(next(iter(states.values())))
        here = slice(position, position + count)
        self._store.write(self.cohort[here], self._times[here], states)

    def close(self) -> None:
        """Note who took part, before the checkpoint that makes the rows current."""
        self._store.record(self._round, self.cohort)
