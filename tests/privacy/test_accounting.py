"""What mechanisms cost: published values to their digits, dp-accounting as the oracle, and bounds that hold."""

from __future__ import annotations

import itertools
import math
import sys

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld, rdp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from hansa.core.errors import HansaError
from hansa.privacy import accounting
from hansa.privacy import event as module
from hansa.privacy.accounting import Composition, charged, coarsened, gaussian_epsilon, price, reference
from hansa.privacy.event import (
    ORDERS,
    DistributedGaussian,
    FixedSizeGaussian,
    Gaussian,
    MatrixGaussian,
    PoissonGaussian,
    renyi,
    rho,
)

POISSON = PoissonGaussian(probability=0.01, noise_multiplier=1.0)
FIXED = FixedSizeGaussian(probability=0.01, noise_multiplier=4.0)


def divergence(p, q, order, step=1.0):
    """Renyi divergence of two densities on one grid, of what is not vanishingly small in both."""
    inside = (p > 1e-280) & (q > 1e-280)
    terms = order * np.log(p[inside]) + (1 - order) * np.log(q[inside])
    return float(special.logsumexp(terms) + math.log(step)) / (order - 1)


def cost(*events, delta=1e-5, adjacency="add-or-remove-one", trusted_sampling=True):
    composition = Composition.of(*events)
    return price(composition, delta=delta, adjacency=adjacency, unit="client", trusted_sampling=trusted_sampling)


@pytest.mark.parametrize(
    ("rounds", "expected_reference", "expected_charged"),
    [(1000, 1.82824, 2.10137), (10_000, 6.1877, None), (100_000, 25.573, 27.24)],
)
def test_poisson_sampled_noise_costs_what_the_design_says(rounds, expected_reference, expected_charged):
    found = cost((POISSON, rounds))
    assert found.epsilon_reference == pytest.approx(expected_reference, abs=5e-4 if rounds > 1e4 else 5e-5)
    if expected_charged is not None:
        assert found.epsilon_charged == pytest.approx(expected_charged, abs=5e-3 if rounds > 1e4 else 5e-6)
    assert found.amplified
    assert found.rho is None


def test_replacing_one_costs_more_than_adding_or_removing_one():
    found = cost((POISSON, 1000), adjacency="replace-one")
    assert found.epsilon_reference == pytest.approx(2.8434, abs=5e-5)
    assert found.epsilon_charged > found.epsilon_reference


def test_zeroing_out_costs_what_adding_or_removing_does():
    assert cost((POISSON, 1000), adjacency="zero-out").epsilon_charged == cost((POISSON, 1000)).epsilon_charged


@pytest.mark.parametrize(("rounds", "expected"), [(1000, 1.19936957), (10_000, 4.377178), (100_000, 17.85659)])
def test_unsampled_noise_follows_the_exact_curve(rounds, expected):
    found = cost((Gaussian(noise_multiplier=100.0), rounds))
    assert found.epsilon_reference == pytest.approx(expected, rel=2e-7)
    assert found.reference_method == "exact Gaussian curve"


def test_unsampled_noise_is_charged_by_its_rho():
    found = cost((Gaussian(noise_multiplier=100.0), 1000))
    assert found.rho == pytest.approx(0.05)
    assert found.epsilon_charged == pytest.approx(1.3085, abs=5e-5)


def test_a_production_run_of_a_thousand_bands():
    """Gboard: multiplier 8.35, two participations; the page rounds rho to 0.0144 before it converts the charged one."""
    found = cost(MatrixGaussian(noise_multiplier=8.35, participations=2), delta=1e-10)
    assert found.rho == pytest.approx(0.0144, abs=1e-4)
    assert found.epsilon_reference == pytest.approx(0.994, abs=5e-4)
    rounded = cost(Gaussian(noise_multiplier=math.sqrt(1 / (2 * 0.0144))), delta=1e-10)
    assert rounded.epsilon_charged == pytest.approx(1.0445, abs=5e-5)
    assert found.epsilon_charged <= rounded.epsilon_charged


def test_a_production_run_of_four_hundred_bands():
    """Gboard: rho 0.15 with three participations, which is a multiplier of sqrt(10) for columns of norm 1."""
    found = cost(MatrixGaussian(noise_multiplier=math.sqrt(10), participations=3), delta=1e-10)
    assert found.rho == pytest.approx(0.15)
    assert found.epsilon_reference == pytest.approx(3.42, abs=5e-3)
    assert found.epsilon_charged == pytest.approx(3.575, abs=5e-4)


