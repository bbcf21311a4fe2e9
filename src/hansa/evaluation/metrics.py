"""Metrics whose tallies add up over clients, so that simulation and federation tell the same number.

A tally is a row of numbers for each client, float64 [clients, k]. The value of a sum of rows is the metric over
all their examples. A metric that is not defined (AUC with one class, anything without examples) has the value None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from hansa.core.errors import PlanError, Problem
from hansa.core.layout import Array
from hansa.core.nouns import Signature
from hansa.core.registry import PIECES, resolve

BINS: Final = 1000
"""Score bins of the AUC."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How one metric is tallied and what a tally means.

    ``tally(outputs [b, o], y [b], owners [b], clients)`` returns float64 [clients, k]. Where tallies are summed as
    integers, an entry is a multiple of ``resolution`` and at most ``most``.
    """

    name: str
    higher_is_better: bool
    fits: Callable[[Signature], bool]
    needs: str
    tally: Callable[[Array, Array, Array, int], Array]
    value: Callable[[Array], float | None]
    most: float = 2.0**24
    resolution: float = 1.0

    def tallies(self, outputs: Array, y: Array, owners: Array, clients: int) -> Array:
        """Return each client's tally; one with an output that is not finite has NaN, and so no value."""
        finite: Array = np.asarray(np.isfinite(outputs).all(axis=-1))
        tallies = self.tally(np.where(finite[:, None], outputs, 0), y, owners, clients)
        tallies[np.unique(owners[~finite])] = np.nan
        return tallies

    def of(self, tally: Array) -> float | None:
        """Return the value of a tally, or None where it is not defined or not finite."""
        value = self.value(tally) if np.isfinite(tally).all() else None
        return value if value is not None and np.isfinite(value) else None


def choose(names: tuple[str, ...], signature: Signature) -> tuple[Metric, ...]:
    """Return the named metrics, or those that fit the label. Raises PlanError for one that does not fit."""
    if not names:
        names = ("rmse", "mae") if signature.classes == 0 else ("accuracy", "loss")
        names = ("auc", *names) if signature.classes == 2 else names
    chosen = tuple(resolve("metric", name) for name in names)
    found = f"the data have {signature.classes or 'no'} classes"
    problems = [
        Problem(f"evaluation.metrics.{position}", f"{metric.name} needs {metric.needs}, but {found}; remove it.")
        for position, metric in enumerate(chosen)
        if not metric.fits(signature)
    ]
    if problems:
        raise PlanError(problems)
    return chosen


def known() -> tuple[str, ...]:
    """Return the names of all metrics."""
    return tuple(PIECES["metric"])


def probabilities(outputs: Array) -> Array:
    """Return class probabilities float64 [b, classes] of logits [b, outputs]; one output is a log odds."""
    outputs = outputs.astype(np.float64)
    if outputs.shape[-1] == 1:
        positive = 1 / (1 + np.exp(-np.clip(outputs, -500, 500)))
        return np.concatenate([1 - positive, positive], axis=-1)
    exponentials = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def example_losses(outputs: Array, y: Array) -> Array:
    """Return the loss of each example, float64 [b]: cross-entropy for classes, squared error for numbers."""
    outputs = outputs.astype(np.float64)
    if np.issubdtype(y.dtype, np.floating):
        return np.asarray(np.square(outputs[:, 0] - y))
    if outputs.shape[-1] == 1:
        return np.asarray(np.logaddexp(0, outputs[:, 0]) - y * outputs[:, 0])
    shifted = outputs - outputs.max(axis=-1, keepdims=True)
    return np.asarray(np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(y)), y])


def _first(outputs: Array) -> Array:
    return outputs[:, 0].astype(np.float64)


def _sum_and_count(values: Array, owners: Array, clients: int) -> Array:
    return np.stack(
        [np.bincount(owners, weights=values, minlength=clients), np.bincount(owners, minlength=clients)], axis=1
    ).astype(np.float64)


def _ratio(tally: Array) -> float | None:
    """Return sum over count; None without examples."""
    return float(tally[0] / tally[1]) if tally[1] > 0 else None


def _root_ratio(tally: Array) -> float | None:
    ratio = _ratio(tally)
    return None if ratio is None else float(np.sqrt(ratio))


def _hits(outputs: Array, y: Array) -> Array:
    predicted = outputs[:, 0] > 0 if outputs.shape[-1] == 1 else outputs.argmax(axis=-1)
    return np.asarray(predicted.astype(np.int64) == y, dtype=np.float64)


def _score_histograms(outputs: Array, y: Array, owners: Array, clients: int) -> Array:
    bins = np.minimum((probabilities(outputs)[:, 1] * BINS).astype(np.int64), BINS - 1)
    places = (owners * 2 + y.astype(np.int64)) * BINS + bins
    return np.bincount(places, minlength=clients * 2 * BINS).reshape(clients, 2 * BINS).astype(np.float64)


def auc_of_histograms(tally: Array) -> float | None:
    """Return the area under the ROC curve from score counts [2 x BINS]; a tie in a bin counts half."""
    negatives, positives = tally[:BINS], tally[BINS:]
    pairs = negatives.sum() * positives.sum()
    if pairs == 0:
        return None
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / pairs)


def auc_error(tally: Array) -> float | None:
    """Return the largest error of binning: half the share of pairs that fall into one bin."""
    negatives, positives = tally[:BINS], tally[BINS:]
    pairs = negatives.sum() * positives.sum()
    return float((positives * negatives).sum() / 2 / pairs) if pairs > 0 else None


def _any(_: Signature) -> bool:
    return True


def _classes(signature: Signature) -> bool:
    return signature.classes >= 2


def _two_classes(signature: Signature) -> bool:
    return signature.classes == 2


def _number(signature: Signature) -> bool:
    return signature.classes == 0


LOSS: Final = Metric(
    name="loss",
    higher_is_better=False,
    fits=_any,
    needs="a label",
    tally=lambda outputs, y, owners, clients: _sum_and_count(example_losses(outputs, y), owners, clients),
    value=_ratio,
    most=2.0**28,
    resolution=2.0**-12,
)
ACCURACY: Final = Metric(
    name="accuracy",
    higher_is_better=True,
    fits=_classes,
    needs="classes",
    tally=lambda outputs, y, owners, clients: _sum_and_count(_hits(outputs, y), owners, clients),
    value=_ratio,
)
AUC: Final = Metric(
    name="auc",
    higher_is_better=True,
    fits=_two_classes,
    needs="two classes",
    tally=_score_histograms,
    value=auc_of_histograms,
)
RMSE: Final = Metric(
    name="rmse",
    higher_is_better=False,
    fits=_number,
    needs="a real-valued label",
    tally=lambda outputs, y, owners, clients: _sum_and_count(np.square(_first(outputs) - y), owners, clients),
    value=_root_ratio,
    most=2.0**36,
    resolution=2.0**-6,
)
MAE: Final = Metric(
    name="mae",
    higher_is_better=False,
    fits=_number,
    needs="a real-valued label",
    tally=lambda outputs, y, owners, clients: _sum_and_count(np.abs(_first(outputs) - y), owners, clients),
    value=_ratio,
    most=2.0**28,
    resolution=2.0**-12,
)
