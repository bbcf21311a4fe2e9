"""Integer noise follows the discrete Gaussian, and rounding keeps its bound."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hansa.core.errors import HansaError
from hansa.privacy import noise
from hansa.privacy.keystream import KeyStream, fresh_key, row_key
from hansa.privacy.noise import discrete_gaussian, parts, table

KEY = bytes(range(32))
VARIANCES = [Fraction(9, 100), Fraction(1, 2), Fraction(7, 3), Fraction(100), Fraction(90_001, 7), Fraction(10**6)]


def exact(variance, reach):
    """Probabilities of -reach ... reach, by another way than the sampler's: logarithms in float64."""
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x.astype(float) ** 2) / (2 * float(variance)))
    return x, weights / weights.sum()


@pytest.mark.parametrize("variance", VARIANCES)
def test_samples_follow_the_exact_distribution(variance):
    """Chi-square over cells of at least 50 expected samples; the keys are fixed, so that the test is."""
    count = 1_000_000
    samples = discrete_gaussian(variance, count, key=KEY)
    x, probabilities = exact(variance, math.ceil(12 * math.sqrt(variance)) + 2)
    edges = [0]
    cumulative = np.concatenate([[0.0], np.cumsum(probabilities)])
    for position in range(1, len(cumulative)):
        if count * (cumulative[position] - cumulative[edges[-1]]) >= 50:
            edges.append(position)
    edges[-1] = len(x)
    observed = np.histogram(samples, bins=[x[0] - 0.5, *(x[0] + np.array(edges[1:]) - 0.5)])[0]
    expected = count * np.diff(cumulative[edges])
    assert observed.sum() == count
    assert stats.chisquare(observed, expected * count / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_thresholds_are_the_cumulative_distribution_to_the_bit(variance):
    """Of the parts: float64 sums agree to 1e-13, the two tails mirror each other to 2^-127, and end where mass ends."""
    for _, part in parts(variance):
        found = table(part)
        _, probabilities = exact(part, found.reach)
        steps = np.diff([0.0, *(threshold / 2**128 for threshold in found.thresholds), 1.0])
        np.testing.assert_allclose(steps, probabilities, atol=1e-13)
        mirrored = [2**128 - threshold for threshold in reversed(found.thresholds)]
        assert max(abs(a - b) for a, b in zip(found.thresholds, mirrored, strict=True)) <= 2
        assert found.thresholds[0] < 4


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_guide_says_what_a_search_among_the_thresholds_says(variance):
    """For the first and last number of every cell that the guide settles."""
    found = table(parts(variance)[0][1])
    settled = np.flatnonzero(found.guide != np.iinfo(np.int16).min)
    exactly = np.array(found.thresholds, dtype=object)
    for ends in (settled.astype(object) * 2**112, (settled.astype(object) + 1) * 2**112 - 1):
        assert (np.searchsorted(exactly, ends, side="right") - found.reach == found.guide[settled]).all()


class Scripted:
    """A lane with the words that a test wants."""

    def __init__(self, *words):
        self.words = list(words)

    def read(self, count, dtype):
        found, self.words = self.words[:count], self.words[count:]
        return np.array(found, dtype=dtype)


def test_a_tie_of_the_high_word_is_settled_by_the_low_word():
    found = table(Fraction(100))
    position = found.reach + 3
    threshold = found.thresholds[position]
    cell, middle, low = threshold >> 112, (threshold >> 64) & (2**48 - 1), threshold & (2**64 - 1)
    for drawn, expected in [(low, position + 1), (low - 1, position), (0, position), (2**64 - 1, position + 1)]:
        lanes = [None, Scripted(middle << 16), Scripted(drawn)]
        sample = noise._settled(found, np.array([cell], dtype=np.uint64), lanes)
        assert sample[0] == expected - found.reach
        assert not lanes[2].words


def test_numbers_at_both_ends_are_the_farthest_samples():
    found = table(Fraction(100))
    for cell, word, low, side in [(0, 0, 0, -1), (2**16 - 1, 2**64 - 1, 2**64 - 1, 1)]:
        lanes = [None, Scripted(word), Scripted(low)]
        drawn = noise._settled(found, np.array([cell], dtype=np.uint64), lanes)[0]
        assert 13 * 10 <= side * drawn <= found.reach


@pytest.mark.parametrize("sigma", [Fraction(3, 10), 2, 100, 1000, 10**5, 3 * 10**9])
def test_variance_and_tails_are_those_of_a_gaussian(sigma):
    count = 2_000_000
    samples = discrete_gaussian(Fraction(sigma) ** 2, count, key=KEY).astype(float)
    if sigma >= 1:
        assert abs(samples.var() / sigma**2 - 1) < 5 * math.sqrt(2 / count)
        for z in (2, 3, 4):
            step = 0.5 / float(sigma)
            expected = count * 2 * stats.norm.sf((math.floor(z * sigma) + 0.5) / float(sigma))
            beyond = (np.abs(samples) > z * sigma).sum()
            assert abs(beyond - expected) < 5 * math.sqrt(expected) + count * step**2
    assert abs(samples.mean()) < 5 * float(sigma) / math.sqrt(count)
    assert np.abs(samples).max() < 8 * sigma


@given(st.fractions(min_value=Fraction(1, 100), max_value=2**92))
@settings(max_examples=200, deadline=None)
def test_large_variances_are_exact_sums_of_smooth_parts(variance):
    found = parts(variance)
    assert sum(factor**2 * part for factor, part in found) == variance
    assert all(part <= noise.LARGEST_TABLE for _, part in found)
    for (fine_factor, fine), (coarse_factor, _) in pairwise(found):
        step = coarse_factor // fine_factor
        coarse = sum((factor // coarse_factor) ** 2 * part for factor, part in found if factor >= coarse_factor)
        assert 1 / (1 / coarse + step**2 / fine) >= noise.SMOOTH


def test_a_sum_of_parts_has_the_probabilities_of_one_discrete_gaussian():
    """The factor between them, where it is largest: twice the sum of a fine part and 10 of a coarse, in 100 bits."""
    from mpmath import exp, mp, mpf

    with mp.workprec(300):
        fine, coarse, step = 1000, 10, 10
        whole = fine + step**2 * coarse

        def weight(x, variance):
            return exp(-(mpf(x) ** 2) / (2 * variance))

        ratios = [
            sum(weight(y, coarse) * weight(x - step * y, fine) for y in range(-150, 150)) / weight(x, whole)
            for x in range(-40, 41)
        ]
        assert max(ratios) / min(ratios) - 1 < mpf(2) ** -140


def test_the_same_key_gives_the_same_noise_and_another_key_other_noise():
    variance = Fraction(10**7)
    first = discrete_gaussian(variance, 5000, key=KEY)
    assert (first == discrete_gaussian(variance, 5000, key=KEY)).all()
    assert (first != discrete_gaussian(variance, 5000, key=row_key(KEY, 0, "params"))).mean() > 0.99
    assert (discrete_gaussian(variance, 5000) != discrete_gaussian(variance, 5000)).mean() > 0.99


def test_a_shorter_draw_is_the_start_of_a_longer_one():
    longer = discrete_gaussian(Fraction(12345, 7), 300_000, key=KEY)
    assert (discrete_gaussian(Fraction(12345, 7), 200_000, key=KEY) == longer[:200_000]).all()


def test_the_words_are_aes_in_counter_mode():
    """AES-256 of counters, NIST SP 800-38A; the same words whatever the steps they are read in."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    plain = Cipher(algorithms.AES256(KEY), modes.ECB()).encryptor()  # noqa: S305 - single blocks, for comparison
    blocks = b"".join(plain.update(bytes([2]) + number.to_bytes(15, "big")) for number in range(3))
    lane = KeyStream(KEY, 2)
    words = np.concatenate([lane.read(4, "<u2"), lane.read(2, "<u8").view("<u2"), lane.read(12, "<u2")])
    assert words.tobytes() == blocks


def test_row_keys_differ_by_row_group_and_run():
    run = fresh_key()
    keys = {row_key(run, 0, "params"), row_key(run, 1, "params"), row_key(run, 0, "lanes"), row_key(KEY, 0, "params")}
    assert len(keys) == 4
    assert row_key(run, 5, "params") == row_key(run, 5, "params")


@pytest.mark.parametrize("variance", [Fraction(0), Fraction(-1), Fraction(2**93)])
def test_a_variance_that_cannot_be_is_refused(variance):
    with pytest.raises(HansaError, match="above 0 and at most 2\\^92"):
        discrete_gaussian(variance, 1)


def test_open_dp_draws_the_same_distribution():
    """An independent implementation as the oracle, where it is installed."""
    measurements = pytest.importorskip("opendp.measurements")
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)
    theirs = measurements.make_gaussian(*space, scale=10.0)([0] * 50_000)
    assert stats.ks_2samp(theirs, discrete_gaussian(Fraction(100), 50_000, key=KEY)).pvalue > 1e-4
