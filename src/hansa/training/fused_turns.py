"""How the fused path holds the parameters of a stack's first dense layer while it trains.

With few examples a step, OpenBLAS takes x W^T up to four times as long as x W. So the first weights are turned where
that saves more than the turning costs. The layers after the first one gain nothing: what their forward products save,
the products that lead back lose.

Turned weights [inputs, outputs] with their bias behind them are one matrix [inputs + 1, outputs]. Examples with a
column of ones bring the bias into the product forward, and its derivative into the product back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from hansa.core.layout import Array, Branch, Floats, Int64s, Parameter, views_of
from hansa.training.fused_layers import Layer, Linear, Shape

_TURN_OUTPUTS: Final = 64
"""The fewest outputs of a first layer whose weights are turned."""
_TURN_STEPS: Final = 4
"""The fewest steps for which they are."""


@dataclass(frozen=True)
class Turned:
    """A branch of which some weights [outputs, inputs] are held as [inputs, outputs] while training.

    ``training`` is the branch as the layers see it. ``entry`` is what makes of examples what the first of them takes,
    with a column of ``ones`` or without.
    """

    original: Branch
    turned: Branch
    training: Branch
    names: tuple[str, ...] = ()
    entry: tuple[Layer, ...] = ()
    ones: bool = False

    def turn(self, vectors: Floats) -> Floats:
        """Return vectors [n, size] with those weights turned."""
        if not self.names:
            return vectors
        if vectors.strides[0] == 0 and len(vectors) > 1:  # one row, spread
            return np.broadcast_to(self.turn(vectors[:1]), vectors.shape)
        return self._turned(vectors, self.original, self.turned, slice(None))

    def turn_back(self, vectors: Floats, rows: slice | Int64s = slice(None)) -> Floats:
        """Undo ``turn``, and put each vector at its place among ``rows``."""
        if not self.names and isinstance(rows, slice):
            return vectors
        return self._turned(vectors, self.turned, self.original, rows)

    def enter(self, x: Array, real: Array) -> Array:
        """Return examples [n, b, ...] as the first layer takes them.

        Those [n, b] that are not real come as zeros: 0 times what is not finite would be NaN.
        """
        for layer in self.entry:
            x, _ = layer.forward({}, x, None)
        padding = ~real
        if self.ones:
            wider = np.empty((*x.shape[:-1], x.shape[-1] + 1), dtype=np.float32)
            wider[..., :-1], wider[..., -1] = x, 1
            wider[padding] = 0
            return wider
        if x.dtype.kind == "f" and not np.isfinite(x[padding]).all():
            x = x.copy()
            x[padding] = 0
        return x

    def _turned(self, vectors: Floats, before: Branch, after: Branch, rows: slice | Int64s) -> Floats:
        result = np.empty(vectors.shape, dtype=np.float32)
        into = views_of(after, result)
        for name, values in views_of(before, vectors).items():
            into[name][rows] = values.swapaxes(1, 2) if name in self.names else values
        return result


def turned_for(layers: tuple[Layer, ...], branch: Branch, steps: int) -> tuple[tuple[Layer, ...], Turned]:
    """Return the layers that train a branch for so many steps, and how they hold it."""
    place = next((place for place, layer in enumerate(layers) if layer.names), None)
    first = None if place is None else layers[place]
    if place is None or not isinstance(first, Linear):
        return layers, Turned(branch, branch, branch)
    shapes = {parameter.name: parameter.shape for parameter in branch.parameters}
    turns = not first.transposed and steps >= _TURN_STEPS and shapes[first.weight][0] >= _TURN_OUTPUTS
    if not (turns or first.transposed):
        return layers, Turned(branch, branch, branch)
    names = (first.weight,) if turns else ()
    turned = Branch(
        branch.name,
        tuple(replace(each, shape=each.shape[::-1]) if each.name in names else each for each in branch.parameters),
    )
    first, after = replace(first, transposed=True), layers[place + 1 :]
    entry, joined = layers[:place], _joined(turned, first)
    if joined is None or not all(isinstance(layer, Shape) for layer in entry):
        return (*entry, first, *after), Turned(branch, turned, turned, names)
    return (replace(first, bias=None), *after), Turned(branch, turned, joined, names, entry, ones=True)


def _joined(branch: Branch, layer: Linear) -> Branch | None:
    """Return a branch with a layer's weights and bias as one parameter, or None where one does not follow the other."""
    names = [parameter.name for parameter in branch.parameters]
    place = names.index(layer.weight)
    if names[place + 1 : place + 2] != [layer.bias]:
        return None
    inputs, outputs = branch.parameters[place].shape
    joined = Parameter(layer.weight, (inputs + 1, outputs))
    return Branch(branch.name, (*branch.parameters[:place], joined, *branch.parameters[place + 2 :]))
