"""The losses of torch modules, of outputs [m, k] and labels [m]: the mean over the examples, or one for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def _binary_cross_entropy(outputs: Tensor, y: Tensor, *, reduction: str) -> Tensor:
    """Return the loss of log odds [m, 1] for classes 0 and 1."""
    return functional.binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs.dtype), reduction=reduction)


def _squared_error(outputs: Tensor, y: Tensor, *, reduction: str) -> Tensor:
    """Return the squared difference of outputs [m, 1] and labels."""
    return functional.mse_loss(outputs[:, 0], y.to(outputs.dtype), reduction=reduction)


_REDUCED: Final[Mapping[str, Any]] = {
    "cross-entropy": functional.cross_entropy,
    "binary-cross-entropy": _binary_cross_entropy,
    "squared-error": _squared_error,
}

LOSSES: Final[Mapping[str, Loss]] = {name: partial(loss, reduction="mean") for name, loss in _REDUCED.items()}
"""Name -> the mean loss of some examples."""
EACH: Final[Mapping[str, Loss]] = {name: partial(loss, reduction="none") for name, loss in _REDUCED.items()}
"""Name -> the loss of each example [m]."""
