"""Pace steering: when a client that has nothing to do is to call again.

Source: Bonawitz et al. 2019, "Towards federated learning at scale: system design", section 2.3,
https://arxiv.org/abs/1902.01046: few clients come together soon, many are spread so that calls arrive evenly.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_JITTER = 0.25


@dataclass(frozen=True)
class Pace:
    """Seconds between calls: at least ``shortest``, at most ``longest``, and so many calls a second in all."""

    shortest: float
    longest: float
    calls_per_second: float

    def seconds(self, population: int, *, needed: int = 0, within: float | None = None) -> float:
        """Return when a client is to come back, with jitter of a quarter within the bounds.

        Where a round needs so many of the callers ``within`` some seconds, all that may be asked call in that time.
        """
        seconds = self.interval(population)
        if needed and within is not None:
            sooner = max(within / 2, population / (4 * self.calls_per_second))
            seconds = max(self.shortest, min(seconds, sooner))
        low, high = max(self.shortest, seconds * (1 - _JITTER)), min(self.longest, seconds * (1 + _JITTER))
        return random.uniform(low, high)  # noqa: S311 - spreads load, protects nobody

    def interval(self, population: int) -> float:
        """Return how many seconds pass between two calls of a client on average, where so many call."""
        return min(max(population / self.calls_per_second, self.shortest), self.longest)
