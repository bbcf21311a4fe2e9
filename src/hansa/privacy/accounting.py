"""What events cost together: the charged epsilon, which limits are about, and the reference beside it.

*Charged* comes from Renyi differential privacy. It holds for integer noise, and as a filter also where the next event
is chosen after the last was seen (Feldman and Zrnic 2021; Whitehouse et al. 2023). *Reference* is what the same events
cost if noise were a continuous Gaussian and all were declared before: the exact curve, or privacy loss distributions.
It is shown and never gates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from functools import lru_cache, reduce
from typing import Any, Final, Literal

import numpy as np

from hansa.core.errors import HansaError
from hansa.core.privacy import Adjacency
from hansa.privacy.event import (
    ORDERS,
    Event,
    FixedSizeGaussian,
    Floats,
    PoissonGaussian,
    Sampled,
    distance,
    loss_distribution,
    mean_squared,
    renyi,
    require_extra,
    rho,
    unamplified,
)

GRID: Final = 1e-4
"""Step of privacy loss distributions; losses are rounded up to it."""

FINE: Final = 50.0
"""Up to this charged epsilon the grid is as fine as that; beyond, it grows with epsilon, as memory would otherwise."""

MOST_DISTINCT: Final = 12
"""Distinct sampled events that get a privacy loss distribution each (a third of a second); more are coarsened first."""


@dataclass(frozen=True)
class Composition:
    """Events that happened or will, each with how often; equal ones are one entry."""

    counts: tuple[tuple[Event, int], ...]

    @classmethod
    def of(cls, *events: Event | tuple[Event, int]) -> Composition:
        """Return the composition of events, or of (event, count); equal events are grouped, in order of appearance."""
        grouped: Counter[Event] = Counter()
        for each in events:
            event, count = each if isinstance(each, tuple) else (each, 1)
            if count < 0:
                raise _invalid("An event happens 0 times or more.", f"A count is {count}.")
            grouped[event] += count
        return cls(tuple((event, count) for event, count in grouped.items() if count))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a composition costs at ``delta``, for one privacy unit and one adjacency.

    ``rho`` is of zero-concentrated differential privacy, None where sampling is amplified. ``order`` is the Renyi order
    that gave the charged epsilon.
    """

    epsilon_charged: float
    epsilon_reference: float
    delta: float
    rho: float | None
    order: float
    adjacency: Adjacency
    unit: str
    amplified: bool
    reference_method: Literal["exact Gaussian curve", "privacy loss distribution"]


def price(
    composition: Composition, *, delta: float, adjacency: Adjacency, unit: str, trusted_sampling: bool = False
) -> Cost:
    """Return what a composition costs.

    Without ``trusted_sampling`` nothing is gained by sampling: every unit is counted into every event. With it, who was
    drawn is secret from everybody who sees the release, the coins are independent, and a sampled event releases noise
    also where few or none were drawn; the caller answers for that.

    Raises HansaError for a delta outside (0, 1), a unit without a name, and sampling that the adjacency does not fit.
    """
    if not unit.strip():
        raise _invalid("A guarantee names its privacy unit.", "The unit is empty.")
    if not trusted_sampling:
        composition = Composition.of(*((unamplified(event), count) for event, count in composition.counts))
    epsilon, order = charged(composition, delta=delta, adjacency=adjacency)
    grid = GRID * max(1.0, epsilon / FINE)
    amplified = any(isinstance(event, Sampled) for event, _ in composition.counts)
    plain = None if amplified else sum(count * rho(event, adjacency) for event, count in composition.counts)
    return Cost(
        epsilon_charged=epsilon,
        epsilon_reference=reference(composition, delta=delta, adjacency=adjacency, grid=grid),
        delta=delta,
        rho=plain,
        order=order,
        adjacency=adjacency,
        unit=unit,
        amplified=amplified,
        reference_method="privacy loss distribution" if amplified else "exact Gaussian curve",
    )


def charged(composition: Composition, *, delta: float, adjacency: Adjacency) -> tuple[float, float]:
    """Return the charged epsilon and the Renyi order that gives it; sampled events are amplified.

    Converted by Canonne, Kamath, Steinke 2020, proposition 12: epsilon = R(a) + log(1 - 1/a) - log(delta a) / (a - 1),
    at the best of the orders a.
    """
    _check(delta, adjacency)
    if not composition.counts:
        return 0.0, 1.0
    divergences = sum(
        (count * renyi(event, adjacency) for event, count in composition.counts), start=np.zeros(len(ORDERS))
    )
    return converted(divergences, delta)


