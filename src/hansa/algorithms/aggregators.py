"""Aggregators: from the sum alone (mean, fixed-mean), or from all rows (median, trimmed-mean)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Lt

from hansa.core.layout import Array, Floats, weight_lane
from hansa.core.nouns import Aggregate
from hansa.core.schema import Doc


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The weighted mean, branch by branch: the sum over the sum of weights.

    Source: McMahan, Moore, Ramage, Hampson, Aguera y Arcas 2017, "Communication-efficient learning of
    deep networks from decentralized data", algorithm 1, https://arxiv.org/abs/1602.05629.
    """

    needs_sum_only: ClassVar[bool] = True
    fixed: ClassVar[bool] = False

    def problems(self, cohort_size: float) -> list[tuple[str, str]]:  # noqa: ARG002 - the aggregator protocol
        """Return nothing: any cohort will do."""
        return []

    def finish(self, total: Aggregate) -> Aggregate:
        """Return the sum with the summed weight lane of each branch."""
        return replace(total, weights={name: total.lane(weight_lane(name)) for name in total.weights})


@dataclass(frozen=True, kw_only=True)
class FixedMean:
    """The sum over a number that is fixed in advance, so that nobody's absence changes the others' share."""

    needs_sum_only: ClassVar[bool] = True
    fixed: ClassVar[bool] = True

    divisor: Annotated[float, Gt(0), Doc("what the sum is divided by, usually the expected cohort")]

    def problems(self, cohort_size: float) -> list[tuple[str, str]]:  # noqa: ARG002 - the aggregator protocol
        """Return nothing: any cohort will do."""
        return []

    def finish(self, total: Aggregate) -> Aggregate:
        """Return the sum with the divisor as the weight of each branch."""
        return replace(total, weights=dict.fromkeys(total.weights, self.divisor))


@dataclass(frozen=True, kw_only=True)
class Median:
    """The coordinate-wise median.

    Source: Yin, Chen, Ramchandran, Bartlett 2018, "Byzantine-robust distributed learning: towards
    optimal statistical rates", definition 1, https://arxiv.org/abs/1803.01498.
    """

    needs_sum_only: ClassVar[bool] = False
    fixed: ClassVar[bool] = False

    def problems(self, cohort_size: float) -> list[tuple[str, str]]:  # noqa: ARG002 - the aggregator protocol
        """Return nothing: any cohort will do."""
        return []

    def combine(self, rows: Floats) -> Array:
        """Return the median of each column [n, block]: float64 [block]."""
        ordered = _sorted_columns(rows)
        middle = len(rows) // 2
        low = ordered[:, middle] if len(rows) % 2 else ordered[:, middle - 1]
        return np.asarray((low.astype(np.float64) + ordered[:, middle]) / 2)


@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """The coordinate-wise mean without the smallest and largest share of the values.

    Source: Yin, Chen, Ramchandran, Bartlett 2018, definition 2, https://arxiv.org/abs/1803.01498.
    """

    needs_sum_only: ClassVar[bool] = False
    fixed: ClassVar[bool] = False

    fraction: Annotated[
        float, Ge(0), Lt(0.5), Doc("share of the values cut at each end of a coordinate; rounded down to a count")
    ]

    def problems(self, cohort_size: float) -> list[tuple[str, str]]:
        """Refuse a fraction that cuts nobody from the expected cohort."""
        if self.fraction == 0 or self._cut(cohort_size) > 0:
            return []
        least = math.ceil(1e6 / max(cohort_size, 1)) / 1e6
        advice = f"use at least {least:g}, or the mean" if least < 0.5 else "use the mean"
        return [("fraction", f"{self.fraction:g} of a cohort of {cohort_size:g} cuts no update; {advice}.")]

    def combine(self, rows: Floats) -> Array:
        """Return the trimmed mean of each column [n, block]: float64 [block]."""
        cut = self._cut(len(rows))
        return np.asarray(_sorted_columns(rows)[:, cut : len(rows) - cut].mean(axis=1, dtype=np.float64))

    def _cut(self, count: float) -> int:
        """Return how many are cut at each end; 0.29 of 100 is 29, though their product is a little less."""
        return math.floor(self.fraction * count * (1 + 1e-12))


def _sorted_columns(rows: Floats) -> Floats:
    """Return each column's values in order: [block, n]. Contiguous rows sort many times faster."""
    columns = np.ascontiguousarray(rows.T)
    columns.sort(axis=1)
    return columns
