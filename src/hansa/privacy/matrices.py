"""Matrices that correlate the noise of rounds, so that sums of many rounds carry little of it (DP-FTRL).

With A the matrix of prefix sums and A = B C, what is released is a function of C x + z: the estimate of the round's sum
is x + C^-1 z (Denisov et al. 2022; Choquette-Choo et al. 2023, "(Amplified) banded matrix factorization"). A whole run
is one release. Columns of C have norm 1, and two rounds that are at least as many rounds apart as C has bands have
columns without a common row: k participations with that separation move C x by at most sqrt(k) clip norms.

Everything is in integers. C is an integer matrix in units of 2^-20, x is integer, so C x + z is an integer query with
discrete Gaussian noise. Noise rows are y_i = round((z_i - sum over j < i of C_ij y_j) / C_ii). Applied to C x + z in
place of z, the same recursion gives exactly x + y, because rounding commutes with adding integers: x + y is post-
processing of C x + z, with no floating-point number in it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import HansaError
from hansa.privacy.event import require_extra
from hansa.privacy.keystream import row_key
from hansa.privacy.noise import discrete_gaussian

Int64s = NDArray[np.int64]
Floats = NDArray[np.float64]

BITS: Final = 20
"""Entries of an integer matrix are in units of 2^-20."""

_TAP_BITS: Final = 40
_LARGEST: Final = 2**31 - 1
_BLOCK: Final = 1 << 16


@dataclass(frozen=True)
class BandedMatrix:
    """A lower triangular matrix over ``rounds``, whose columns are the same ``taps`` cut at the end and normalised.

    ``taps``: the first column before it is normalised, in units of 2^-40; as many as the matrix has bands.
    """

    rounds: int
    taps: tuple[int, ...]

    @classmethod
    def optimal(cls, rounds: int, bands: int) -> BandedMatrix:
        """Return the matrix of the taps with the least error of prefix sums; see :func:`optimal_taps`."""
        return cls(rounds, tuple(round(tap * 2**_TAP_BITS) for tap in optimal_taps(rounds, bands).tolist()))

    @property
    def bands(self) -> int:
        """Return how many rounds apart two participations of one unit must be."""
        return len(self.taps)

    def column(self, index: int) -> Int64s:
        """Return the entries of a column from the diagonal down, in units of 2^-20: int64 [at most bands].

        Formal guarantee: their norm is at most 2^20, because each is rounded down and the divisor up.
        """
        return self._columns[min(self.bands, self.rounds - index)]

    def row(self, index: int) -> Int64s:
        """Return the entries of a row from the diagonal to the left, in units of 2^-20: int64 [at most bands]."""
        return np.array([self.column(index - step)[step] for step in range(min(self.bands, index + 1))])

    @cached_property
    def _columns(self) -> dict[int, Int64s]:
        """Return the columns by their length; only the last ones are shorter than the bands."""
        found, squares = {}, 0
        for length, tap in enumerate(self.taps, start=1):
            squares += tap * tap
            norm = math.isqrt(squares - 1) + 1
            found[length] = np.array([(each << BITS) // norm for each in self.taps[:length]], dtype=np.int64)
        return found

    def noise(
        self, variance: Fraction, dimension: int, *, run_key: bytes, group: str, start: int = 0
    ) -> Iterator[Int64s]:
        """Yield the noise of each round from ``start`` on, int64 [dimension], in the integer units of the sum.

        ``variance`` is that of the independent noise for columns of norm 1: (noise multiplier x the longest that one
        update can be after rounding, in integer units)^2. Row i is drawn under the key of (run, i, group): whoever
        holds ``run_key`` gets the same rows again, and earlier rows are drawn again first where ``start`` is above 0.
        Holds bands x dimension int32.

        Raises HansaError where the noise may not fit 32 bits: the granularity is then too fine.
        """
        check_width(variance)
        kept: deque[NDArray[np.int32]] = deque(maxlen=self.bands - 1)
        for index in range(self.rounds):
            row = self.row(index)
            noise = discrete_gaussian(variance * 4**BITS, dimension, key=row_key(run_key, index, group))
            for first in range(0, dimension, _BLOCK):
                block = noise[first : first + _BLOCK]
                for entry, earlier in zip(row[1:].tolist(), kept, strict=True):
                    block -= entry * earlier[first : first + _BLOCK].astype(np.int64)
                block += row[0] // 2
                block //= row[0]
            kept.appendleft(_narrowed(noise))
            if index >= start:
                yield noise


@dataclass(frozen=True)
class TreeMatrix:
    """Binary trees over blocks of 2^height rounds, the special case of DP-FTRL (Kairouz et al. 2021).

    Each round is in height + 1 nodes; a prefix sum is that of whole blocks and of at most ``height`` nodes within the
    next one. The matrix has a row for each node, so that its columns have height + 1 ones.
    """

    rounds: int
    height: int

    @classmethod
    def within(cls, rounds: int, bands: int) -> TreeMatrix:
        """Return the highest trees whose blocks are no longer than ``bands`` and cover no more than the rounds."""
        return cls(rounds, min(bands, rounds).bit_length() - 1)

    @property
    def bands(self) -> int:
        """Return how many rounds apart two participations of one unit must be: they are then in different trees."""
        return 1 << self.height

    def noise(
        self, variance: Fraction, dimension: int, *, run_key: bytes, group: str, start: int = 0
    ) -> Iterator[Int64s]:
        """Yield the noise of each round from ``start`` on, int64 [dimension]; see :meth:`BandedMatrix.noise`.

        Holds height + 2 vectors. Nodes are numbered level by level within the run.
        """
        check_width(variance)
        whole, before = np.zeros(dimension, dtype=np.int64), np.zeros(dimension, dtype=np.int64)
        open_nodes: dict[int, Int64s] = {}
        for index in range(self.rounds):
            level = min(_trailing_ones(index), self.height)
            node = (level << 40) + (index >> level)
            drawn = discrete_gaussian(variance * (self.height + 1), dimension, key=row_key(run_key, node, group))
            open_nodes = {each: noise for each, noise in open_nodes.items() if each > level}
            if level == self.height:
                whole = whole + drawn
            else:
                open_nodes[level] = drawn
            prefix = sum(open_nodes.values(), start=whole)
            if index >= start:
                yield prefix - before
            before = prefix


def independent(rounds: int) -> BandedMatrix:
    """Return the matrix of one band: noise that is independent from round to round."""
    return BandedMatrix(rounds, (2**_TAP_BITS,))


def participations(rounds: int, *, min_separation: int, max_participations: int) -> int:
    """Return how often one unit takes part at most, in so many rounds with so many between two of its own."""
    return min(max_participations, -(-rounds // min_separation))


def check_separation(matrix: BandedMatrix | TreeMatrix, min_separation: int) -> None:
    """Raise HansaError where one unit may take part again before a matrix has let go of its last time."""
    if min_separation < matrix.bands:
        raise HansaError(
            "HANSA-PRIVACY-INVALID",
            rule="Two participations of one unit are at least as many rounds apart as the matrix has bands.",
            found=f"The minimum separation is {min_separation}, and there are {matrix.bands} bands.",
            action="Raise min_separation, or choose fewer bands.",
        )


def optimal_taps(rounds: int, bands: int) -> Floats:
    """Return the taps of the banded Toeplitz matrix whose prefix sums have the least mean squared error: [bands].

    The first is 1. Minimises ||c||^2 times the mean over rounds of the squared row norms of A C^-1, by L-BFGS from the
    taps of the square root of A, which are the best without a band (Fichtenberger, Henzinger, Upadhyay 2023).
    """
    require_extra()
    from scipy.optimize import minimize  # noqa: PLC0415 - loads half a second of scipy

    if not 1 <= bands <= rounds:
        raise HansaError(
            "HANSA-PRIVACY-INVALID",
            rule="A matrix has at least one band and no more than rounds.",
            found=f"{bands} bands and {rounds} rounds.",
            action="Choose fewer bands.",
        )
    steps = np.arange(1, bands)
    start = np.cumprod((2 * steps - 1) / (2 * steps))
    if bands == 1:
        return np.ones(1)

    def objective(rest: Floats) -> tuple[float, Floats]:
        error, gradient = _error(np.concatenate([[1.0], rest]), rounds)
        return math.log(error), gradient[1:] / error

    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-8})
    return np.concatenate([[1.0], found.x])


def _error(taps: Floats, rounds: int) -> tuple[float, Floats]:
    """Return ||taps||^2 x the sum over rounds of the squared row norms of A C^-1, and its gradient."""
    from scipy.signal import fftconvolve, lfilter  # noqa: PLC0415 - as above

    weights = np.arange(rounds, 0, -1.0)
    response = lfilter([1.0], taps, np.ones(rounds))  # the first column of A C^-1, a Toeplitz matrix too
    error, norm = float(weights @ response**2), float(taps @ taps)
    adjoint = lfilter([1.0], taps, (2 * weights * response)[::-1])[::-1]
    correlated = fftconvolve(adjoint, response[::-1])[rounds - 1 : rounds - 1 + len(taps)]
    return error * norm, 2 * taps * error - correlated * norm


def prefix_errors(matrix: BandedMatrix | TreeMatrix) -> Floats:
    """Return the standard deviation of the noise of each round's prefix sum, in clip norms: float64 [rounds].

    For a noise multiplier of 1 and one participation; with k it is sqrt(k) times as much at the same guarantee. Takes
    rounds^2 memory for a banded matrix.
    """
    if isinstance(matrix, TreeMatrix):
        numbers = np.arange(1, matrix.rounds + 1)
        nodes = numbers // matrix.bands + np.bitwise_count(numbers % matrix.bands)
        return np.asarray(np.sqrt(nodes * (matrix.height + 1)), dtype=np.float64)
    from scipy.linalg import solve_triangular  # noqa: PLC0415 - as above

    dense = np.zeros((matrix.rounds, matrix.rounds))
    for index in range(matrix.rounds):
        column = matrix.column(index)
        dense[index : index + len(column), index] = column / 2.0**BITS
    inverse = solve_triangular(dense, np.eye(matrix.rounds), lower=True)
    return np.asarray(np.linalg.norm(np.cumsum(inverse, axis=0), axis=1), dtype=np.float64)


def _trailing_ones(number: int) -> int:
    return (~number & (number + 1)).bit_length() - 1


def check_width(variance: Fraction) -> None:
    """Raise HansaError for independent noise that may not fit 32 bits."""
    if variance > Fraction(_LARGEST, 32) ** 2:
        raise _too_wide(f"Its standard deviation is {math.sqrt(variance):g} integer units.")


def _narrowed(noise: Int64s) -> NDArray[np.int32]:
    if int(np.abs(noise).max(initial=0)) > _LARGEST:
        raise _too_wide("A row does not.")
    return noise.astype(np.int32)


def _too_wide(found: str) -> HansaError:
    return HansaError(
        "HANSA-PRIVACY-INVALID",
        rule="Correlated noise fits 32 bits, many times over.",
        found=found,
        action="Choose a coarser granularity.",
    )
