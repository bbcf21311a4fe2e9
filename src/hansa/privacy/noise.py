"""Integer noise: the discrete Gaussian, exact to 2^-128, from the words of a cipher.

The distribution gives the integer x a probability in proportion to exp(-x^2 / (2 sigma^2)) (Canonne, Kamath, Steinke
2020, "The discrete Gaussian for differential privacy", definition 1). What is released under privacy is integers plus
this noise, so that no rounding of floating-point numbers can tell what was added (Mironov 2012).

Sampling inverts the cumulative table. A uniform number of 128 bits is compared with integer thresholds, and no more of
its bits are drawn than the comparison needs: 16 choose a cell of a guide, which mostly holds no threshold; else 48 more
are drawn; and only where these tie with a threshold the last 64.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import HansaError
from hansa.privacy.keystream import KeyStream, fresh_key

Int64s = NDArray[np.int64]

LARGEST_TABLE: Final = Fraction(2**19)
"""The largest variance that has a table of its own; larger ones are sums of several samples."""

LARGEST_VARIANCE: Final = Fraction(2**92)
"""Its samples, of at most 2^50, and what is added to them under a matrix fit an int64; six parts make it up."""

SMOOTH: Final = 5
"""Where a coarse and a fine sample are added, the variance that the coarse one keeps once the sum is known is at least
this: the sum is then a discrete Gaussian up to a factor within 1 +- 4 exp(-2 pi^2 5) < 1 +- 2^-140."""

_CELLS: Final = 1 << 16
_UNSETTLED: Final = np.iinfo(np.int16).min
_BLOCK: Final = 1 << 17
_LANES: Final = 3
_LARGEST: Final = 2**128 - 1


def discrete_gaussian(variance: Fraction, count: int, *, key: bytes | None = None) -> Int64s:
    """Return independent samples of the discrete Gaussian: int64 [count].

    ``variance`` is sigma^2 in squares of integer units, exact. Without a ``key`` of 32 bytes a fresh one is drawn from
    the operating system; the same key, variance and count give the same samples.

    Formal guarantee: each sample is within total variation distance 2^-112 of the discrete Gaussian. A variance up to
    2^19 has its own table: tails beyond 13.5 sigma (less than 2^-128) are cut off, and each threshold is off by less
    than 2^-128. A larger one is V1 + k^2 V2 for a fine sample of variance V1 and k times a coarse one of variance V2,
    with 1 / (1/V2 + k^2/V1) >= 5: by Poisson's summation formula the sum's probabilities are those of the discrete
    Gaussian of variance V up to a factor of 1 +- 2^-140 (as in Micciancio and Walter 2017, "Gaussian sampling over the
    integers", section 3).

    Raises HansaError for a variance that is not positive or larger than 2^92.
    """
    if not 0 < variance <= LARGEST_VARIANCE:
        raise HansaError(
            "HANSA-PRIVACY-INVALID",
            rule="The variance of integer noise is above 0 and at most 2^92, in squares of integer units.",
            found=f"It is {float(variance):g}.",
            action="Choose another noise multiplier or granularity.",
        )
    key = fresh_key() if key is None else key
    samples = np.zeros(count, dtype=np.int64)
    for number, (factor, part) in enumerate(parts(variance)):
        _add(samples, factor, table(part), [KeyStream(key, number * _LANES + lane) for lane in range(_LANES)])
    return samples


def reach(variance: Fraction) -> int:
    """Return the largest absolute sample of a variance: its tables end there."""
    return sum(factor * _table_reach(part) for factor, part in parts(variance))


def parts(variance: Fraction) -> list[tuple[int, Fraction]]:
    """Return factors and variances, each with a table, whose samples add up to one of ``variance``."""
    found, factor = [], 1
    while variance > LARGEST_TABLE:
        fine = min(LARGEST_TABLE, variance / 2)
        step = math.isqrt(math.floor(fine / (2 * SMOOTH)))
        found.append((factor, fine))
        factor, variance = factor * step, (variance - fine) / step**2
    return [*found, (factor, variance)]


class Table(NamedTuple):
    """The cumulative table of a discrete Gaussian over -reach ... reach.

    A uniform number of 128 bits stands for the sample -reach + (how many ``thresholds`` are at most it). ``high`` are
    their upper words, uint64 [2 reach]. ``guide`` [65536] has the sample of each value of the uppermost 16 bits, or
    the smallest int16 where they do not settle it.
    """

    reach: int
    thresholds: tuple[int, ...]
    high: NDArray[np.uint64]
    guide: NDArray[np.int16]


@lru_cache(maxsize=32)
def table(variance: Fraction) -> Table:
    """Return the table of a variance of at most 2^19."""
    thresholds = _thresholds(variance)
    reach = len(thresholds) // 2
    high = np.array([threshold >> 64 for threshold in thresholds], dtype=np.uint64)
    starts = np.arange(_CELLS, dtype=np.uint64) << np.uint64(48)
    fewest = np.searchsorted(high, starts, side="left")
    most = np.searchsorted(high, starts + np.uint64(2**48 - 1), side="right")
    guide = np.where(fewest == most, fewest - reach, _UNSETTLED).astype(np.int16)
    return Table(reach, thresholds, high, guide)


def _table_reach(variance: Fraction) -> int:
    return math.ceil(13.5 * math.sqrt(variance)) + 1


def _thresholds(variance: Fraction) -> tuple[int, ...]:
    """Return 2^128 P(sample < x), rounded down, for x = -reach + 1 ... reach."""
    reach = _table_reach(variance)
    with localcontext() as context:
        context.prec = 80
        scale = Decimal(variance.denominator) / (2 * variance.numerator)
        half = [int((-(scale * (x * x))).exp().scaleb(70)) for x in range(reach + 1)]
    weights = [*reversed(half[1:]), *half]
    total, below, found = sum(weights), 0, []
    for weight in weights[:-1]:
        below += weight
        found.append(min((below << 128) // total, _LARGEST))
    return tuple(found)


def _add(samples: Int64s, factor: int, found: Table, lanes: list[KeyStream]) -> None:
    """Add ``factor`` times fresh samples, in place."""
    for start in range(0, len(samples), _BLOCK):
        block = samples[start : start + _BLOCK]
        cells = lanes[0].read(len(block), "<u2")
        drawn = np.take(found.guide, cells, mode="wrap")  # no cell is out of range: the mode spares numpy a look
        unsettled = np.flatnonzero(drawn == _UNSETTLED)
        drawn[unsettled] = _settled(found, cells[unsettled].astype(np.uint64), lanes)
        block += drawn if factor == 1 else drawn.astype(np.int64) * factor


def _settled(found: Table, cells: NDArray[np.uint64], lanes: list[KeyStream]) -> Int64s:
    """Return the samples of numbers whose upper 16 bits did not settle them; the rest of the bits is drawn here."""
    words = (cells << np.uint64(48)) | (lanes[1].read(len(cells), "<u8") >> np.uint64(16)).astype(np.uint64)
    samples = np.searchsorted(found.high, words, side="right").astype(np.int64)
    for tied in np.flatnonzero(found.high[np.maximum(samples - 1, 0)] == words):
        number = (int(words[tied]) << 64) | int(lanes[2].read(1, "<u8")[0])
        samples[tied] = bisect_right(found.thresholds, number)
    return samples - found.reach
