"""Which clients called lately: eight bytes a client, however many there are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hansa.core.layout import Int64s


@dataclass
class Callers:
    """When the clients of each population last called this replica, by number in the population."""

    times: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """How many of a population have called since this replica started."""

    def called(self, population: str, number: int, now: float) -> None:
        """Take note that a client called."""
        times = self.times.get(population)
        if times is None or number >= len(times):
            grown = np.zeros(max(1024, 2 * number))
            if times is not None:
                grown[: len(times)] = times
            times = self.times[population] = grown
        if times[number] == 0.0:
            self.counts[population] = self.counts.get(population, 0) + 1
        times[number] = now

    def recent(self, population: str, since: float) -> Int64s:
        """Return the numbers of the clients that called since a moment, in order: int64 [n]."""
        times = self.times.get(population)
        return np.zeros(0, dtype=np.int64) if times is None else np.flatnonzero(times >= since).astype(np.int64)

    def last(self, population: str, number: int) -> float | None:
        """Return when a client last called this replica; None where it has not since the replica started."""
        times = self.times.get(population)
        return None if times is None or number >= len(times) else float(times[number]) or None

    def count(self, population: str) -> int:
        """Return how many clients of a population have called since this replica started."""
        return self.counts.get(population, 0)
