"""Correlated noise: its error, its sensitivity, and that what is released is post-processing of an integer release."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.core.errors import HansaError
from hansa.privacy import matrices
from hansa.privacy.keystream import row_key
from hansa.privacy.matrices import (
    BITS,
    BandedMatrix,
    TreeMatrix,
    check_separation,
    independent,
    optimal_taps,
    participations,
    prefix_errors,
)
from hansa.privacy.noise import discrete_gaussian, reach

KEY = bytes(range(32))
UNIT = 2**BITS


def rows_of(matrix, variance=10_000, dimension=8, **options):
    return list(matrix.noise(Fraction(variance), dimension, run_key=KEY, group="params", **options))


def dense(matrix):
    """The integer matrix itself."""
    found = np.zeros((matrix.rounds, matrix.rounds), dtype=np.int64)
    for index in range(matrix.rounds):
        column = matrix.column(index)
        found[index : index + len(column), index] = column
    return found


def tree(matrix):
    """The nodes of a tree matrix, one row each, by another way: every interval of 2^level rounds within a block."""
    intervals = [
        (first, first + 2**level)
        for level in range(matrix.height + 1)
        for first in range(0, matrix.rounds - 2**level + 1, 2**level)
    ]
    return np.array([[first <= index < end for index in range(matrix.rounds)] for first, end in intervals], np.int64)


def rms(errors):
    return math.sqrt(np.mean(errors**2))


def test_the_error_of_prefix_sums_is_that_of_the_design():
    """2,000 rounds, 400 bands: 3.51 as a plain Toeplitz matrix, less with normalised columns; 31.63 uncorrelated."""
    taps = optimal_taps(2000, 400)
    assert math.sqrt(matrices._error(taps, 2000)[0] / 2000) == pytest.approx(3.51, abs=5e-3)
    assert rms(prefix_errors(BandedMatrix.optimal(2000, 400))) == pytest.approx(3.484, abs=5e-3)
    assert rms(prefix_errors(independent(2000))) == pytest.approx(31.63, abs=5e-3)


def test_trees_are_between_bands_and_independent_noise():
    errors = [rms(prefix_errors(each)) for each in (BandedMatrix.optimal(256, 64), TreeMatrix.within(256, 64))]
    assert errors[0] < errors[1] < rms(prefix_errors(independent(256)))


@pytest.mark.parametrize(("rounds", "bands"), [(1, 1), (5, 5), (40, 7), (40, 40), (100, 1)])
def test_the_optimum_is_where_the_gradient_vanishes(rounds, bands):
    taps = optimal_taps(rounds, bands)
    error, gradient = matrices._error(taps, rounds)
    assert taps[0] == 1
    assert np.abs(gradient[1:] / error).max(initial=0) < 1e-4
    random = np.random.default_rng(0)
    for _ in range(20):
        other = taps + 1e-2 * np.concatenate([[0], random.normal(size=bands - 1)])
        assert matrices._error(other, rounds)[0] >= error * (1 - 1e-12)


def test_the_gradient_is_that_of_the_error():
    taps = np.array([1.0, 0.6, 0.3, -0.1])
    _, gradient = matrices._error(taps, 30)
    for position in range(4):
        step = np.zeros(4)
        step[position] = 1e-6
        slope = (matrices._error(taps + step, 30)[0] - matrices._error(taps - step, 30)[0]) / 2e-6
        assert gradient[position] == pytest.approx(slope, rel=1e-6)


@given(st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_no_column_is_longer_than_one(rounds, bands):
    matrix = BandedMatrix.optimal(rounds, min(rounds, bands))
    for column in dense(matrix).T.tolist():
        squares = sum(entry * entry for entry in column)
        assert UNIT**2 * (1 - 1e-4) < squares <= UNIT**2


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_noise_and_sum_are_post_processing_of_one_integer_release(rounds, bands, seed):
    """The server's own recursion on C x + z, in Python's integers, gives x + y, entry by entry."""
    matrix = BandedMatrix.optimal(rounds, min(bands, rounds))
    x = np.random.default_rng(seed).integers(-(2**20), 2**20, (rounds, 2))
    z = np.array(
        [
            discrete_gaussian(Fraction(100) * 4**BITS, 2, key=row_key(KEY, index, "params")).tolist()
            for index in range(rounds)
        ],
        dtype=object,
    )
    entries = dense(matrix).astype(object)
    released = entries @ x.astype(object) + z
    estimates = np.zeros((rounds, 2), dtype=object)
    for index in range(rounds):
        rest = released[index] - entries[index, :index] @ estimates[:index]
        diagonal = entries[index, index]
        estimates[index] = [(each + diagonal // 2) // diagonal for each in rest]
    drawn = np.array(rows_of(matrix, variance=100, dimension=2))
    assert (estimates == x + drawn).all()


@pytest.mark.parametrize("matrix", [BandedMatrix.optimal(30, 6), TreeMatrix.within(30, 8)])
def test_a_unit_moves_the_release_by_no_more_than_the_root_of_its_participations(matrix):
    """Every pattern of participations with the minimum separation; the worst is one direction, as entries are >= 0."""
    if isinstance(matrix, TreeMatrix):
        entries, unit = tree(matrix), math.sqrt(matrix.height + 1)
    else:
        entries, unit = dense(matrix), UNIT
    for first in range(matrix.rounds):
        for step in range(matrix.bands, 3 * matrix.bands):
            rounds = np.arange(first, matrix.rounds, step)
            moved = np.linalg.norm(entries[:, rounds].sum(axis=1) / unit)
            assert moved <= math.sqrt(len(rounds)) * (1 + 1e-12)
    too_often = np.linalg.norm(entries[:, 0 : matrix.rounds : 2].sum(axis=1) / unit)
    assert too_often > math.sqrt(matrix.rounds / 2) * 1.2


@pytest.mark.parametrize("matrix", [BandedMatrix.optimal(12, 4), TreeMatrix.within(12, 4), independent(12)])
def test_prefix_sums_carry_the_noise_that_is_claimed(matrix):
    dimension = 40_000
    prefixes = np.cumsum(rows_of(matrix, dimension=dimension), axis=0)
    claimed = 100 * prefix_errors(matrix)
    assert np.abs(prefixes.std(axis=1) / claimed - 1).max() < 5 / math.sqrt(2 * dimension)


def test_rows_of_banded_noise_are_correlated_as_the_inverse_says():
    matrix, dimension = BandedMatrix.optimal(8, 3), 200_000
    found = np.cov(np.array(rows_of(matrix, dimension=dimension))) / 100**2
    inverse = np.linalg.inv(dense(matrix) / UNIT)
    assert np.abs(found - inverse @ inverse.T).max() < 0.03


def test_tree_noise_of_a_prefix_is_the_noise_of_its_nodes():
    matrix = TreeMatrix.within(11, 4)
    prefixes = np.cumsum(rows_of(matrix), axis=0)

    def node(level, number):
        return discrete_gaussian(Fraction(30_000), 8, key=row_key(KEY, (level << 40) + number, "params"))

    assert matrix.height == 2
    assert (prefixes[0] == node(0, 0)).all()
    assert (prefixes[2] == node(1, 0) + node(0, 2)).all()
    assert (prefixes[3] == node(2, 0)).all()
    assert (prefixes[10] == node(2, 0) + node(2, 1) + node(1, 4) + node(0, 10)).all()


@pytest.mark.parametrize("matrix", [BandedMatrix.optimal(20, 5), TreeMatrix.within(20, 8)])
def test_a_run_that_goes_on_has_the_rows_of_one_that_never_stopped(matrix):
    whole = rows_of(matrix)
    resumed = rows_of(matrix, start=13)
    assert len(resumed) == 7
    assert np.array_equal(resumed, whole[13:])


def test_groups_and_runs_have_noise_of_their_own():
    matrix = BandedMatrix.optimal(3, 2)
    one, other = (next(matrix.noise(Fraction(10**6), 100, run_key=KEY, group=group)) for group in ("params", "control"))
    assert (one != other).mean() > 0.9


def test_a_participation_count_is_bounded_by_rounds_and_by_the_limit():
    assert participations(2000, min_separation=484, max_participations=3) == 3
    assert participations(2000, min_separation=484, max_participations=99) == 5
    assert participations(484, min_separation=484, max_participations=9) == 1


def test_a_separation_below_the_bands_is_refused():
    check_separation(BandedMatrix.optimal(20, 5), 5)
    with pytest.raises(HansaError, match="as many rounds apart as the matrix has bands"):
        check_separation(BandedMatrix.optimal(20, 5), 4)


@pytest.mark.parametrize(("rounds", "bands"), [(3, 4), (3, 0)])
def test_bands_that_do_not_fit_are_refused(rounds, bands):
    with pytest.raises(HansaError, match="at least one band"):
        optimal_taps(rounds, bands)


def test_noise_too_wide_for_its_integers_is_refused():
    with pytest.raises(HansaError, match="fits 32 bits"):
        next(independent(2).noise(Fraction(2**54), 1, run_key=KEY, group="params"))
    with pytest.raises(HansaError, match="fits 32 bits"):
        matrices._narrowed(np.array([2**31]))


@pytest.mark.parametrize("deviation", [2**21, 2**26 - 1])
def test_a_run_is_not_charged_for_noise_that_then_cannot_be_drawn(deviation):
    """As wide as the rows may be: a small epsilon of 16-bit updates asks for 2^20 and more."""
    matrix = BandedMatrix.optimal(16, 4)
    (first, *_) = matrix.noise(Fraction(deviation**2), 4000, run_key=bytes(32), group="values")
    diagonal = matrix.row(0)[0] / 2**20
    assert first.std() * diagonal == pytest.approx(deviation, rel=0.06)
    assert reach(Fraction(deviation**2) * 4**20) < 2**51