def test_without_trusted_sampling_nothing_is_amplified():
    """Every unit is counted into every round, whatever the event says about coins."""
    plain = cost((Gaussian(noise_multiplier=20.0), 50), adjacency="replace-one")
    sampled = PoissonGaussian(probability=0.01, noise_multiplier=20.0)
    fixed = FixedSizeGaussian(probability=0.01, noise_multiplier=20.0)
    for each in (sampled, fixed):
        found = cost((each, 50), adjacency="replace-one", trusted_sampling=False)
        assert found.epsilon_charged == plain.epsilon_charged
        assert not found.amplified
        assert found.rho == plain.rho
    assert cost((sampled, 50)).epsilon_charged < cost((sampled, 50), trusted_sampling=False).epsilon_charged / 5


def test_replacing_doubles_the_distance_without_sampling():
    once = cost(Gaussian(noise_multiplier=4.0), adjacency="replace-one")
    assert once.epsilon_charged == cost(Gaussian(noise_multiplier=2.0)).epsilon_charged
    assert once.epsilon_reference == pytest.approx(cost(Gaussian(noise_multiplier=2.0)).epsilon_reference)


@pytest.mark.parametrize(
    ("probability", "multiplier", "rounds", "delta"),
    [
        pytest.param(0.02, 0.7, 300, 1e-6, marks=pytest.mark.slow),
        (0.1, 2.0, 500, 1e-5),
        (0.5, 5.0, 100, 1e-7),
        pytest.param(0.001, 0.5, 4000, 1e-8, marks=pytest.mark.slow),
        (0.9, 30, 50, 1e-5),
    ],
)
def test_dp_accounting_prices_other_poisson_samples_alike(probability, multiplier, rounds, delta):
    oracle = dp_accounting.PoissonSampledDpEvent(probability, dp_accounting.GaussianDpEvent(multiplier))
    found = cost((PoissonGaussian(probability=probability, noise_multiplier=multiplier), rounds), delta=delta)
    by_rdp = rdp.RdpAccountant().compose(oracle, rounds).get_epsilon(delta)
    by_pld = pld.PLDAccountant().compose(oracle, rounds).get_epsilon(delta)
    assert found.epsilon_charged == pytest.approx(by_rdp, rel=1e-3) or found.epsilon_charged < by_rdp
    assert found.epsilon_charged > by_rdp * 0.9
    assert found.epsilon_reference == pytest.approx(by_pld, rel=1e-3)
    assert found.epsilon_charged > found.epsilon_reference


@given(st.floats(0.5, 500), st.integers(1, 3000), st.floats(1e-12, 1e-3))
@settings(max_examples=40, deadline=None)
def test_dp_accounting_prices_other_unsampled_noise_alike(multiplier, rounds, delta):
    from dp_accounting import get_epsilon_gaussian

    found = cost((Gaussian(noise_multiplier=multiplier), rounds), delta=delta)
    exact = get_epsilon_gaussian(multiplier / math.sqrt(rounds), delta)
    assert found.epsilon_reference == pytest.approx(exact, rel=1e-3, abs=1e-3)
    assert found.epsilon_charged >= found.epsilon_reference
    by_rdp = rdp.RdpAccountant()
    by_rdp.compose(dp_accounting.GaussianDpEvent(multiplier), rounds)
    assert found.epsilon_charged <= by_rdp.get_epsilon(delta) * (1 + 1e-9)


def test_dp_accounting_prices_a_sample_of_fixed_size_alike():
    """Its multiplier is relative to the distance of neighbours, which is two clip norms."""
    found = cost((FIXED, 200), adjacency="replace-one")
    oracle = dp_accounting.SampledWithoutReplacementDpEvent(1000, 10, dp_accounting.GaussianDpEvent(2.0))
    accountant = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    assert found.epsilon_charged == pytest.approx(accountant.compose(oracle, 200).get_epsilon(1e-5), rel=1e-3)
    assert 0 < found.epsilon_reference < found.epsilon_charged


def test_one_sample_of_fixed_size_is_amplified_as_its_theorem_says():
    """delta' = q delta at epsilon' = log(1 + q (e^epsilon - 1)) (Balle, Barthe, Gaboardi 2018)."""
    delta, q = 1e-6, FIXED.probability
    epsilon = math.log1p(q * math.expm1(gaussian_epsilon(2 / FIXED.noise_multiplier, delta / q)))
    assert reference(Composition.of(FIXED), delta=delta, adjacency="replace-one") == pytest.approx(epsilon, abs=2e-4)


