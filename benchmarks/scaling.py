"""How Hansa's cost follows the cohort, the population and the workers, on clients made from their numbers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.results import Grid, why_failed
from benchmarks.running import Measured, measure_plan
from benchmarks.suite import in_short

COHORTS: Final = (10, 30, 100, 300, 1000, 3000)
POPULATIONS: Final = (1_000, 10_000, 100_000, 1_000_000)
WORKERS: Final = (1, 2)
PAIRS: Final = 5
_COHORT: Final = 100
"""Clients of a round where the population or the workers vary."""
_UPDATES: Final = 20_000
"""Client updates of a run, about."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Scaling:
    """The curves. ``population_key`` is the setting of the plan that says how many clients there are."""

    plan: Path
    population_key: str
    executor: str
    repetitions: int
    say: Say

    def run(self, curves: Sequence[str]) -> dict[str, Any]:
        """Return the measured curves that were asked for."""
        known = {"cohort": self.cohort, "population": self.population, "workers": self.workers}
        return {name: known[name]() for name in curves}

    def cohort(self) -> dict[str, Any]:
        """Vary the cohort; the plan's own population stays."""
        return self._curve({f"{size:,}": self._words(size) for size in COHORTS}, COHORTS)

    def population(self) -> dict[str, Any]:
        """Vary the population at one cohort; then compare the smallest with the largest in interleaved pairs."""
        points = {f"{size:,}": [*self._words(_COHORT), *self._set(self.population_key, size)] for size in POPULATIONS}
        curve = self._curve(points, [_COHORT] * len(points))
        ends = [next(iter(points.items())), next(reversed(points.items()))]
        works = all(not run["failure"] for label, _ in ends for run in curve["points"][label])
        pairs = [self._pair(ends, number) for number in range(PAIRS)] if works else []
        shares = [large / small for small, large in pairs if small and large]
        return {**curve, "pairs": pairs, "median_share": statistics.median(shares) if shares else None}

    def workers(self) -> dict[str, Any]:
        """Vary how many workers compute at once."""
        points = {str(count): [*self._words(_COHORT), "--workers", str(count)] for count in WORKERS}
        return self._curve(points, [_COHORT] * len(points))

    def _pair(self, ends: Sequence[tuple[str, list[str]]], number: int) -> tuple[float, float]:
        """Measure both ends, the first of them first in every other pair; return both speeds (0 if failed)."""
        speeds: dict[str, float] = {}
        for label, words in ends if number % 2 == 0 else reversed(ends):
            speeds[label] = self._measure(f"pair {number + 1}, {label}", words, _COHORT).updates_per_second
        small, large = (speeds[label] for label, _ in ends)
        return small, large

    def _curve(self, points: dict[str, list[str]], cohorts: Sequence[int]) -> dict[str, Any]:
        """Measure every point in each repetition; return the runs of each point."""
        runs: dict[str, list[dict[str, Any]]] = {label: [] for label in points}
        for _ in range(self.repetitions):
            for (label, words), cohort in zip(points.items(), cohorts, strict=True):
                runs[label].append(self._measure(label, words, cohort).as_json())
        return {"points": runs}

    def _measure(self, label: str, words: Sequence[str], cohort: int) -> Measured:
        done = measure_plan(label, words, cohort)
        self.say(f"{label}: {in_short(done)}")
        return done

    def _words(self, cohort: int) -> list[str]:
        rounds = min(300, max(10, _UPDATES // cohort))
        chosen = ["--executor", self.executor] if self.executor else []
        return [str(self.plan), *chosen, *self._set("cohort.size", cohort), *self._set("rounds", rounds)]

    @staticmethod
    def _set(key: str, value: int) -> list[str]:
        return ["--set", f"{key}={value}"]


def grids(result: dict[str, Any]) -> list[Grid]:
    """Return a table for each curve."""
    return [_grid(name, result[name]) for name in ("cohort", "population", "workers") if name in result]


def _grid(name: str, curve: dict[str, Any]) -> Grid:
    rows: list[tuple[str, ...]] = []
    reasons: dict[str, str] = {}
    for label, runs in curve["points"].items():
        good = [run for run in runs if not run["failure"]]
        if not good:
            rows.append((label, "failed", "", "", "", ""))
            reasons[label] = runs[0]["failure"]
            continue
        middle = {key: statistics.median(run[key] for run in good) for key in _FIGURES}
        round_ms = 1000 * statistics.median(seconds for run in good for seconds in run["round_seconds"])
        speed, first = f"{middle['updates_per_second']:,.0f}", f"{middle['first_round']:.2f}"
        rows.append((label, speed, f"{round_ms:,.1f}", first, *(f"{middle[key] / 1e6:,.0f}" for key in _FIGURES[2:])))
    note = ""
    if curve.get("median_share") is not None:
        note = (
            f"At the largest population, updates a second are {curve['median_share']:.1%} of those at the smallest "
            f"(median of {len(curve['pairs'])} interleaved pairs)."
        )
    columns = (name, "updates/s", "ms a round", "first round, s", "RSS, MB", "PSS, MB")
    return Grid(f"Hansa by {name}", columns, rows, (note + why_failed(reasons)).strip())


_FIGURES: Final = ("updates_per_second", "first_round", "peak_rss", "peak_pss")
