"""The layers of the fused path: each forward and its derivative by hand, for n clients with weights of their own.

``forward`` returns the layer's output and what ``backward`` needs of it. ``backward`` takes the derivative of the loss
by the output, writes those by the parameters into the arrays that it is given, and returns that by the input. It may
write over the derivative that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Protocol

import numpy as np

from hansa.core.layout import Array
from hansa.training.dropout_masks import masks

Arrays = Mapping[str, Array]


@dataclass
class MaskSource:
    """Where a step's dropout masks come from: the clients' seeds [n], the step, and how many masks it has drawn."""

    seeds: Array
    step: int
    calls: int = 0


class Layer(Protocol):
    """One layer of a stack."""

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that it has."""

    def forward(self, parameters: Arrays, x: Array, draws: MaskSource | None) -> tuple[Array, Any]:
        """Return the output for x [n, b, ...], and what ``backward`` needs."""

    def backward(self, parameters: Arrays, into: Arrays, saved: Any, back: Array, *, onward: bool) -> Array:
        """Return the derivative by the input (anything, unless ``onward``), and write those by the parameters."""


@lru_cache(64)
def _ones(count: int) -> Array:
    return np.ones((1, count), dtype=np.float32)


@lru_cache(64)
def _zeros(count: int) -> Array:
    return np.zeros(count, dtype=np.float32)


@dataclass(frozen=True)
class Linear:
    """x W^T + b over the last axis, W [n, outputs, inputs]; ``transposed``: W [n, inputs, outputs]."""

    weight: str
    bias: str | None = None
    transposed: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Return weight and bias."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def forward(self, parameters: Arrays, x: Array, draws: MaskSource | None) -> tuple[Array, Any]:  # noqa: ARG002
        """Return the outputs [n, b, ..., outputs]."""
        weight = parameters[self.weight]
        rows = x.reshape(len(x), -1, x.shape[-1])
        y = np.matmul(rows, weight if self.transposed else weight.swapaxes(1, 2))
        if self.bias is not None:
            y += parameters[self.bias][:, None, :]
        return y.reshape(*x.shape[:-1], y.shape[-1]), rows

    def backward(self, parameters: Arrays, into: Arrays, saved: Any, back: Array, *, onward: bool) -> Array:
        """Return back W."""
        weight = parameters[self.weight]
        rows = back.reshape(len(back), -1, back.shape[-1])
        if self.transposed:
            np.matmul(saved.swapaxes(1, 2), rows, out=into[self.weight])
        else:
            np.matmul(rows.swapaxes(1, 2), saved, out=into[self.weight])
        if self.bias is not None:
            np.matmul(_ones(rows.shape[1]), rows, out=into[self.bias][:, None, :])  # a sum over a middle axis is slow
        if not onward:
            return back
        down = np.matmul(rows, weight.swapaxes(1, 2) if self.transposed else weight)
        return np.asarray(down.reshape(*back.shape[:-1], down.shape[-1]))


@dataclass(frozen=True)
class Embedding:
    """A row of W [n, vocabulary, width] for each token; ``padding`` is a token whose row does not learn."""

    weight: str
    padding: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return the table."""
        return (self.weight,)

    def forward(self, parameters: Arrays, x: Array, draws: MaskSource | None) -> tuple[Array, Any]:  # noqa: ARG002
        """Return rows [n, b, ..., width] for tokens [n, b, ...]."""
        table = parameters[self.weight]
        clients = np.arange(len(x)).reshape(-1, *([1] * (x.ndim - 1)))
        return table[clients, x], x

    def backward(self, parameters: Arrays, into: Arrays, saved: Any, back: Array, *, onward: bool) -> Array:  # noqa: ARG002
        """Add each token's derivative to its row."""
        table = into[self.weight]
        count, vocabulary, width = table.shape
        rows = (np.arange(count)[:, None] * vocabulary + saved.reshape(count, -1)).reshape(-1)
        order = np.argsort(rows, kind="stable")
        starts = np.flatnonzero(np.diff(rows[order], prepend=-1))
        sums = np.add.reduceat(back.reshape(-1, width)[order], starts, axis=0)
        table[...] = 0
        owner, token = np.divmod(rows[order][starts], vocabulary)
        table[owner, token] = sums
        if self.padding is not None:
            table[:, self.padding] = 0
        return back