@pytest.mark.parametrize(("probability", "multiplier"), [(0.01, 1e6), (0.5, 0.001), (0.01, 0.05), (1.0, 2.0)])
@pytest.mark.parametrize("adjacency", ["zero-out", "replace-one"])
def test_a_sample_never_costs_more_than_all(probability, multiplier, adjacency):
    """Also at extremes, where the bounds for samples are loose and loss distributions would be huge."""
    event = PoissonGaussian(probability=probability, noise_multiplier=multiplier)
    sampled = cost((event, 10), adjacency=adjacency)
    everybody = cost((event, 10), adjacency=adjacency, trusted_sampling=False)
    assert sampled.epsilon_charged <= everybody.epsilon_charged
    assert sampled.epsilon_reference <= everybody.epsilon_reference * 1.01 + 1e-3
    assert sampled.epsilon_reference <= sampled.epsilon_charged * 1.01


def test_sampled_and_unsampled_events_add_up():
    mixed = cost((POISSON, 100), (Gaussian(noise_multiplier=100.0), 10))
    oracle = pld.PLDAccountant()
    oracle.compose(dp_accounting.PoissonSampledDpEvent(0.01, dp_accounting.GaussianDpEvent(1.0)), 100)
    oracle.compose(dp_accounting.GaussianDpEvent(100.0), 10)
    assert mixed.epsilon_reference == pytest.approx(oracle.get_epsilon(1e-5), rel=1e-3)
    assert mixed.epsilon_charged > max(mixed.epsilon_reference, cost((POISSON, 100)).epsilon_charged)


@pytest.mark.parametrize("adjacency", ["add-or-remove-one", "replace-one"])
@pytest.mark.parametrize(("probability", "multiplier"), [(0.1, 1.0), (0.3, 2.0), (0.02, 0.8)])
def test_the_charged_divergence_bounds_the_true_one(probability, multiplier, adjacency):
    """Both directions, integrated on a grid: against the two worst neighbours along one axis."""
    x = np.linspace(-60, 60, 400_001)
    centres = (0.0, -1.0) if adjacency == "replace-one" else (0.0, 0.0)

    def density(centre):
        return (1 - probability) * stats.norm.pdf(x, 0, multiplier) + probability * stats.norm.pdf(
            x, centre, multiplier
        )

    p, q = density(1.0), density(centres[1])
    claimed = renyi(PoissonGaussian(probability=probability, noise_multiplier=multiplier), adjacency)
    for order in (1.5, 2.0, 4.0, 8.0):
        bound = claimed[np.flatnonzero(order == ORDERS)[0]]
        for first, second in ((p, q), (q, p)):
            assert divergence(first, second, order, x[1] - x[0]) <= bound * (1 + 1e-6) + 1e-9


@pytest.mark.parametrize("order", [1.5, 2.0, 3.7, 8.0, 9.3])
def test_sampled_integer_noise_has_the_divergence_of_continuous_noise(order):
    """For a Poisson sample in one and two dimensions, at orders between integers too, to what floats resolve."""
    probability, shift, sigma = 0.1, np.array([3, 4]), 5.0
    claimed = renyi(PoissonGaussian(probability=probability, noise_multiplier=sigma / 5), "add-or-remove-one")
    bound = claimed[np.flatnonzero(np.isclose(order, ORDERS))[0]]
    grid = np.arange(-150, 151)
    for points, step in [
        (np.stack(np.meshgrid(grid, grid)).reshape(2, -1).T, shift),
        (np.arange(-300, 301)[:, None], np.array([5])),
    ]:
        base = np.exp(-(points**2).sum(axis=1) / (2 * sigma**2))
        moved = np.exp(-((points - step) ** 2).sum(axis=1) / (2 * sigma**2))
        base, moved = base / base.sum(), moved / moved.sum()
        mixed = (1 - probability) * base + probability * moved
        for p, q in ((mixed, base), (base, mixed)):
            assert divergence(p, q, order) <= bound + 1e-10


@pytest.mark.parametrize(("parties", "variance"), [(2, 0.5), (5, 0.5), (3, 1.0), (8, 2.0)])
def test_the_term_for_sums_of_discrete_gaussians_bounds_their_true_divergence(parties, variance):
    """The sum of discrete Gaussians by convolution, one and two steps apart in each of some independent entries."""
    x = np.arange(-40, 41)
    one = np.exp(-(x**2) / (2 * variance))
    summed = one = one / one.sum()
    for _ in range(parties - 1):
        summed = np.convolve(summed, one)
    for step, dimension, order in itertools.product((1, 2), (1, 4, 1000), (1.5, 2.0, 4.0)):
        true = dimension * divergence(summed[step:], summed[:-step], order)
        claimed = DistributedGaussian(
            distance=step * math.sqrt(dimension), local_variance=variance, parties=parties, dimension=dimension
        )
        assert true <= order * rho(claimed, "zero-out") * (1 + 1e-9)


