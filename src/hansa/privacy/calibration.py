"""Settings for a budget: the least noise, the most rounds, the smallest cohort.

Everything is a search on a lattice (multiples of a step, or whole numbers) for where a monotone condition begins to
hold. What is returned was itself tried and holds; the lattice's neighbour on the other side was tried and does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hansa.core.errors import HansaError
from hansa.core.privacy import Adjacency
from hansa.privacy.accounting import Composition, charged

STEP: Final = 1e-4
"""Noise multipliers are multiples of it."""

MOST_NOISE: Final = 1e6
MOST_ROUNDS: Final = 10**7
MOST_CLIENTS: Final = 10**9


def noise_for(
    epsilon: float, *, delta: float, adjacency: Adjacency, composition: Callable[[float], Composition]
) -> float:
    """Return the smallest noise multiplier, a multiple of 0.0001, whose charged epsilon is at most ``epsilon``.

    ``composition`` gives the events of a noise multiplier. Raises HansaError where 1,000,000 is not enough.
    """
    _check(epsilon)

    def holds(steps: int) -> bool:
        return charged(composition(_multiplier(steps)), delta=delta, adjacency=adjacency)[0] <= epsilon

    steps = smallest(holds, round(MOST_NOISE / STEP), start=round(1 / STEP))
    if steps is None:
        raise _unreachable(f"No noise multiplier up to {MOST_NOISE:,.0f} costs as little as epsilon {epsilon:g}.")
    return _multiplier(steps)


def rounds_for(epsilon: float, *, delta: float, adjacency: Adjacency, composition: Callable[[int], Composition]) -> int:
    """Return the largest number of rounds whose charged epsilon is at most ``epsilon``, up to 10,000,000.

    ``composition`` gives the events of so many rounds. Raises HansaError where not even one round fits.
    """
    _check(epsilon)

    def overdraws(rounds: int) -> bool:
        return charged(composition(rounds), delta=delta, adjacency=adjacency)[0] > epsilon

    first = smallest(overdraws, MOST_ROUNDS)
    if first == 1:
        raise _unreachable(f"Not even one round costs as little as epsilon {epsilon:g}.")
    return MOST_ROUNDS if first is None else first - 1


def cohort_for(  # noqa: PLR0913 - a utility, a budget, and what costs it
    standard_deviation: float,
    *,
    clip_norm: float,
    epsilon: float,
    delta: float,
    adjacency: Adjacency,
    composition: Callable[[float, int], Composition],
    limit: int = MOST_CLIENTS,
) -> int:
    """Return the smallest cohort whose mean update may have noise of this standard deviation in each entry.

    The mean is the noised sum divided by the cohort's size, and so the noise multiplier is ``standard_deviation`` x
    size / ``clip_norm``; ``composition`` gives the events of (noise multiplier, size), whose charged epsilon is at most
    ``epsilon``. ``limit``: the largest size, for one that of the population.

    Raises HansaError where the limit is too small.
    """
    _check(epsilon)
    if not (standard_deviation > 0 and clip_norm > 0):
        found = f"They are {standard_deviation:g} and {clip_norm:g}."
        raise _invalid("A standard deviation to reach and a clip norm are above 0.", found)

    def holds(size: int) -> bool:
        events = composition(standard_deviation * size / clip_norm, size)
        return charged(events, delta=delta, adjacency=adjacency)[0] <= epsilon

    size = smallest(holds, limit)
    if size is None:
        asked = f"epsilon {epsilon:g} and a standard deviation of {standard_deviation:g}"
        raise _unreachable(f"{limit:,} clients are too few for {asked}.")
    return size


def smallest(holds: Callable[[int], bool], limit: int, *, start: int = 1) -> int | None:
    """Return the smallest number from 1 to ``limit`` for which a monotone condition holds, or None.

    Doubles from ``start`` until it holds, then halves the interval, whose lower end does not hold.
    """
    low, high = 0, min(start, limit)
    while not holds(high):
        if high == limit:
            return None
        low, high = high, min(2 * high, limit)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _multiplier(steps: int) -> float:
    return round(steps * STEP, 4)


def _check(epsilon: float) -> None:
    if not epsilon > 0:
        raise _invalid("An epsilon to reach is above 0.", f"It is {epsilon:g}.")


def _invalid(rule: str, found: str) -> HansaError:
    return HansaError("HANSA-PRIVACY-INVALID", rule=rule, found=found, action="Correct it.")


def _unreachable(found: str) -> HansaError:
    return HansaError(
        "HANSA-PRIVACY-UNREACHABLE",
        rule="A calibrated setting meets what is asked.",
        found=found,
        action="Allow a larger epsilon, fewer rounds or participations, or a larger population.",
    )
