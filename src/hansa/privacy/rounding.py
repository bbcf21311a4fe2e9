"""Stochastic rounding to integers that keeps a bound on the L2 norm.

Every entry is rounded up with the probability of its fraction; a result whose norm is above the bound is drawn again
(conditional randomised rounding; Kairouz, Liu, Steinke 2021, "The distributed discrete Gaussian mechanism for federated
learning with secure aggregation"). The bound then holds for certain, whoever draws the coins.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import HansaError
from hansa.privacy.keystream import KeyStream, fresh_key

BETA: Final = math.exp(-0.5)
"""The bound is such that a first draw is above it with at most this probability."""

_LARGEST_NORM: Final = 2.0**31
_TRIES: Final = 1000
_SLACK: Final = 1e-6
_LANE: Final = 255
"""Far from the lanes of noise, so that a key which serves both by mistake gives independent words."""


def rounded_norm(clip_norm: float, granularity: float, dimension: int, *, beta: float = BETA) -> float:
    """Return the bound on the L2 norm after rounding, in the unit of ``clip_norm``.

    With c the clip norm, g the granularity and d the dimension, it is the smaller of (c + g sqrt(d))^2, which holds for
    any rounding, and c^2 + g^2 d / 4 + sqrt(2 ln(1/beta)) g (c + g sqrt(d) / 2), which a draw keeps with probability
    at least 1 - beta; and of these the root (Kairouz, Liu, Steinke 2021).
    """
    root = granularity * math.sqrt(dimension)
    likely = clip_norm**2 + root**2 / 4 + math.sqrt(-2 * math.log(beta)) * granularity * (clip_norm + root / 2)
    return math.sqrt(min(likely, (clip_norm + root) ** 2))


def stochastic_rounding(
    values: NDArray[np.float64], *, clip_norm: float, granularity: float, key: bytes | None = None
) -> NDArray[np.int64]:
    """Return integers whose multiples of ``granularity`` are ``values`` in the mean, up to the condition: int64 [d].

    ``values``: [d], of an L2 norm of at most ``clip_norm``. Without a ``key`` the coins are the operating system's.

    Formal guarantee: ``granularity`` times the result has a norm of at most :func:`rounded_norm`, always.

    Raises HansaError where the values are longer than the clip norm, not finite, or too long for the granularity.
    """
    bound = rounded_norm(clip_norm, granularity, len(values)) / granularity
    _check(values, clip_norm=clip_norm, bound=bound)
    scaled = values / granularity
    floors = np.floor(scaled)
    fractions = ((scaled - floors) * 2.0**53).astype(np.uint64)
    whole = floors.astype(np.int64)
    coins = KeyStream(fresh_key() if key is None else key, _LANE)
    for _ in range(_TRIES):
        words: NDArray[Any] = coins.read(len(values), "<u8") >> np.uint64(11)
        drawn = whole + (words < fractions)
        if int(np.dot(drawn, drawn)) <= bound * bound:
            return drawn
    raise HansaError(
        "HANSA-INTERNAL",
        rule="Rounding keeps its bound within a few draws.",
        found=f"It did not in {_TRIES}.",
        action="Please report it, with the clip norm, the granularity and the dimension.",
    )


def _check(values: NDArray[np.float64], *, clip_norm: float, bound: float) -> None:
    """Refuse what cannot be rounded: nothing that is told depends on the values but that they were not clipped."""
    if not np.linalg.norm(values) <= clip_norm * (1 + _SLACK):
        rule, found = "What is rounded was clipped before.", "A vector is longer than the clip norm, or not finite."
        action = "Clip it to the norm first."
    elif bound >= _LARGEST_NORM:
        rule = "A clipped vector is shorter than 2^31 units of the granularity."
        found, action = f"The bound is {bound:g} units.", "Choose a coarser granularity."
    else:
        return
    raise HansaError("HANSA-PRIVACY-INVALID", rule=rule, found=found, action=action)
