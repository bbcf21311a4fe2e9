"""The losses of the fused path and their derivatives, for n clients at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from hansa.core.layout import Array


def residual(loss: str, outputs: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    """Return ``weight`` [n, b] times d loss / d outputs [n, b, outputs], and the loss of each example [n, b]."""
    return _RESIDUALS[loss](outputs, y, weight)


def _squared_error(outputs: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    difference = outputs[..., 0] - y.astype(np.float32, copy=False)
    return (2 * weight * difference)[..., None], difference**2


def _binary_cross_entropy(outputs: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    score = outputs[..., 0]
    probability = 1 / (1 + np.exp(-np.clip(score, -80, 80)))
    y = y.astype(np.float32, copy=False)
    return (weight * (probability - y))[..., None], np.logaddexp(0, score) - y * score


def _cross_entropy(outputs: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    """Return weight times (softmax minus one-hot), and -log softmax of the label.

    Classes come first meanwhile: numpy is slow where the last axis is short.
    """
    classes = outputs.shape[-1]
    scores = np.array(outputs.reshape(-1, classes).T, order="C")
    flat, weight, count = scores.reshape(-1), weight.reshape(-1), scores.shape[1]
    labels = y.reshape(-1) * count + np.arange(count)
    scores -= np.maximum.reduce(scores, axis=0)
    of_label = flat.take(labels)
    np.exp(scores, out=scores)
    sums = np.add.reduce(scores, axis=0)
    scores *= weight / sums
    flat[labels] -= weight
    return scores.T.reshape(outputs.shape), (np.log(sums) - of_label).reshape(y.shape)


_RESIDUALS: Final[Mapping[str, Callable[[Array, Array, Array], tuple[Array, Array]]]] = {
    "squared-error": _squared_error,
    "binary-cross-entropy": _binary_cross_entropy,
    "cross-entropy": _cross_entropy,
}
