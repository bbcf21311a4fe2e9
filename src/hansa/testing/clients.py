"""Clients in memory: their examples, and who of them took part when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hansa.core.layout import Array, Int64s
from hansa.core.nouns import Signature


@dataclass(frozen=True)
class MemoryClients:
    """Examples of some clients, in lists: ``x[i]`` is [n_i, ...] and ``y[i]`` [n_i, ...]. A ``ClientDatasets``."""

    x: Sequence[Array]
    y: Sequence[Array]

    @property
    def names(self) -> Sequence[str]:
        """Return "client-0", "client-1" and so on."""
        return tuple(f"client-{ordinal}" for ordinal in range(len(self.x)))

    def sizes(self, ordinals: Int64s) -> Int64s:
        """Return how many examples each client has: int64 [n]."""
        return np.array([len(self.x[ordinal]) for ordinal in ordinals.tolist()], dtype=np.int64)

    def labels_at(self, ordinals: Int64s, positions: Int64s) -> Array:
        """Return the labels alone, y of ``gather``."""
        return self.gather(ordinals, positions)[1]

    def gather(self, ordinals: Int64s, positions: Int64s) -> tuple[Array, Array]:
        """Return examples at ``positions`` [n, b]; padding (-1) shows the client's last example."""
        rows = list(zip(ordinals.tolist(), positions, strict=True))
        return np.stack([self.x[i][place] for i, place in rows]), np.stack([self.y[i][place] for i, place in rows])


def quadratic_clients(
    hessians: Sequence[Array], optima: Sequence[Array], sizes: Sequence[int] | None = None
) -> MemoryClients:
    """Return clients with the loss 1/2 (w - a_i)^T H_i (w - a_i), for :class:`QuadraticTrainer`.

    ``hessians`` are [p, p], ``optima`` [p]. Every one of a client's ``sizes[i]`` examples (1 unless given)
    is the same: H_i with a_i below it, [p + 1, p]. So sizes set weights and numbers of steps, never gradients.
    """
    sizes = [1] * len(optima) if sizes is None else sizes
    examples = [
        np.concatenate([hessian, np.asarray(optimum)[None, :]]).astype(np.float32)
        for hessian, optimum in zip(hessians, optima, strict=True)
    ]
    x = [np.repeat(example[None], size, axis=0) for example, size in zip(examples, sizes, strict=True)]
    return MemoryClients(x, [np.zeros(size, dtype=np.float32) for size in sizes])


def quadratic_signature(parameters: int) -> Signature:
    """Return the signature of :func:`quadratic_clients` with so many parameters."""
    return Signature((parameters + 1, parameters), classes=0)


@dataclass
class MemoryView:
    """A population of which everyone is eligible, and who took part when. An ``EligibleView`` for its owner."""

    size: int
    last: Int64s = field(init=False)
    count: Int64s = field(init=False)

    def __post_init__(self) -> None:
        self.last = np.full(self.size, -1, dtype=np.int64)
        self.count = np.zeros(self.size, dtype=np.int64)

    def ids(self, ordinals: Int64s) -> list[str]:
        """Return the names of clients."""
        return [f"client-{ordinal}" for ordinal in ordinals.tolist()]

    def last_round(self, ordinals: Int64s) -> Int64s:
        """Return the last round in which each took part, or -1: int64 [n]."""
        return self.last[ordinals]

    def times(self, ordinals: Int64s) -> Int64s:
        """Return how often each took part: int64 [n]."""
        return self.count[ordinals]

    def record(self, round_number: int, cohort: Int64s) -> None:
        """Record that a cohort took part in a round."""
        self.last[cohort] = round_number
        self.count[cohort] += 1
