"""A lower bound on epsilon from one run with canaries (Steinke, Nasr, Jagielski 2023).

Each of m canaries is put in or left out by a fair coin of its own. Whoever sees what was released scores them, guesses
"in" for the highest scores and "out" for the lowest, and abstains for the rest. Under (epsilon, delta)-differential
privacy with one canary more or less, guesses are hardly better than randomized response ("Privacy auditing with one (1)
training run", theorem 5.2): many right ones refute an epsilon. What is not refuted is not proven.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import HansaError
from hansa.privacy.event import require_extra

HIGHEST: Final = 50.0
"""Epsilons beyond it are not told apart."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found: with ``confidence``, epsilon at ``delta`` is at least ``epsilon_at_least``."""

    epsilon_at_least: float
    delta: float
    confidence: float
    canaries: int
    guesses: int
    right: int


def audit(
    scores: NDArray[np.floating],
    included: NDArray[np.bool_],
    *,
    delta: float,
    guesses: Sequence[int],
    confidence: float = 0.95,
) -> Audit:
    """Return the best lower bound on epsilon that the scores of canaries give.

    ``scores``, ``included``: [m]; a higher score says "in". ``guesses``: how many canaries to guess, each even number
    tried with the half highest as "in" and the half lowest as "out"; to be chosen before the scores are seen. Several
    numbers share 1 - ``confidence`` evenly, so that the best of them holds with it (a union bound).

    Raises HansaError for canaries that are none, or numbers of guesses that do not fit.
    """
    canaries = len(scores)
    if not guesses or any(number < 2 or number % 2 or number > canaries for number in guesses):
        raise _invalid(
            "Numbers of guesses are even, and at most that of the canaries.", f"{list(guesses)} for {canaries}."
        )
    order = np.argsort(scores, kind="stable")
    sure = 1 - (1 - confidence) / len(guesses)
    tried = []
    for number in guesses:
        half = number // 2
        right = int(included[order[-half:]].sum() + (~included[order[:half]]).sum())
        bound = epsilon_lower_bound(canaries, number, right, delta=delta, confidence=sure)
        tried.append(
            Audit(
                epsilon_at_least=bound,
                delta=delta,
                confidence=confidence,
                canaries=canaries,
                guesses=number,
                right=right,
            )
        )
    return max(tried, key=lambda each: each.epsilon_at_least)


def epsilon_lower_bound(canaries: int, guesses: int, right: int, *, delta: float, confidence: float = 0.95) -> float:
    """Return the largest epsilon, rounded down to 1e-6, that so many right guesses refute; 0 where they refute none."""
    if not (0 <= right <= guesses <= canaries and canaries > 0):
        found = f"{right} of {guesses} among {canaries} canaries."
        raise _invalid("Right guesses are among the guesses, and these among the canaries.", found)
    if not (0 <= delta < 1 and 0 < confidence < 1):
        raise _invalid("Delta is from 0 to below 1, a confidence between 0 and 1.", f"{delta:g} and {confidence:g}.")
    refuted, kept = 0.0, HIGHEST
    if p_value(canaries, guesses, right, epsilon=0.0, delta=delta) > 1 - confidence:
        return 0.0
    while kept - refuted > 1e-6:
        middle = (refuted + kept) / 2
        if p_value(canaries, guesses, right, epsilon=middle, delta=delta) <= 1 - confidence:
            refuted = middle
        else:
            kept = middle
    return refuted


def p_value(canaries: int, guesses: int, right: int, *, epsilon: float, delta: float) -> float:
    """Return a bound on the probability of at least ``right`` right guesses under (epsilon, delta).

    With W binomial over the guesses and the accuracy 1 / (1 + e^-epsilon) of randomized response: P(W >= right) +
    2 m delta max over i of P(right > W >= right - i) / i.
    """
    require_extra()
    from scipy.stats import binom  # noqa: PLC0415 - loads half a second of scipy

    accuracy = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(right - 1, guesses, accuracy))
    if right == 0:
        return 1.0
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, accuracy))
    steepest = float((below / np.arange(1, right + 1)).max())
    return min(1.0, tail + 2 * canaries * delta * steepest)


def _invalid(rule: str, found: str) -> HansaError:
    return HansaError("HANSA-PRIVACY-INVALID", rule=rule, found=found, action="Correct it.")
