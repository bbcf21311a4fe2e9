"""Tallies as integer lanes, so that an evaluation is a secure sum like any other.

Counts are exact. A sum of losses or errors is rounded to the metric's resolution for each client. A client whose
tallies are not finite adds 1 to the lane ``undefined.METRIC`` and nothing else: the metric is then not defined.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hansa.core.layout import Array, Int64s, Lane, Layout
from hansa.evaluation.metrics import Metric


def tally_layout(metrics: tuple[Metric, ...]) -> Layout:
    """Return the lanes of an evaluation: for each metric ``undefined.METRIC``, then ``METRIC.0`` ... ``METRIC.k-1``."""
    lanes: list[Lane] = []
    for metric in metrics:
        nothing = metric.tally(np.zeros((0, 2)), np.zeros(0), np.zeros(0, dtype=np.int64), 1)
        lanes.append(Lane(f"undefined.{metric.name}", 0.0, 1.0))
        lanes += [
            Lane(f"{metric.name}.{column}", 0.0, metric.most, metric.resolution) for column in range(nothing.shape[1])
        ]
    return Layout((), tuple(lanes))


def tally_lanes(layout: Layout, tallies: Mapping[str, Array]) -> Int64s:
    """Return the lanes of n clients: int64 [n, lanes], from their tallies, metric -> float64 [n, k]."""
    blocks = []
    for rows in tallies.values():
        finite: Array = np.asarray(np.isfinite(rows).all(axis=1))
        blocks += [1.0 - finite[:, None], np.where(finite[:, None], rows, 0.0)]
    columns = np.concatenate(blocks, axis=1)
    low, high, resolution = _numbers(layout)
    whole: Int64s = np.rint(np.clip(columns, low, high) / resolution).astype(np.int64)
    return whole


def tallies_of(layout: Layout, total: Int64s) -> dict[str, Array]:
    """Return the tallies of summed lanes [lanes]: metric -> float64 [k], NaN where one client's were not finite."""
    decoded = total * _numbers(layout)[2]
    found: dict[str, list[float]] = {}
    undefined: dict[str, bool] = {}
    for lane, value in zip(layout.lanes, decoded.tolist(), strict=True):
        first, _, last = lane.name.partition(".")
        if first == "undefined":
            undefined[last], found[last] = value > 0, []
        else:
            found[first].append(value)
    return {name: np.full(len(row), np.nan) if undefined[name] else np.array(row) for name, row in found.items()}


def _numbers(layout: Layout) -> tuple[Array, Array, Array]:
    return tuple(np.array([getattr(lane, name) for lane in layout.lanes]) for name in ("low", "high", "resolution"))  # type: ignore[return-value]
