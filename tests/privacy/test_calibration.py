"""A calibrated setting meets its budget, and the next one does not."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import HansaError
from hansa.privacy.accounting import Composition, charged
from hansa.privacy.calibration import STEP, cohort_for, noise_for, rounds_for, smallest
from hansa.privacy.event import FixedSizeGaussian, Gaussian, MatrixGaussian, PoissonGaussian

EVENTS = {
    "unsampled": lambda z: Gaussian(noise_multiplier=z),
    "poisson": lambda z: PoissonGaussian(probability=0.02, noise_multiplier=z),
    "matrix": lambda z: MatrixGaussian(noise_multiplier=z, participations=4),
}


def epsilon_of(event, rounds, delta=1e-5, adjacency="zero-out"):
    return charged(Composition.of((event, rounds)), delta=delta, adjacency=adjacency)[0]


@pytest.mark.parametrize("kind", EVENTS)
@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_the_noise_meets_the_budget_and_a_step_less_does_not(kind, epsilon):
    build, rounds = EVENTS[kind], 1 if kind == "matrix" else 100
    found = noise_for(
        epsilon, delta=1e-5, adjacency="zero-out", composition=lambda z: Composition.of((build(z), rounds))
    )
    assert epsilon_of(build(found), rounds) <= epsilon < epsilon_of(build(found - STEP), rounds)


def test_the_noise_of_a_fixed_size_sample_meets_the_budget_for_replacing_one():
    def build(z):
        return FixedSizeGaussian(probability=0.05, noise_multiplier=z)

    found = noise_for(
        4.0,
        delta=1e-5,
        adjacency="replace-one",
        composition=lambda z: Composition.of((build(max(0.01, round(z, 2))), 20)),
    )
    assert epsilon_of(build(round(found, 2)), 20, adjacency="replace-one") <= 4.0
    assert epsilon_of(build(round(found - 0.01, 2)), 20, adjacency="replace-one") > 4.0


@given(st.floats(0.05, 30), st.integers(1, 2000), st.floats(1e-10, 1e-3))
@settings(max_examples=40, deadline=None)
def test_noise_is_calibrated_for_every_budget(epsilon, rounds, delta):
    found = noise_for(
        epsilon,
        delta=delta,
        adjacency="replace-one",
        composition=lambda z: Composition.of((Gaussian(noise_multiplier=z), rounds)),
    )
    of = [
        epsilon_of(Gaussian(noise_multiplier=z), rounds, delta, "replace-one")
        for z in (found, max(found - STEP, STEP / 2))
    ]
    assert of[0] <= epsilon < of[1]


@pytest.mark.parametrize("kind", ["unsampled", "poisson"])
def test_the_rounds_fit_the_budget_and_one_more_does_not(kind):
    event = EVENTS[kind](6.0)
    found = rounds_for(3.0, delta=1e-5, adjacency="zero-out", composition=lambda t: Composition.of((event, t)))
    assert epsilon_of(event, found) <= 3.0 < epsilon_of(event, found + 1)


@pytest.mark.parametrize("population", [None, 2000])
def test_the_cohort_reaches_the_utility_within_the_budget_and_one_client_less_does_not(population):
    """Without sampling, and where the cohort's share of a population is what is drawn."""

    def events(multiplier, size):
        if population is None:
            return Composition.of((Gaussian(noise_multiplier=multiplier), 50))
        return Composition.of((PoissonGaussian(probability=size / population, noise_multiplier=multiplier), 50))

    found = cohort_for(
        0.01,
        clip_norm=0.5,
        epsilon=2.0,
        delta=1e-6,
        adjacency="zero-out",
        composition=events,
        limit=population or 10**9,
    )
    costs = [
        charged(events(0.01 * size / 0.5, size), delta=1e-6, adjacency="zero-out")[0] for size in (found, found - 1)
    ]
    assert costs[0] <= 2.0 < costs[1]


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 5000))
def test_the_search_finds_where_a_condition_begins_and_asks_few_times(first, limit, start):
    asked = []

    def holds(number):
        asked.append(number)
        return number >= first

    assert smallest(holds, limit, start=start) == (first if first <= limit else None)
    assert all(1 <= number <= limit for number in asked)
    assert len(asked) <= 2 * math.log2(limit) + 3


def small_cohort(standard_deviation):
    return cohort_for(
        standard_deviation,
        clip_norm=1.0,
        epsilon=1.0,
        delta=1e-5,
        adjacency="zero-out",
        composition=lambda z, _: Composition.of(Gaussian(noise_multiplier=z)),
        limit=999,
    )


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: noise_for(0.0, delta=0.1, adjacency="zero-out", composition=Composition.of), "HANSA-PRIVACY-INVALID"),
        (
            lambda: rounds_for(
                0.1,
                delta=1e-5,
                adjacency="zero-out",
                composition=lambda t: Composition.of((Gaussian(noise_multiplier=1.0), t)),
            ),
            "HANSA-PRIVACY-UNREACHABLE",
        ),
        (
            lambda: noise_for(
                1e-9,
                delta=1e-300,
                adjacency="zero-out",
                composition=lambda z: Composition.of((Gaussian(noise_multiplier=z), 10**6)),
            ),
            "HANSA-PRIVACY-UNREACHABLE",
        ),
        (lambda: small_cohort(0.0), "HANSA-PRIVACY-INVALID"),
        (lambda: small_cohort(1e-3), "HANSA-PRIVACY-UNREACHABLE"),
    ],
)
def test_what_cannot_be_met_is_refused(call, code):
    with pytest.raises(HansaError) as caught:
        call()
    assert caught.value.code == code
