"""Samplers: fair, distinct, in O(cohort), and never against their promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.algorithms.samplers import Full, MinSeparation, Poisson, Uniform
from hansa.core.streams import Streams
from hansa.testing import MemoryView

BILLION = 10**9


class CountingView:
    """A population too large for an array, which counts how many clients were asked for."""

    def __init__(self, size=BILLION, resting=0.0):
        self.size = size
        self.resting = resting
        self.asked = 0

    def ids(self, ordinals):
        self.asked += len(ordinals)
        return [str(ordinal) for ordinal in ordinals]

    def last_round(self, ordinals):
        self.asked += len(ordinals)
        return np.where(ordinals % 1000 < 1000 * self.resting, 5, -1)

    def times(self, ordinals):
        self.asked += len(ordinals)
        return np.zeros(len(ordinals), dtype=np.int64)


def coins(number=1, seed=0):
    return Streams(seed).of("cohort", number).coins()


def checked(cohort, size):
    assert cohort.dtype == np.int64
    assert len(np.unique(cohort)) == len(cohort)
    assert not len(cohort) or (cohort.min() >= 0 and cohort.max() < size)
    return cohort


@pytest.mark.parametrize("sampler", [Uniform(size=500), MinSeparation(size=500, rounds=3, max_participations=2)])
def test_a_cohort_of_a_billion_costs_that_of_the_cohort(sampler):
    view = CountingView()
    cohort = checked(sampler.draw(view, 6, coins()), BILLION)
    assert len(cohort) == 500
    assert view.asked <= 8 * 500


def test_a_poisson_cohort_of_a_billion_costs_that_of_the_cohort():
    view, sampler = CountingView(), Poisson(rate=1e-6)
    sizes = [len(checked(sampler.draw(view, number, coins(number)), BILLION)) for number in range(1, 51)]
    assert abs(np.mean(sizes) - 1000) < 5 * np.sqrt(1000 / 50)
    assert view.asked == 0


def test_separation_draws_around_clients_that_rest():
    view = CountingView(resting=0.9)
    cohort = checked(MinSeparation(size=200, rounds=3).draw(view, 6, coins()), BILLION)
    assert len(cohort) == 200
    assert (cohort % 1000 >= 900).all()
    assert view.asked <= 100 * 200


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 200), st.integers(0, 1000))
def test_uniform_draws_so_many_distinct_clients(size, population, seed):
    cohort = checked(Uniform(size=size).draw(MemoryView(population), 1, coins(seed=seed)), population)
    assert len(cohort) == min(size, population)


@pytest.mark.parametrize(("size", "population"), [(3, 10), (3, 9), (1, 10), (2, 40), (9, 10)])
@pytest.mark.parametrize("kind", [Uniform, lambda size: MinSeparation(size=size, rounds=1)])
def test_every_client_and_every_place_is_equally_likely(kind, size, population):
    rounds = 6000
    counts, first = np.zeros(population), np.zeros(population)
    for number in range(1, rounds + 1):
        cohort = kind(size=size).draw(MemoryView(population), number, coins(number))
        counts[cohort] += 1
        first[cohort[0]] += 1
    for observed, expected in ((counts, rounds * size / population), (first, rounds / population)):
        chi_square = ((observed - expected) ** 2 / expected).sum()
        assert chi_square < population + 6 * np.sqrt(2 * population)


def test_every_pair_is_equally_likely():
    pairs = {}
    for number in range(1, 4501):
        pair = tuple(sorted(Uniform(size=2).draw(MemoryView(10), number, coins(number)).tolist()))
        pairs[pair] = pairs.get(pair, 0) + 1
    assert len(pairs) == 45
    assert sum((count - 100) ** 2 / 100 for count in pairs.values()) < 45 + 6 * np.sqrt(90)


def test_poisson_has_the_rates_mean_and_variance_and_independent_clients():
    rate, population, rounds = 0.3, 20, 6000
    picked = np.zeros((rounds, population))
    for number in range(rounds):
        picked[number, Poisson(rate=rate).draw(MemoryView(population), 1, coins(number))] = 1
    error = np.sqrt(rate * (1 - rate) / rounds)
    assert (np.abs(picked.mean(axis=0) - rate) < 5 * error).all()
    sizes = picked.sum(axis=1)
    assert sizes.var() == pytest.approx(population * rate * (1 - rate), rel=0.1)
    correlation = np.corrcoef(picked.T) - np.eye(population)
    assert np.abs(correlation).max() < 5 / np.sqrt(rounds)


@pytest.mark.parametrize("rate", [1.0, 1 - 2.0**-53, 0.999, 1e-9, 1e-300, 5e-324])
@pytest.mark.parametrize("population", [0, 1, 1000])
def test_poisson_with_extreme_rates_and_populations(rate, population):
    cohort = checked(Poisson(rate=rate).draw(MemoryView(population), 1, coins()), population)
    assert (len(cohort) == population) if rate == 1.0 else (len(cohort) <= population)
    if rate < 1e-8:
        assert len(cohort) == 0
    if rate > 0.9999:
        assert len(cohort) >= population - 1


def test_poisson_cohorts_may_be_empty_and_are_in_order():
    sampler = Poisson(rate=0.05)
    cohorts = [sampler.draw(MemoryView(10), 1, coins(number)) for number in range(200)]
    assert any(len(cohort) == 0 for cohort in cohorts)
    assert all((np.diff(cohort) > 0).all() for cohort in cohorts)


def test_full_takes_everyone_in_order():
    assert Full().draw(MemoryView(4), 1, coins()).tolist() == [0, 1, 2, 3]
    assert len(Full().draw(MemoryView(0), 1, coins())) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 6),
    st.one_of(st.none(), st.integers(1, 4)),
    st.integers(1, 60),
    st.integers(0, 99),
)
def test_separation_and_participations_are_never_violated(size, rounds, most, population, seed):
    """Even where a plan runs out of rested clients: then cohorts are smaller."""
    sampler, view = MinSeparation(size=size, rounds=rounds, max_participations=most), MemoryView(population)
    seen = {}
    for number in range(1, 30):
        rested = [i for i in range(population) if number - max(seen.get(i, [-99])) >= rounds]
        able = [i for i in rested if most is None or len(seen.get(i, [])) < most]
        cohort = checked(sampler.draw(view, number, coins(number, seed)), population)
        assert set(cohort.tolist()) <= set(able)
        assert len(cohort) == min(size, len(able))
        view.record(number, cohort)
        for ordinal in cohort.tolist():
            seen.setdefault(ordinal, []).append(number)


def test_separation_is_fair_where_most_of_the_population_rests():
    """The pass over the population that ends fruitless draws favours nobody."""
    counts = np.zeros(1000)
    for number in range(400):
        view = MemoryView(1000)
        view.record(9, np.arange(990))
        counts[MinSeparation(size=3, rounds=5).draw(view, 10, coins(number))] += 1
    assert not counts[:990].any()
    assert ((counts[990:] - 120) ** 2 / 120).sum() < 10 + 6 * np.sqrt(20)


def test_nobody_is_drawn_from_an_empty_population():
    for sampler in (Full(), Uniform(size=3), Poisson(rate=0.5), MinSeparation(size=3, rounds=2)):
        assert len(sampler.draw(MemoryView(0), 1, coins())) == 0


@pytest.mark.parametrize("sampler", [Uniform(size=7), Poisson(rate=0.1), MinSeparation(size=7, rounds=2)])
def test_cohorts_are_the_same_for_the_same_seed_only(sampler):
    def cohort(number, seed):
        return sampler.draw(MemoryView(100), number, coins(number, seed)).tolist()

    assert cohort(1, 0) == cohort(1, 0)
    assert cohort(1, 0) != cohort(2, 0)
    assert cohort(1, 0) != cohort(1, 1)


# Refused before the first round


@pytest.mark.parametrize("sampler", [Uniform(size=11), MinSeparation(size=11, rounds=1)])
def test_a_cohort_larger_than_the_population_is_refused(sampler):
    ((key, text),) = sampler.problems(10, 5)
    assert key == "size"
    assert "there are 10; lower size" in text
    assert sampler.problems(11, 5) == []


def test_separation_that_needs_more_clients_than_there_are_is_refused():
    ((key, text),) = MinSeparation(size=4, rounds=3).problems(11, 5)
    assert key == "rounds"
    assert "need 12 clients, but there are 11; lower size or rounds" in text
    assert MinSeparation(size=4, rounds=3).problems(12, 5) == []
    assert MinSeparation(size=4, rounds=3).problems(8, 2) == []


def test_participations_that_cannot_fill_the_rounds_are_refused():
    sampler = MinSeparation(size=5, rounds=2, max_participations=2)
    ((key, text),) = sampler.problems(10, 5)
    assert key == "max_participations"
    assert "need 25 participations, but 10 clients allow 20; raise it or lower size" in text
    assert sampler.problems(10, 4) == []


def test_a_plan_that_passes_the_refusals_fills_every_cohort():
    sampler, view = MinSeparation(size=5, rounds=2, max_participations=2), MemoryView(10)
    assert sampler.problems(10, 4) == []
    for number in range(1, 5):
        cohort = sampler.draw(view, number, coins(number))
        assert len(cohort) == 5
        view.record(number, cohort)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (Full(), 40),
        (Uniform(size=7), 7),
        (Uniform(size=70), 40),
        (Poisson(rate=0.1), 4),
        (MinSeparation(size=7, rounds=1), 7),
    ],
)
def test_the_expected_size_is_known_before_the_run(sampler, expected):
    assert sampler.expected_size(40) == pytest.approx(expected)


@pytest.mark.parametrize("resting", [0, 50, 90])
def test_min_separation_takes_the_first_rested_of_one_sequence_of_candidates(resting):
    """However the sequence is cut: what is looked at together is a matter of speed."""
    view = MemoryView(100)
    view.record(7, np.arange(resting))
    for seed in range(20):
        drawn = MinSeparation(size=8, rounds=5).draw(view, 9, Streams(seed).of("cohort").coins())
        candidates = Streams(seed).of("cohort").coins().integers(100, 1024).tolist()
        assert drawn.tolist() == list(dict.fromkeys(each for each in candidates if each >= resting))[:8]
