"""Evaluation over clients: tallies per client, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np

from hansa.core.datasets import Examples
from hansa.core.layout import Array, Int64s
from hansa.core.nouns import ClientBatch
from hansa.evaluation.metrics import Metric, auc_error

Predict = Callable[[Array, int | None], Array]
"""(x [b, ...], client ordinal or None) -> outputs [b, o]. With an ordinal, the client's own buffers are used."""
Tallies = Mapping[str, Array]
"""Metric -> one row a client, float64 [clients, k]."""

_ROWS_AT_ONCE: Final = 8192


def tally_clients(
    metrics: tuple[Metric, ...], predict: Predict, clients: ClientBatch, *, one_by_one: bool
) -> dict[str, Array]:
    """Return each client's tallies over all its examples.

    Clients are predicted together in chunks, or one by one where each has buffers of its own.
    """
    parts: dict[str, list[Array]] = {metric.name: [] for metric in metrics}
    for chunk in _chunks(clients.sizes, one_by_one=one_by_one):
        ordinals = clients.ordinals[chunk]
        part = ClientBatch(ordinals, clients.data, clients.signature, clients.scaling)
        x, y = part.everything()
        real = np.arange(x.shape[1])[None, :] < part.sizes[:, None]
        owners = np.nonzero(real)[0]
        outputs = predict(x[real], int(ordinals[0]) if one_by_one else None) if len(owners) else np.zeros((0, 1))
        for metric in metrics:
            parts[metric.name].append(metric.tally(outputs, y[real], owners, len(part)))
    return {name: np.concatenate(rows) for name, rows in parts.items()}


def _chunks(sizes: Int64s, *, one_by_one: bool) -> Iterator[slice]:
    """Return runs of clients whose padded examples fit a bound of rows."""
    start = 0
    while start < len(sizes):
        stop, widest = start + 1, int(sizes[start])
        while not one_by_one and stop < len(sizes):
            widest = max(widest, int(sizes[stop]))
            if widest * (stop - start + 1) > _ROWS_AT_ONCE:
                break
            stop += 1
        yield slice(start, stop)
        start = stop


def evaluate_centrally(metrics: tuple[Metric, ...], predict: Predict, examples: Examples) -> dict[str, float | None]:
    """Return each metric on the server's own examples."""
    totals: dict[str, Array] = {}
    for start in range(0, len(examples.x), _ROWS_AT_ONCE):
        x, y = examples.x[start : start + _ROWS_AT_ONCE], examples.y[start : start + _ROWS_AT_ONCE]
        outputs = predict(x, None)
        for metric in metrics:
            tally = metric.tally(outputs, y, np.zeros(len(y), dtype=np.int64), 1)[0]
            totals[metric.name] = totals.get(metric.name, 0.0) + tally
    return {metric.name: metric.value(totals[metric.name]) for metric in metrics if metric.name in totals}


def summarise(metrics: tuple[Metric, ...], tallies: Tallies) -> dict[str, dict[str, Any]]:
    """Return of each metric: overall (all examples), mean over clients, worst client, mean of the worst tenth.

    Clients for whom a metric is not defined are counted in ``undefined`` and enter no mean.
    """
    return {metric.name: _summary(metric, tallies[metric.name]) for metric in metrics}


def _summary(metric: Metric, tally: Array) -> dict[str, Any]:
    each = [metric.value(row) for row in tally]
    defined = np.array(sorted((value for value in each if value is not None), reverse=not metric.higher_is_better))
    tenth = max(1, -(-len(defined) // 10))
    total = tally.sum(axis=0)
    summary = {
        "overall": metric.value(total),
        "mean": float(defined.mean()) if len(defined) else None,
        "worst_client": float(defined[0]) if len(defined) else None,
        "worst_10_percent": float(defined[:tenth].mean()) if len(defined) else None,
        "clients": len(defined),
        "undefined": len(each) - len(defined),
    }
    return summary | ({"auc_error": auc_error(total)} if metric.name == "auc" else {})


def per_client(metrics: tuple[Metric, ...], tallies: Tallies, names: list[str], sizes: Int64s) -> list[dict[str, Any]]:
    """Return a row a client: its name, its number of examples, and each metric (None where not defined)."""
    values = {metric.name: [metric.value(row) for row in tallies[metric.name]] for metric in metrics}
    return [
        {"client": name, "examples": int(size), **{metric: rows[place] for metric, rows in values.items()}}
        for place, (name, size) in enumerate(zip(names, sizes.tolist(), strict=True))
    ]
