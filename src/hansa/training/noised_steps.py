"""Local DP-SGD: the steps of one client after another, each a noised sum of clipped gradients of single examples.

What enters a step is whole numbers: each example's gradient is cut to the clip norm and to steps of 2^-20 clip norms,
towards zero, so that no rounding makes it longer; their sum is exact in any order, and the noise on it is a discrete
Gaussian. Only then come floats. All that follows (the local optimizer, hooks, transforms) is post-processing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any, Final

import numpy as np

from hansa.core.example_privacy import ExamplePrivacy
from hansa.core.layout import Floats, Int64s
from hansa.core.nouns import ClientContext, ClientStates
from hansa.core.registry import resolve
from hansa.core.streams import Stream
from hansa.training.local import LocalWork, Outcome, bend, hook_states

LIMIT: Final = 2**20
"""The clip norm in whole numbers."""
_MARGIN: Final = 1 - 2.0**-20
"""What is left of the clip norm, so that rounding in double precision does not pass it, for up to 2^31 entries."""
_MOST_ROWS: Final = 32
_MOST_ENTRIES: Final = 2**20

NOISED: Final = ("none", "the steps of each client are noised, one client after another")
"""How clients train together, and why."""

Gradients = Callable[[Floats, Int64s], Floats]
"""Parameters float32 [size] and positions of a client's examples [m] -> the gradient of each one's loss [m, size]."""


def rows_at_once(size: int) -> int:
    """Return of how many examples gradients of ``size`` entries are held at a time."""
    return max(1, min(_MOST_ROWS, _MOST_ENTRIES // max(1, size)))


def train_clients(
    work: LocalWork, context: ClientContext, states: ClientStates, sources: Iterable[Gradients]
) -> Outcome:
    """Train every client of the context by the gradients of its examples, which ``sources`` yield in order.

    A client's result depends on itself and its number only. No loss is told.
    """
    clients, vectors = context.clients, hook_states(work.hooks, context, states)
    params = context.assignment.model[..., context.layout.slices["params"]]
    start = np.broadcast_to(params, (len(clients), params.shape[-1]))
    delta = np.empty(start.shape, dtype=np.float32)
    for i, gradients in enumerate(sources):
        state = {name: vector[i : i + 1] for name, vector in vectors.items()}
        first = np.array(start[i : i + 1], dtype=np.float32)
        sums = _Sums(work, context, i, gradients)
        delta[i] = (_trained(work, first, sums, state) - first)[0]
    steps = np.full(len(clients), work.steps, dtype=np.int64)
    return Outcome(delta, steps, np.zeros(len(clients)))


def _trained(work: LocalWork, first: Floats, sums: _Sums, state: dict[str, Floats]) -> Floats:
    """Return where the steps of one client end: float32 [1, size]."""
    values, memory = first.copy(), work.optimizer.start(first)
    for number in range(1, int(work.steps or 0) + 1):
        gradient = sums.of_step(number, values[0])[None]
        work.optimizer.step(values, bend(work.hooks, values, gradient, first, state), memory, number)
    return values


class _Sums:
    """The noised gradients of one client's steps."""

    def __init__(self, work: LocalWork, context: ClientContext, client: int, gradients: Gradients) -> None:
        if work.example_privacy is None:
            raise LookupError("a trainer without example_privacy has no noised steps")
        self._given: ExamplePrivacy = work.example_privacy
        self._all = work.batch_size == "all"
        expected = self._given.expected_examples
        self._divisor = expected if self._all else int(work.batch_size)
        self._probability = Fraction(self._divisor, expected)
        self._client = context.clients.ordinals[client : client + 1]
        self._size = int(context.clients.sizes[client])
        number = context.assignment.round
        self._coins = context.streams.of("example-sampling", number)
        self._noise = context.streams.of("example-noise", number)
        self._gradients = gradients

    def of_step(self, number: int, values: Floats) -> Floats:
        """Return the gradient of a step (from 1) for parameters float32 [size]: float32 [size]."""
        joined = drawn(self._coins.draw(number), self._client, self._size, self._probability)
        total = np.zeros(len(values))  # whole numbers below 2^53, which doubles hold exactly
        rows = rows_at_once(len(values))
        for begin in range(0, len(joined), rows):
            found = self._gradients(values, joined[begin : begin + rows])
            total += clipped_integers(found, self._given.clip_norm).sum(axis=0)
        key = self._noise.draw(number).bits(self._client, 4)[0].astype("<u8").tobytes()
        variance = Fraction(math.ceil((float(self._given.noise_multiplier or 0) * LIMIT) ** 2))
        noised = total + resolve("noise", "discrete-gaussian")(variance, len(values), key=key)
        scaled: Any = noised * (self._given.clip_norm / LIMIT / self._divisor)
        return np.asarray(scaled, dtype=np.float32)


def drawn(stream: Stream, client: Int64s, size: int, probability: Fraction) -> Int64s:
    """Return which of ``size`` examples take part in a step, each by its own coin: int64 [m].

    The probability is rounded down to a multiple of 2^-64, so that it is never larger than what is accounted.
    """
    if probability == 1:
        return np.arange(size)
    threshold = np.uint64(math.floor(probability * 2**64))
    return np.flatnonzero(stream.bits(client, size)[0] < threshold)


def clipped_integers(gradients: Floats, clip_norm: float) -> Floats:
    """Return gradients [m, size] as whole numbers of an L2 norm of at most :data:`LIMIT`: float64 [m, size].

    One that is not finite counts as zeros: otherwise a single example could make the sum anything.
    """
    exact = gradients.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", exact, exact))
    finite = np.isfinite(norms)
    factors = np.where(finite, LIMIT * _MARGIN / np.maximum(norms, clip_norm), 0.0)
    exact[~finite] = 0.0
    exact *= factors[:, None]
    return np.trunc(exact, out=exact)
