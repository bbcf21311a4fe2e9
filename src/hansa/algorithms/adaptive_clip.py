"""A clip norm that follows a quantile of the updates' norms (Andrew, Thakkar, McMahan, Ramaswamy 2021).

Each client of a round also sends one bit: whether its update was shorter than the clip norm. The noised share of such
bits moves the norm geometrically. "Differentially private learning with adaptive clipping", algorithm 1.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import HansaError
from hansa.core.privacy import AdaptiveClip


def next_clip_norm(section: AdaptiveClip, clip_norm: float, noised_bits: float, divisor: float) -> float:
    """Return the next round's clip norm, C exp(-rate (share - quantile)).

    ``noised_bits`` is the sum of the centred bits (each 1/2 or -1/2; see :func:`bits`) with its noise, ``divisor`` the
    number that the plan divides by. The share is clipped to [0, 1], the norm to its bounds: however wild the noise, one
    step changes the norm by at most exp(rate).
    """
    share = min(1.0, max(0.0, noised_bits / divisor + 0.5))
    moved = clip_norm * math.exp(-section.learning_rate * (share - section.quantile))
    return min(section.highest, max(section.lowest, moved))


def bits(norms: NDArray[np.floating], clip_norm: float) -> NDArray[np.float64]:
    """Return each client's centred bit: 1/2 where its norm is at most the clip norm, else -1/2: float64 [n].

    Centred, a bit moves the sum by at most 1/2 however a client is added, removed or zeroed out.
    """
    return np.where(norms <= clip_norm, 0.5, -0.5)


def bit_deviation(expected_clients: float) -> float:
    """Return the standard deviation of the noise on the sum of bits, n / 20: the share's is then 1/20."""
    return expected_clients / 20


def update_multiplier(noise_multiplier: float, bit_noise: float) -> float:
    """Return the noise multiplier of the updates, so that updates and bits together cost ``noise_multiplier``.

    (z^-2 - (2 sigma_b)^-2)^(-1/2), theorem 1 of the paper; the account is kept at z.

    Raises HansaError where the noise on the bits alone would cost more than that: z >= 2 sigma_b.
    """
    if not 0 < noise_multiplier < 2 * bit_noise:
        raise HansaError(
            "HANSA-PRIVACY-INVALID",
            rule="The noise multiplier is above 0 and below twice the standard deviation of the noise on the bits.",
            found=f"It is {noise_multiplier:g}, and twice the deviation is {2 * bit_noise:g}.",
            action="Ask more clients, lower the noise multiplier, or fix the clip norm.",
        )
    return 1 / math.sqrt(noise_multiplier**-2 - (2 * bit_noise) ** -2)