def test_sums_of_discrete_gaussians_cost_no_less_than_one_and_little_more_where_noise_is_wide():
    narrow = DistributedGaussian(distance=5.0, local_variance=1.0, parties=20, dimension=100_000)
    wide = DistributedGaussian(distance=50.0, local_variance=100.0, parties=20, dimension=100_000)
    for each in (narrow, wide):
        one = Gaussian(noise_multiplier=each.noise_multiplier)
        assert rho(each, "zero-out") >= rho(one, "zero-out")
    assert rho(wide, "zero-out") == pytest.approx(rho(Gaussian(noise_multiplier=wide.noise_multiplier), "zero-out"))
    assert rho(narrow, "zero-out") > 1.3 * rho(Gaussian(noise_multiplier=narrow.noise_multiplier), "zero-out")


def test_equal_events_are_one_entry():
    composition = Composition.of(POISSON, (Gaussian(noise_multiplier=2.0), 0), POISSON, (POISSON, 3))
    assert composition.counts == ((POISSON, 5),)


def test_nothing_costs_nothing():
    found = cost((POISSON, 0))
    assert (found.epsilon_charged, found.epsilon_reference, found.rho) == (0.0, 0.0, 0.0)


def test_many_distinct_events_are_coarsened_to_few_that_cost_no_less():
    events = [(0.01 + 1e-5 * step, 1.0 + 0.003 * step, 2) for step in range(100)]
    found = coarsened(events)
    assert len(found) <= accounting.MOST_DISTINCT
    assert sum(count for *_, count in found) == 200
    assert min(multiplier for _, multiplier, _ in found) <= 1.0
    fewer = sorted(found)
    for probability, multiplier, _ in events:
        assert any(p >= probability and m <= multiplier for p, m, _ in fewer)


def test_few_distinct_events_stay_as_they_are():
    events = [(0.0123456789, 1.23456789, 3), (0.5, 2.0, 1)]
    assert coarsened(events) == events


def test_an_equal_question_is_answered_from_the_cache():
    accounting._repeated.cache_clear()
    for _ in range(3):
        reference(Composition.of((POISSON, 77)), delta=1e-5, adjacency="zero-out")
    assert accounting._repeated.cache_info().misses == 1


@given(st.floats(0.3, 50), st.integers(1, 200), st.floats(1e-10, 1e-2), st.integers(2, 50))
@settings(max_examples=60, deadline=None)
def test_more_rounds_or_less_noise_never_cost_less(multiplier, rounds, delta, more):
    def of(multiplier, rounds):
        return charged(
            Composition.of((Gaussian(noise_multiplier=multiplier), rounds)), delta=delta, adjacency="zero-out"
        )[0]

    assert of(multiplier, rounds) <= of(multiplier, rounds * more)
    assert of(multiplier, rounds) <= of(multiplier / more, rounds)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Gaussian(noise_multiplier=0.0), "noise multiplier is above 0"),
        (lambda: Gaussian(noise_multiplier=math.nan), "noise multiplier is above 0"),
        (lambda: PoissonGaussian(probability=0.0, noise_multiplier=1.0), "probability is above 0"),
        (lambda: PoissonGaussian(probability=1.1, noise_multiplier=1.0), "probability is above 0"),
        (lambda: FixedSizeGaussian(probability=1.5, noise_multiplier=1.0), "probability is above 0"),
        (lambda: MatrixGaussian(noise_multiplier=1.0, participations=0), "at least once"),
        (lambda: DistributedGaussian(distance=1, local_variance=0.4, parties=2, dimension=1), "at least 1/2"),
        (lambda: DistributedGaussian(distance=0, local_variance=1, parties=2, dimension=1), "distance above 0"),
        (lambda: Composition.of((POISSON, -1)), "0 times or more"),
        (lambda: cost(POISSON, delta=0.0), "Delta is above 0"),
        (lambda: cost(POISSON, adjacency="substitute"), "Adjacency is one of"),
        (lambda: cost(FIXED), "replacing one unit"),
        (lambda: cost(FIXED, POISSON, adjacency="replace-one"), "sampled in one way"),
        (lambda: price(Composition.of(POISSON), delta=0.1, adjacency="zero-out", unit=" "), "names its privacy unit"),
    ],
)
def test_what_makes_no_sense_is_refused(build, match):
    with pytest.raises(HansaError, match=match) as caught:
        build()
    assert caught.value.code == "HANSA-PRIVACY-INVALID"


@pytest.mark.parametrize(("library", "event"), [("dp_accounting", POISSON), ("scipy", Gaussian(noise_multiplier=3.21))])
def test_a_missing_extra_is_told(monkeypatch, library, event):
    for function in (accounting._repeated, module._poisson):
        function.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(HansaError, match=f"{library}.*hansa\\[dp\\]") as caught:
        cost(event)
    assert caught.value.code == "HANSA-EXTRA-MISSING"
