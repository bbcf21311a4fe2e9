"""Adaptive clipping follows a quantile, stays in its bounds, and costs what a fixed clip does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.algorithms.adaptive_clip import bit_deviation, bits, next_clip_norm, update_multiplier
from hansa.core.errors import HansaError
from hansa.core.privacy import AdaptiveClip
from hansa.core.schema import build
from hansa.privacy.accounting import Composition, charged
from hansa.privacy.event import Gaussian, rho

CLIP = AdaptiveClip(lowest=0.01, highest=100.0)


@pytest.mark.parametrize("quantile", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.02, 50.0])
def test_the_clip_norm_converges_to_the_quantile(quantile, start):
    random = np.random.default_rng(1)
    clip, norm, seen = AdaptiveClip(quantile=quantile, lowest=0.01, highest=100.0), start, []
    for step in range(400):
        norms = random.lognormal(size=200)
        noise = random.normal() * bit_deviation(200)
        norm = next_clip_norm(clip, norm, bits(norms, norm).sum() + noise, 200)
        if step >= 200:
            seen.append(norm)
    drawn = np.random.default_rng(2).lognormal(size=100_000)
    assert (drawn <= np.median(seen)).mean() == pytest.approx(quantile, abs=0.05)


def test_one_step_is_that_of_the_paper():
    assert next_clip_norm(CLIP, 2.0, 100 * (0.8 - 0.5), 100) == pytest.approx(2.0 * math.exp(-0.2 * (0.8 - 0.5)))


@given(st.floats(0.01, 100), st.floats(allow_nan=False, allow_infinity=False), st.integers(1, 10**6))
def test_however_wild_the_noise_the_norm_moves_little_and_stays_in_its_bounds(norm, noised, divisor):
    moved = next_clip_norm(CLIP, norm, noised, divisor)
    assert 0.01 <= moved <= 100
    assert math.exp(-0.1) * (1 - 1e-12) <= moved / norm <= math.exp(0.1) * (1 + 1e-12)


def test_bits_are_centred():
    assert bits(np.array([0.5, 1.0, 1.5]), 1.0).tolist() == [0.5, 0.5, -0.5]


@given(st.floats(0.1, 50), st.floats(1, 1000))
def test_updates_and_bits_together_cost_the_multiplier_that_is_accounted(multiplier, factor):
    deviation = multiplier / 2 * (1 + factor / 100)
    updates = Gaussian(noise_multiplier=update_multiplier(multiplier, deviation))
    of_bits = Gaussian(noise_multiplier=2 * deviation)  # a bit moves the sum by 1/2
    together = rho(updates, "zero-out") + rho(of_bits, "zero-out")
    assert together == pytest.approx(rho(Gaussian(noise_multiplier=multiplier), "zero-out"))
    assert updates.noise_multiplier > multiplier
    both = charged(Composition.of(updates, of_bits), delta=1e-5, adjacency="zero-out")[0]
    alone = charged(Composition.of(Gaussian(noise_multiplier=multiplier)), delta=1e-5, adjacency="zero-out")[0]
    assert both == pytest.approx(alone)


@pytest.mark.parametrize("multiplier", [10.0, 11.0, 0.0])
def test_bits_with_too_little_noise_are_refused(multiplier):
    with pytest.raises(HansaError, match="below twice the standard deviation"):
        update_multiplier(multiplier, bit_deviation(100))


@pytest.mark.parametrize("options", [{"lowest": 0.0, "highest": 1.0}, {"lowest": 2.0, "highest": 1.0},
                                     {"quantile": 1.5, "lowest": 1.0, "highest": 2.0}])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(options):
    _, found = build(AdaptiveClip, options, "privacy.adaptive_clip")
    assert [problem.path.split(".")[0] for problem in found] == ["privacy"]
