"""Evaluation over clients: tallies per client, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np

from hansa.core.datasets import Examples
from hansa.core.layout import Array, Int64s
from hansa.core.nouns import ClientBatch
from hansa.evaluation.metrics import Metric, auc_error

Predict = Callable[[Array, int | None], Array]
"""(x [b, ...], client ordinal or None) -> outputs [b, o]. With an ordinal, the client's own buffers are used."""
_ROWS_AT_ONCE: Final = 8192
_CLIENTS_AT_ONCE: Final = 512


@dataclass(frozen=True)
class Tallied:
    """What was found on clients.

    ``values`` holds every client's value of each metric, float64 [n], NaN where it is not defined; ``totals`` the
    sum of all tallies, float64 [k]. Single tallies are not kept: an AUC's is large.
    """

    values: Mapping[str, Array]
    totals: Mapping[str, Array]


class Summed(Protocol):
    """Adds up the tallies of clients."""

    def add(self, tallies: Mapping[str, Array], position: int) -> None:
        """Add the tallies of consecutive clients: metric -> float64 [n, k]."""

    def totals(self) -> dict[str, Array]:
        """Return the sums: metric -> float64 [k]."""


class PlainSum:
    """Adds up tallies as they are."""

    def __init__(self) -> None:
        self._totals: dict[str, Array] = {}

    def add(self, tallies: Mapping[str, Array], position: int) -> None:  # noqa: ARG002 - the protocol of sums
        """Add the tallies of consecutive clients."""
        for name, rows in tallies.items():
            self._totals[name] = self._totals.get(name, 0.0) + rows.sum(axis=0)

    def totals(self) -> dict[str, Array]:
        """Return the sums; empty without clients."""
        return self._totals


def tally_clients(
    metrics: tuple[Metric, ...],
    predict: Predict,
    clients: ClientBatch,
    *,
    one_by_one: bool,
    summed: Summed | None = None,
) -> Tallied:
    """Measure every client on all its examples.

    Clients are predicted together in chunks, or one by one where each has buffers of its own. Tallies are added up
    here, or by ``summed``.
    """
    summed = PlainSum() if summed is None else summed
    values = {metric.name: np.full(len(clients), np.nan) for metric in metrics}
    start = 0
    for part in clients.parts(rows=_ROWS_AT_ONCE, clients=1 if one_by_one else _CLIENTS_AT_ONCE):
        x, y = part.everything()
        real = np.arange(x.shape[1])[None, :] < part.sizes[:, None]
        owners = np.nonzero(real)[0]
        ordinal = int(part.ordinals[0]) if one_by_one else None
        outputs = predict(x[real], ordinal) if len(owners) else np.zeros((0, 1))
        tallies = {metric.name: metric.tallies(outputs, y[real], owners, len(part)) for metric in metrics}
        for metric in metrics:
            values[metric.name][start : start + len(part)] = [metric.of(tally) for tally in tallies[metric.name]]
        summed.add(tallies, start)
        start += len(part)
    return Tallied(values, summed.totals())


def evaluate_centrally(metrics: tuple[Metric, ...], predict: Predict, examples: Examples) -> dict[str, float | None]:
    """Return each metric on the server's own examples."""
    totals: dict[str, Array] = {}
    for start in range(0, len(examples.x), _ROWS_AT_ONCE):
        x, y = examples.x[start : start + _ROWS_AT_ONCE], examples.y[start : start + _ROWS_AT_ONCE]
        outputs = predict(x, None)
        for metric in metrics:
            tally = metric.tallies(outputs, y, np.zeros(len(y), dtype=np.int64), 1)[0]
            totals[metric.name] = totals.get(metric.name, 0.0) + tally
    return {metric.name: metric.of(totals[metric.name]) for metric in metrics if metric.name in totals}


def summarise(metrics: tuple[Metric, ...], tallied: Tallied) -> dict[str, dict[str, Any]]:
    """Return of each metric: overall (all examples), mean over clients, worst client, mean of the worst tenth.

    Clients for whom a metric is not defined are counted in ``undefined`` and enter no mean.
    """
    return {metric.name: _summary(metric, tallied) for metric in metrics if metric.name in tallied.totals}


def _summary(metric: Metric, tallied: Tallied) -> dict[str, Any]:
    values, total = tallied.values[metric.name], tallied.totals[metric.name]
    defined = np.sort(values[~np.isnan(values)])
    worst_first = defined if metric.higher_is_better else defined[::-1]
    tenth = max(1, -(-len(defined) // 10))
    summary = {
        "overall": metric.of(total),
        "mean": float(defined.mean()) if len(defined) else None,
        "worst_client": float(worst_first[0]) if len(defined) else None,
        "worst_10_percent": float(worst_first[:tenth].mean()) if len(defined) else None,
        "clients": len(defined),
        "undefined": len(values) - len(defined),
    }
    return summary | ({"auc_error": auc_error(total)} if metric.name == "auc" else {})


def per_client(metrics: tuple[Metric, ...], tallied: Tallied, names: list[str], sizes: Int64s) -> list[dict[str, Any]]:
    """Return a row for each of the first clients: name, number of examples, each metric (None where not defined)."""
    return [
        {
            "client": name,
            "examples": int(sizes[place]),
            **{metric.name: _or_none(tallied.values[metric.name][place]) for metric in metrics},
        }
        for place, name in enumerate(names)
    ]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