@dataclass(frozen=True)
class LayerNorm:
    """Normalisation of each example over its last ``axes`` axes (Ba, Kiros, Hinton 2016, arXiv:1607.06450)."""

    axes: int
    epsilon: float
    weight: str | None = None
    bias: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Return weight and bias, where there are any."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    def forward(self, parameters: Arrays, x: Array, draws: MaskSource | None) -> tuple[Array, Any]:  # noqa: ARG002
        """Return the normalised x, scaled and shifted."""
        over = tuple(range(-self.axes, 0))
        centred = x - x.mean(axis=over, keepdims=True)
        scale = 1 / np.sqrt(np.square(centred).mean(axis=over, keepdims=True) + np.float32(self.epsilon))
        centred *= scale
        y = centred if self.weight is None else centred * self._spread(parameters[self.weight], x)
        if self.bias is not None:
            y = y + self._spread(parameters[self.bias], x)
        return y, (centred, scale)

    def backward(self, parameters: Arrays, into: Arrays, saved: Any, back: Array, *, onward: bool) -> Array:
        """Return (g - mean(g) - y mean(g y)) / std with g = back times the weight."""
        normal, scale = saved
        between = tuple(range(1, back.ndim - self.axes))
        if self.bias is not None:
            back.sum(axis=between, out=into[self.bias])
        if self.weight is not None:
            (back * normal).sum(axis=between, out=into[self.weight])
            back = back * self._spread(parameters[self.weight], back)
        if not onward:
            return back
        over = tuple(range(-self.axes, 0))
        along = (back * normal).mean(axis=over, keepdims=True)
        return np.asarray((back - back.mean(axis=over, keepdims=True) - normal * along) * scale)

    def _spread(self, parameter: Array, x: Array) -> Array:
        """Return [n, *normalised] with axes of 1 between, to go with x."""
        return parameter.reshape(len(parameter), *([1] * (x.ndim - 1 - self.axes)), *parameter.shape[1:])


@dataclass(frozen=True)
class Shape:
    """Gives every example a shape, where -1 stands for what is left."""

    shape: tuple[int, ...] = (-1,)
    names: tuple[str, ...] = field(default=(), repr=False)

    def forward(self, parameters: Arrays, x: Array, draws: MaskSource | None) -> tuple[Array, Any]:  # noqa: ARG002
        """Return x [n, b, *shape]."""
        return x.reshape(*x.shape[:2], *self.shape), x.shape

    def backward(self, parameters: Arrays, into: Arrays, saved: Any, back: Array, *, onward: bool) -> Array:  # noqa: ARG002
        """Return the derivative in the shape that x had."""
        return back.reshape(saved)


@dataclass(frozen=True)
class Dropout:
    """Sets elements to 0 with probability p in training, by each client's own masks, and scales up the others."""

    p: float
    names: tuple[str, ...] = field(default=(), repr=False)

    def forward(self, parameters: Arrays, x: Array, draws: MaskSource | None) -> tuple[Array, Any]:  # noqa: ARG002
        """Return x times a mask, or x where there are no draws."""
        if draws is None:
            return x, None
        mask = masks(draws.seeds, draws.step, draws.calls, x[0].size, self.p).reshape(x.shape)
        draws.calls += 1
        return x * mask, mask

    def backward(self, parameters: Arrays, into: Arrays, saved: Any, back: Array, *, onward: bool) -> Array:  # noqa: ARG002
        """Return back times the mask."""
        back *= saved
        return back


@dataclass(frozen=True)
class Activation:
    """An elementwise function, with its derivative as a function of its input and output."""

    kind: str
    argument: float = 0.0
    names: tuple[str, ...] = field(default=(), repr=False)

    def forward(self, parameters: Arrays, x: Array, draws: MaskSource | None) -> tuple[Array, Any]:  # noqa: ARG002
        """Return f(x)."""
        y = ACTIVATIONS[self.kind][0](x, np.float32(self.argument))
        return y, (x, y)

    def backward(self, parameters: Arrays, into: Arrays, saved: Any, back: Array, *, onward: bool) -> Array:  # noqa: ARG002
        """Return back times f'(x)."""
        x, y = saved
        back *= ACTIVATIONS[self.kind][1](x, y, np.float32(self.argument))
        return back


def _relu(x: Array) -> Array:
    """Return max(x, 0); numpy takes more than twice as long where 0 is a number and no row."""
    rows = x.reshape(len(x), -1)
    return np.maximum(rows, _zeros(rows.shape[1])).reshape(x.shape)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -80, 80))))


def _swish_slope(x: Array) -> Array:
    gate = _sigmoid(x)
    return np.asarray(gate * (1 + x * (1 - gate)))


ACTIVATIONS: Final[Mapping[str, tuple[Callable[[Array, Any], Array], Callable[[Array, Array, Any], Array]]]] = {
    "relu": (lambda x, _: _relu(x), lambda x, _y, _: x > 0),
    "leaky-relu": (
        lambda x, slope: np.where(x > 0, x, x * slope),
        lambda x, _y, slope: np.where(x > 0, np.float32(1), slope),
    ),
    "elu": (
        lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
        lambda x, y, alpha: np.where(x > 0, np.float32(1), y + alpha),
    ),
    "tanh": (lambda x, _: np.tanh(x), lambda _x, y, _: 1 - y * y),
    "sigmoid": (lambda x, _: _sigmoid(x), lambda _x, y, _: y * (1 - y)),
    "silu": (lambda x, _: x * _sigmoid(x), lambda x, _y, _: _swish_slope(x)),
}
"""Name -> f(x, argument), f'(x, f(x), argument)."""
