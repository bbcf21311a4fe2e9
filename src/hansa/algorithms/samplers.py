"""Cohort samplers: each draws ordinals in O(cohort), whatever the population.

``min-separation`` does so while enough of the population is rested; else it looks through the population once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
from annotated_types import Ge, Gt, Le

from hansa.core.layout import Int64s
from hansa.core.pieces import EligibleView
from hansa.core.schema import Doc
from hansa.core.streams import Coins

_FRUITLESS_DRAWS: Final = 64
"""Candidates, as multiples of twice the cohort, before the whole population is looked through once."""
_SPARE: Final = 1.25
_SPARE_CANDIDATES: Final = 16
"""Candidates that are looked at beyond those that are missing, by the share of those before that had rested."""
_AT_ONCE: Final = 1 << 16
"""Clients looked at together then: what is held are those that rested."""


@dataclass(frozen=True, kw_only=True)
class Full:
    """Every eligible client, every round."""

    def draw(self, eligible: EligibleView, round_number: int, coins: Coins) -> Int64s:  # noqa: ARG002 - the sampler protocol
        """Return all ordinals in order: int64 [population]."""
        return np.arange(eligible.size, dtype=np.int64)

    def expected_size(self, population: int) -> float:
        """Return the population."""
        return float(population)

    def problems(self, population: int, rounds: int) -> list[tuple[str, str]]:  # noqa: ARG002 - the sampler protocol
        """Return nothing: any population will do."""
        return []


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """A fixed number of clients, each set equally likely, without replacement."""

    size: Annotated[int, Ge(1), Doc("number of clients in a cohort")]

    def draw(self, eligible: EligibleView, round_number: int, coins: Coins) -> Int64s:  # noqa: ARG002 - the sampler protocol
        """Return ``size`` distinct ordinals: int64 [size]."""
        return coins.distinct(eligible.size, min(self.size, eligible.size))

    def expected_size(self, population: int) -> float:
        """Return the size, or the population where that is smaller."""
        return float(min(self.size, population))

    def problems(self, population: int, rounds: int) -> list[tuple[str, str]]:  # noqa: ARG002 - the sampler protocol
        """Refuse a cohort larger than the population."""
        return _too_large(self.size, population)


@dataclass(frozen=True, kw_only=True)
class Poisson:
    """Each client by its own coin, so that the size of a cohort varies and may be 0."""

    rate: Annotated[float, Gt(0), Le(1), Doc("probability that a client is picked")]

    def draw(self, eligible: EligibleView, round_number: int, coins: Coins) -> Int64s:  # noqa: ARG002 - the sampler protocol
        """Return the picked ordinals in order: int64 [cohort].

        Gaps between picked ordinals are geometric, so the cost is that of the cohort (Devroye 1986,
        "Non-uniform random variate generation", section XII.1).
        """
        if self.rate == 1.0:
            return np.arange(eligible.size, dtype=np.int64)
        picked: list[Int64s] = []
        last = -1
        block = 16 + int(1.2 * self.rate * eligible.size)
        while last < eligible.size:
            with np.errstate(over="ignore"):  # a gap beyond all numbers is beyond the population
                gaps = np.floor(np.log1p(-coins.uniform(block)) / np.log1p(-self.rate))
            ordinals = last + np.cumsum(np.minimum(gaps, eligible.size) + 1).astype(np.int64)
            picked.append(ordinals[ordinals < eligible.size])
            last = int(ordinals[-1])
        return np.concatenate(picked)

    def expected_size(self, population: int) -> float:
        """Return rate x population."""
        return self.rate * population

    def problems(self, population: int, rounds: int) -> list[tuple[str, str]]:  # noqa: ARG002 - the sampler protocol
        """Return nothing: any population will do."""
        return []


@dataclass(frozen=True, kw_only=True)
class MinSeparation:
    """A fixed number of clients of those that rested long enough and took part less than they may.

    A client that took part in round t is eligible again in round t + ``rounds``. Rounds come out
    smaller than ``size`` where too few clients are left.
    """

    size: Annotated[int, Ge(1), Doc("number of clients in a cohort")]
    rounds: Annotated[int, Ge(1), Doc("a client takes part at most once in so many consecutive rounds")]
    max_participations: Annotated[int | None, Ge(1), Doc("a client takes part at most so often in a run")] = None

    def draw(self, eligible: EligibleView, round_number: int, coins: Coins) -> Int64s:
        """Return up to ``size`` distinct ordinals of rested clients: int64 [cohort].

        Candidates are drawn until the cohort is full; where most of the population is resting, one
        pass over the population takes the place of endless draws.
        """
        chosen: dict[int, None] = {}
        looked, rested, most = 0, 0, (_FRUITLESS_DRAWS * 2 * self.size if eligible.size else 0)
        while (
            looked < most
        ):  # one sequence of candidates, however it is cut: what is asked of the view is what is needed
            missing = _SPARE * (self.size - len(chosen)) * (looked + 1) / (rested + 1) + _SPARE_CANDIDATES
            candidates = coins.integers(eligible.size, min(math.ceil(missing), 2 * self.size, most - looked))
            found = candidates[self._rested(eligible, candidates, round_number)].tolist()
            looked, rested = looked + len(candidates), rested + len(found)
            for ordinal in found:
                chosen.setdefault(ordinal)
                if len(chosen) == self.size:
                    return np.fromiter(chosen, dtype=np.int64)
        taken = np.fromiter(chosen, dtype=np.int64, count=len(chosen))
        left = [taken[:0]]
        for start in range(0, eligible.size, _AT_ONCE):
            some = np.arange(start, min(start + _AT_ONCE, eligible.size), dtype=np.int64)
            left.append(some[self._rested(eligible, some, round_number)])
        rest = np.setdiff1d(np.concatenate(left), taken, assume_unique=True)
        more = rest[coins.distinct(len(rest), min(self.size - len(chosen), len(rest)))]
        return np.concatenate([taken, more])

    def _rested(self, eligible: EligibleView, ordinals: Int64s, round_number: int) -> np.ndarray:
        last = eligible.last_round(ordinals)
        rested = (last < 0) | (round_number - last >= self.rounds)
        if self.max_participations is not None:
            rested &= eligible.times(ordinals) < self.max_participations
        return rested

    def expected_size(self, population: int) -> float:
        """Return the size, or the population where that is smaller."""
        return float(min(self.size, population))

    def problems(self, population: int, rounds: int) -> list[tuple[str, str]]:
        """Refuse what cannot fill its cohorts: separation and participations need enough clients."""
        found = _too_large(self.size, population)
        needed = self.size * min(self.rounds, rounds)
        if not found and needed > population:
            sentence = f"cohorts of {self.size}, {self.rounds} rounds apart, need {needed} clients, but there are "
            found.append(("rounds", f"{sentence}{population}; lower size or rounds."))
        most = None if self.max_participations is None else self.max_participations * population
        if most is not None and self.size * rounds > most:
            sentence = f"{rounds} rounds of {self.size} clients need {self.size * rounds} participations, but "
            found.append(
                ("max_participations", f"{sentence}{population} clients allow {most}; raise it or lower size.")
            )
        return found


def _too_large(size: int, population: int) -> list[tuple[str, str]]:
    if size <= population:
        return []
    return [("size", f"a cohort of {size} needs as many clients, but there are {population}; lower size.")]
