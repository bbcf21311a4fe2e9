"""Training of layer stacks with hand-derived gradients, a chunk of clients at once, in numpy.

Every array has a leading client axis, and each client has its own weights: a layer is one batched product over the
chunk. numpy hands small products to OpenBLAS without a per-client cost in Python, and takes a quarter to a half of
the time of torch's batched products at the sizes of federated models on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from hansa.core.layout import Array, Branch, Floats, Int64s, Parameter, views_of
from hansa.core.nouns import ClientBatch, ClientContext, ClientStates
from hansa.training.fused_layers import Draws, Layer, Linear
from hansa.training.local import LocalBatches, LocalWork, Outcome, bend, hook_states, local_batches

GATHER_BYTES: Final = 2**24
"""Examples of consecutive steps are gathered together up to about so many bytes."""


_TURN_OUTPUTS: Final = 64
"""The fewest outputs of a first layer whose weights are turned."""
_TURN_STEPS: Final = 4
"""The fewest steps for which they are."""


@dataclass(frozen=True)
class Program:
    """A stack of layers from examples [n, b, ...] to outputs [n, b, outputs], and the loss of these."""

    layers: tuple[Layer, ...]
    loss: str

    def outputs(self, parameters: Mapping[str, Array], x: Array) -> Array:
        """Return the outputs for examples, without dropout: [n, b, outputs]."""
        for layer in self.layers:
            x, _ = layer.forward(parameters, x, None)
        return np.asarray(x)

    def gradients(  # noqa: PLR0913 - one pass forward and back
        self,
        parameters: Mapping[str, Array],
        into: Mapping[str, Array],
        x: Array,
        y: Array,
        share: Floats,
        *,
        scale: float,
        draws: Draws | None,
    ) -> Array:
        """Write ``scale`` times the gradients of each client's mean loss ``into`` arrays; return that loss [n].

        ``share`` [n, b] is what an example counts in its client's mean: 0 for padding.
        """
        saved = []
        for layer in self.layers:
            x, kept = layer.forward(parameters, x, draws)
            saved.append(kept)
        back, losses = residual(self.loss, x.reshape(*y.shape, -1), y)
        losses *= share
        back *= (share * np.float32(scale))[..., None]
        padding = share == 0
        if padding.any():  # what it gave may not be finite
            losses[padding] = 0
            back[padding] = 0
        loss: Array = np.einsum("nb->n", losses)
        back = back.reshape(x.shape)
        first = next((place for place, layer in enumerate(self.layers) if layer.names), 0)
        for place in range(len(self.layers) - 1, first - 1, -1):
            back = self.layers[place].backward(parameters, into, saved[place], back, onward=place > first)
        return loss


def train_clients(
    work: LocalWork, program: Program, branch: Branch, context: ClientContext, states: ClientStates
) -> Outcome:
    """Train every client of the context at once; clients with fewer steps stop earlier."""
    clients, number = context.clients, context.assignment.round
    batches = local_batches(work, clients.ordinals, clients.sizes, context.streams.of("order", number))
    seeds = context.streams.of("dropout", number).bits(clients.ordinals, 1)[:, 0] >> np.uint64(1)
    params = context.assignment.model[..., context.layout.slices[branch.name]]
    start = np.broadcast_to(params, (len(clients), branch.size))
    program, turned = turned_for(program, branch, batches.positions.shape[1])
    order = _Order.of(batches.steps)
    chunk = _Chunk(
        clients=clients if order.sorted else clients.of(order.places),
        batches=LocalBatches(order.take(batches.positions), order.take(batches.steps)),
        start=turned.turn(order.take(start)),
        vectors={
            name: turned.turn(order.take(vector)) for name, vector in hook_states(work.hooks, context, states).items()
        },
        seeds=order.take(seeds),
    )
    with np.errstate(over="ignore", invalid="ignore"):  # the round counts updates that are not finite
        end, loss = _descend(work, program, turned.branch, chunk)
    delta = order.back(turned.turn_back(end))
    delta -= start
    return Outcome(delta, batches.steps, order.back(loss))


@dataclass(frozen=True)
class Turned:
    """A branch of which some weights [outputs, inputs] are held as [inputs, outputs] while training."""

    original: Branch
    branch: Branch
    names: tuple[str, ...]

    def turn(self, vectors: Floats) -> Floats:
        """Return vectors [n, size] with those weights turned."""
        return self._turned(vectors, self.original, self.branch)

    def turn_back(self, vectors: Floats) -> Floats:
        """Undo ``turn``."""
        return self._turned(vectors, self.branch, self.original)

    def _turned(self, vectors: Floats, before: Branch, after: Branch) -> Floats:
        if not self.names:
            return vectors
        if vectors.strides[0] == 0 and len(vectors) > 1:  # one row, spread
            return np.broadcast_to(self._turned(vectors[:1], before, after), vectors.shape)
        result = np.empty(vectors.shape, dtype=np.float32)
        into = views_of(after, result)
        for name, values in views_of(before, vectors).items():
            into[name][...] = values.swapaxes(1, 2) if name in self.names else values
        return result


def turned_for(program: Program, branch: Branch, steps: int) -> tuple[Program, Turned]:
    """Return a program whose first weights are turned where that saves more than the turning costs.

    With few examples a step, OpenBLAS takes x W^T up to four times as long as x W. The layers after the first one
    gain nothing: what their forward products save, the products that lead back lose.
    """
    place = next((place for place, layer in enumerate(program.layers) if layer.names), None)
    first = None if place is None else program.layers[place]
    shapes = {parameter.name: parameter.shape for parameter in branch.parameters}
    if (
        not isinstance(first, Linear)
        or first.transposed
        or steps < _TURN_STEPS
        or shapes[first.weight][0] < _TURN_OUTPUTS
    ):
        return program, Turned(branch, branch, ())
    parameters = tuple(
        Parameter(parameter.name, parameter.shape[::-1]) if parameter.name == first.weight else parameter
        for parameter in branch.parameters
    )
    layers = (*program.layers[:place], replace(first, transposed=True), *program.layers[int(place or 0) + 1 :])
    return replace(program, layers=layers), Turned(branch, Branch(branch.name, parameters), (first.weight,))


@dataclass(frozen=True)
class _Order:
    """The places of a chunk's clients by their steps, most first; ``sorted`` where they lie so already."""

    places: Int64s
    sorted: bool

    @classmethod
    def of(cls, steps: Int64s) -> _Order:
        places = np.argsort(-steps, kind="stable")
        return cls(places, bool((places == np.arange(len(places))).all()))

    def take(self, rows: Array) -> Array:
        """Return rows in this order; a row that is spread over all clients stays so."""
        return rows if self.sorted or (rows.strides[0] == 0 and len(rows) > 1) else rows[self.places]

    def back(self, rows: Array) -> Array:
        """Return rows as they lay before."""
        return rows if self.sorted else rows[np.argsort(self.places, kind="stable")]


