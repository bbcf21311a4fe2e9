"""Buffered schedules in simulation: clients that start and end at any time, and steps made of their reports.

Whose reports make a step does not depend on any value, so nothing is trained before a buffer is full. Then its updates
are computed, those of one model version together. Models of versions that a client may still train from are files.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np

from hansa.algorithms.schedule import Buffer, Contribution
from hansa.core.layout import Floats
from hansa.core.nouns import Assignment, ServerState
from hansa.core.streams import Coins
from hansa.reporting.run_folder import replace_file, storing
from hansa.simulation.client_store import ClientStore
from hansa.simulation.devices import HOUR
from hansa.simulation.work import DRAWS, WAIT, Cost, Opened, Part, stalled

_CANDIDATES: Final = 8
"""Clients that are drawn at once for one that is wanted."""
_SPARE: Final = 4
"""Models that are kept longer than they are needed, before the disk is visited for their sake."""
_FRUITLESS: Final = 100
"""Clients without a report that counts, for each that trains at the same time, before the run ends."""


@dataclass(frozen=True, order=True)
class End:
    """When a client's work ends: in order of time, then of starts."""

    at: float
    start: int
    client: int
    lost: bool


class ModelVersions:
    """The models of past versions, a file each in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, version: int, model: Floats) -> None:
        """Bring a model to disk."""
        with storing(self.folder.parent):
            replace_file(self._path(version), model.tobytes())

    def model(self, version: int) -> Floats:
        """Return a model: float32 [d]."""
        return np.fromfile(self._path(version), dtype=np.float32)

    def drop_before(self, version: int, current: int, store: ClientStore) -> None:
        """Remove the models of older versions, once the checkpoint on disk does not count on them: a few at once."""
        older = [path for path in self.folder.glob("version-*.f32") if path < self._path(version)]
        if len(older) > _SPARE:
            store.bring_to_disk()
        if store.on_disk == current:
            for path in older:
                path.unlink()

    def _path(self, version: int) -> Path:
        return self.folder / f"version-{version:010d}.f32"


@dataclass
class TimedBuffers:
    """Buffers of clients with devices. When one reports or is lost, another starts from the newest version."""

    cost: Cost
    buffer: Buffer
    clock: float = 0.0
    participants: int = 0
    ends: list[End] = field(default_factory=list)

    @classmethod
    def resumed(cls, cost: Cost, version: int, notes: Mapping[str, Any]) -> TimedBuffers:
        """Return buffers that go on from the notes of a version, or begin where there are none."""
        schedule: Any = cost.prepared.plan.schedule
        ends = [End(*each[:4]) for each in notes.get("ends", [])]
        training = {each[2]: (each[4], each[1]) for each in notes.get("ends", [])}
        buffer = Buffer(schedule, version, notes.get("started", 0), training)
        return cls(cost, buffer, notes.get("clock", 0.0), notes.get("participants", 0), ends)

    def notes(self) -> dict[str, Any]:
        """Return the clock, the counts that go on, and who trains from which version until when."""
        ends = [
            [end.at, end.start, end.client, end.lost, self.buffer.training[end.client][0]] for end in sorted(self.ends)
        ]
        return {
            "clock": self.clock,
            "started": self.buffer.started,
            "participants": self.participants,
            "ends": ends,
        }

    def open(self, state: ServerState, store: ClientStore) -> Opened:
        """Return the step of the next full buffer. Raises RunError where nobody can be reached for long."""
        versions = ModelVersions(store.folder)
        versions.drop_before(self.buffer.oldest, state.round, store)
        versions.keep(state.round, state.model)
        coins = self.cost.prepared.streams.of("cohort", state.round + 1).coins()
        begun = self.buffer.started
        told = self._fill(coins)
        step = self.buffer.step()
        self.participants += int((store.times(np.array([each.client for each in step])) == 0).sum())
        parts = [
            self._part(state, store, versions, list(group)) for _, group in groupby(step, lambda each: each.version)
        ]
        return Opened(tuple(parts), self._facts(state, step, told, self.buffer.started - begun))

    def _fill(self, coins: Coins) -> dict[str, int]:
        """Play until the buffer is full; return what became of those who worked. Raises RunError if it never is."""
        told = {"reported": 0, "too_stale": 0, "dropped_out": 0}
        waits, period = 0, self.cost.fleet.devices.period_hours
        while not self.buffer.full:
            self._start(coins)
            verdict = self._advance()
            waits = waits + 1 if verdict is None and not self.ends else 0
            if verdict is not None:
                told[verdict] += 1
            if waits > 2 * HOUR * period / WAIT:
                raise stalled(
                    f"Nobody could be reached for two periods of {period:g} hours.",
                    "Widen the hours in which clients are available.",
                )
            if told["too_stale"] + told["dropped_out"] > _FRUITLESS * self.buffer.schedule.concurrency:
                raise stalled(
                    f"Of {sum(told.values())} clients that worked, {told['reported']} reported in time for "
                    f"version {self.buffer.version + 1}.",
                    "Raise schedule.max_staleness, or the hours in which clients are available, or lower their losses.",
                )
        return told

    def _start(self, coins: Coins) -> None:
        """Start clients that can be reached until as many train as may, or too few are found."""
        population = self.cost.prepared.population
        for _ in range(DRAWS):
            wanted = self._wanted
            if not wanted:
                return
            drawn = np.array(list(dict.fromkeys(coins.integers(population, _CANDIDATES * wanted).tolist())))
            able = self.cost.fleet.reachable_for(drawn, self.clock) > 0
            found = [client for client in drawn[able].tolist() if self.buffer.may_start(client)]
            clients = np.array(found[:wanted], dtype=np.int64)
            starts = np.array([self.buffer.start(client) for client in clients.tolist()], dtype=np.int64)
            ends, lost = self.cost.ends(clients, self.clock, starts)
            for end in zip(ends.tolist(), starts.tolist(), clients.tolist(), lost.tolist(), strict=True):
                heapq.heappush(self.ends, End(*end))

    @property
    def _wanted(self) -> int:
        """How many clients should be started now, of those that neither train nor wait in the buffer."""
        idle = self.cost.prepared.population - len(self.buffer.training) - len(self.buffer.held)
        return min(self.buffer.free, idle)

    def _advance(self) -> str | None:
        """Move the clock to the next end, or by a wait where clients are wanted; return what became of a report."""
        look_again = self.clock + WAIT if self._wanted else np.inf
        if not self.ends or self.ends[0].at > look_again:
            self.clock = float(look_again)
            return None
        end = heapq.heappop(self.ends)
        self.clock = max(self.clock, end.at)
        if end.lost:
            self.buffer.lose(end.client)
            return "dropped_out"
        return "reported" if self.buffer.report(end.client) == "accepted" else "too_stale"

    def _part(
        self, state: ServerState, store: ClientStore, versions: ModelVersions, group: Sequence[Contribution]
    ) -> Part:
        """Return the updates of one version, with the weights of their staleness."""
        version = group[0].version
        model = state.model if version == state.round else versions.model(version)
        cohort = np.array([each.client for each in group], dtype=np.int64)
        assignment = Assignment(version + 1, state.layout, model, cohort, store.size, state.features)
        return Part(assignment, np.array([each.weight for each in group], dtype=np.float32))

    def _facts(
        self, state: ServerState, step: Sequence[Contribution], told: Mapping[str, int], started: int
    ) -> dict[str, Any]:
        staleness = [state.round - each.version for each in step]
        return {
            "simulated_seconds": self.clock,
            "participants": self.participants,
            "selected": started,
            **told,
            "bytes_down_total": started * self.cost.bytes_down,
            "bytes_up_total": (told["reported"] + told["too_stale"]) * self.cost.bytes_up,
            "staleness_mean": fmean(staleness),
            "staleness_max": max(staleness),
            "versions": len(set(staleness)),
        }