def converted(divergences: Floats, delta: float) -> tuple[float, float]:
    """Return the epsilon of Renyi divergences at :data:`ORDERS`, and the order that gives it, as :func:`charged`."""
    epsilons: Floats = divergences + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)
    best = int(np.argmin(epsilons))
    return max(0.0, float(epsilons[best])), float(ORDERS[best])


def reference(composition: Composition, *, delta: float, adjacency: Adjacency, grid: float = GRID) -> float:
    """Return the reference epsilon; sampled events are amplified."""
    _check(delta, adjacency)
    mu_squared = sum(
        count * mean_squared(event, adjacency) for event, count in composition.counts if not isinstance(event, Sampled)
    )
    sampled = coarsened(
        [(*_as_poisson(event), count) for event, count in composition.counts if isinstance(event, Sampled)]
    )
    if not sampled:
        return gaussian_epsilon(math.sqrt(mu_squared), delta)
    # A fixed-size sample is that of Poisson coins over neighbours one whole distance apart: see _as_poisson.
    fixed_size = any(isinstance(event, FixedSizeGaussian) for event, _ in composition.counts)
    if fixed_size and any(isinstance(event, PoissonGaussian) for event, _ in composition.counts):
        raise _invalid("One population is sampled in one way.", "There are Poisson and fixed-size samples.")
    neighbours: Adjacency = "add-or-remove-one" if fixed_size else adjacency
    losses = [_repeated(probability, multiplier, neighbours, grid, count) for probability, multiplier, count in sampled]
    if mu_squared:
        losses.append(_repeated(1.0, distance(neighbours) / math.sqrt(mu_squared), neighbours, grid, 1))
    return float(reduce(lambda first, second: first.compose(second), losses).get_epsilon_for_delta(delta))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon of Gaussian noise at a distance of ``mu`` standard deviations, exactly.

    The root of delta = Phi(mu/2 - eps/mu) - exp(eps) Phi(-mu/2 - eps/mu) (Balle and Wang 2018, theorem 8).
    """
    require_extra()
    from scipy.optimize import brentq  # noqa: PLC0415 - loads half a second of scipy
    from scipy.special import log_ndtr  # noqa: PLC0415 - as above

    def excess(epsilon: float) -> float:
        first = float(log_ndtr(mu / 2 - epsilon / mu))
        second = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
        return first + math.log(-math.expm1(min(second - first, -1e-300))) - math.log(delta)

    if mu == 0 or excess(0.0) <= 0:
        return 0.0
    most = mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta)) + 1
    return float(brentq(excess, 0.0, most, xtol=1e-12, rtol=1e-14))


def coarsened(events: Iterable[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Return (probability, noise multiplier, count) with few distinct ones, and no cheaper.

    Above :data:`MOST_DISTINCT` the probabilities go up and the multipliers down to fewer and fewer significant digits,
    until the distinct ones are few, or one digit is left.
    """
    found = list(events)
    for digits in (None, 5, 4, 3, 2, 1):
        grouped: Counter[tuple[float, float]] = Counter()
        for probability, multiplier, count in found:
            grouped[_snapped(probability, digits, up=True), _snapped(multiplier, digits, up=False)] += count
        if len(grouped) <= MOST_DISTINCT:
            break
    return [(probability, multiplier, count) for (probability, multiplier), count in grouped.items()]


def _snapped(value: float, digits: int | None, *, up: bool) -> float:
    if digits is None:
        return value
    rounding = ROUND_CEILING if up else ROUND_FLOOR
    return float(Context(prec=digits, rounding=rounding).plus(Decimal(repr(value))))


def _as_poisson(event: PoissonGaussian | FixedSizeGaussian) -> tuple[float, float]:
    """Return probability and noise multiplier of the Poisson sample with the same pair of dominating distributions.

    For a fixed size under replace-one, M(x) = (1 - q) Q + q P against Q, with P and Q the noise at neighbours two clip
    norms apart (Balle, Barthe, Gaboardi 2018, theorem 11): that of a Poisson sample with noise half as large.
    """
    half = isinstance(event, FixedSizeGaussian)
    return event.probability, event.noise_multiplier / (2 if half else 1)


@lru_cache(maxsize=64)
def _repeated(probability: float, multiplier: float, adjacency: Adjacency, grid: float, count: int) -> Any:
    return loss_distribution(probability, multiplier, adjacency, grid).self_compose(count)


def _check(delta: float, adjacency: Adjacency) -> None:
    distance(adjacency)  # refuses an unknown word
    if not 0 < delta < 1:
        raise _invalid("Delta is above 0 and below 1.", f"It is {delta:g}.")


def _invalid(rule: str, found: str) -> HansaError:
    return HansaError("HANSA-PRIVACY-INVALID", rule=rule, found=found, action="Correct it.")