@dataclass(frozen=True)
class _Chunk:
    """The clients of a chunk in the order of their steps: what they start from and what hooks read."""

    clients: ClientBatch
    batches: LocalBatches
    start: Floats
    vectors: Mapping[str, Floats]
    seeds: Array


def _descend(work: LocalWork, program: Program, branch: Branch, chunk: _Chunk) -> tuple[Floats, Array]:
    """Return the parameters after all steps [n, size] and the mean loss of each client [n]."""
    optimizer, steps = work.optimizer, chunk.batches.steps
    end = np.array(chunk.start, order="C")  # one row that is spread would be copied column by column
    gradient = np.empty_like(end)
    memory = optimizer.start(end)
    parameters, into = views_of(branch, end), views_of(branch, gradient)
    rate = None if work.hooks else optimizer.gradient_rate
    total = np.zeros(len(end))
    for number, (x, y, share) in enumerate(_steps_of(chunk), start=1):
        active = len(x)
        total[:active] += program.gradients(
            _first(parameters, active),
            _first(into, active),
            x,
            y,
            share,
            scale=1.0 if rate is None else rate,
            draws=Draws(chunk.seeds[:active], number),
        )
        here, moved = end[:active], gradient[:active]
        if rate is not None:
            here -= moved
            continue
        bent = bend(work.hooks, here, moved, chunk.start[:active], _first(chunk.vectors, active))
        optimizer.step(here, bent, _first(memory, active), number)
    return end, total / np.maximum(steps, 1)


