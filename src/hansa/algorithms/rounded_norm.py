"""How long a vector can be after its entries were rounded to whole numbers, up or down by coins.

Every entry is rounded up with the probability of its fraction; a result whose norm is above the bound is drawn again
(conditional randomised rounding; Kairouz, Liu, Steinke 2021, "The distributed discrete Gaussian mechanism for federated
learning with secure aggregation", https://arxiv.org/abs/2102.06387). The bound then holds for certain, whoever draws
the coins; ``hansa.algorithms.fixed_point`` rounds.
"""

from __future__ import annotations

import math
from typing import Final

BETA: Final = math.exp(-0.5)
"""The bound is such that a first draw is above it with at most this probability."""


def rounded_norm(clip_norm: float, granularity: float, dimension: int, *, beta: float = BETA) -> float:
    """Return the bound on the L2 norm after rounding, in the unit of ``clip_norm``.

    With c the clip norm, g the granularity and d the dimension, it is the smaller of (c + g sqrt(d))^2, which holds for
    any rounding, and c^2 + g^2 d / 4 + sqrt(2 ln(1/beta)) g (c + g sqrt(d) / 2), which a draw keeps with probability
    at least 1 - beta; and of these the root (Kairouz, Liu, Steinke 2021).
    """
    root = granularity * math.sqrt(dimension)
    likely = clip_norm**2 + root**2 / 4 + math.sqrt(-2 * math.log(beta)) * granularity * (clip_norm + root / 2)
    return math.sqrt(min(likely, (clip_norm + root) ** 2))