def _first(arrays: Mapping[str, Array], count: int) -> dict[str, Array]:
    return {name: array[:count] for name, array in arrays.items()}


def _steps_of(chunk: _Chunk) -> Iterator[tuple[Array, Array, Floats]]:
    """Yield the examples of each step for the clients that take it: x [a, b, ...], y [a, b], shares [a, b].

    Steps are gathered many at a time: one gather for a chunk, where its examples are few.
    """
    positions, steps = chunk.batches.positions, chunk.batches.steps
    count, most, batch = positions.shape
    width = 8 * max(1, int(np.prod(chunk.clients.signature.shape)))
    window = max(1, GATHER_BYTES // max(1, count * batch * width))
    for first in range(0, most, window):
        busy = int(np.searchsorted(-steps, -first, side="left"))
        some = positions[:busy, first : first + window]
        x, y = chunk.clients.of(slice(0, busy)).gather(some.reshape(busy, -1))
        x, y = x.reshape(*some.shape, *x.shape[2:]), y.reshape(some.shape)
        real = some >= 0
        share = real.astype(np.float32) / np.maximum(real.sum(axis=2, keepdims=True), 1).astype(np.float32)
        for step in range(some.shape[1]):
            active = int(np.searchsorted(-steps, -(first + step), side="left"))
            yield x[:active, step], y[:active, step], share[:active, step]


def residual(loss: str, outputs: Array, y: Array) -> tuple[Array, Array]:
    """Return d loss / d outputs [n, b, outputs] and the loss of each example [n, b]."""
    return _RESIDUALS[loss](outputs, y)


def _squared_error(outputs: Array, y: Array) -> tuple[Array, Array]:
    difference = outputs[..., 0] - y.astype(np.float32, copy=False)
    return 2 * difference[..., None], difference**2


def _binary_cross_entropy(outputs: Array, y: Array) -> tuple[Array, Array]:
    score = outputs[..., 0]
    probability = 1 / (1 + np.exp(-np.clip(score, -80, 80)))
    y = y.astype(np.float32, copy=False)
    return (probability - y)[..., None], np.logaddexp(0, score) - y * score


def _cross_entropy(outputs: Array, y: Array) -> tuple[Array, Array]:
    """Return softmax minus one-hot, and -log softmax of the label.

    A reduction over a short last axis is slow in numpy: the largest output is found over a transposed copy, and sums
    are products with ones.
    """
    classes = outputs.shape[-1]
    rows = outputs.reshape(-1, classes)
    labels = np.arange(0, rows.size, classes) + y.reshape(-1)
    shifted = rows - np.ascontiguousarray(rows.T).max(axis=0)[:, None]
    flat = shifted.reshape(-1)
    of_label = flat.take(labels)
    np.exp(shifted, out=shifted)
    sums = shifted @ np.ones(classes, dtype=np.float32)
    shifted /= sums[:, None]
    flat[labels] -= 1
    return shifted.reshape(outputs.shape), (np.log(sums) - of_label).reshape(y.shape)


_RESIDUALS: Final[Mapping[str, Callable[[Array, Array], tuple[Array, Array]]]] = {
    "squared-error": _squared_error,
    "binary-cross-entropy": _binary_cross_entropy,
    "cross-entropy": _cross_entropy,
}
