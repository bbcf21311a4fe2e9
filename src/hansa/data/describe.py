"""Numbers about a population's examples, for `hansa data`: sizes, classes, how much clients differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from hansa.core.datasets import FederatedData
from hansa.core.layout import Array, Int64s
from hansa.core.nouns import ClientDatasets
from hansa.data.clients import ClientExamples
from hansa.data.rows import ClientRows, Names
from hansa.data.stores import ArrayStore

QUANTILES: Final = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_BINS: Final = 10
_CLIENTS: Final = 1000
"""About how many clients are described where examples are made as they are read."""
_PARTS: Final = ("train", "validation", "test", "held_out")


@dataclass(frozen=True, kw_only=True, eq=False)
class Description:
    """What one can say of a population's examples. One row a client, in the order of the population.

    Of ``population`` clients all are described where their examples are kept, and a thousand, evenly spaced, where
    they are made as they are read.

    ``sizes`` maps each part ("train", "validation", "test", "held_out") to int64 [clients]; a client has
    0 where it is not in a part. ``label_counts`` is int64 [clients, labels] over all parts, and ``label_names``
    says what is counted: classes, or tenths of the pooled range of a real-valued label. ``size_quantiles`` are
    those of all examples of a client. ``skew`` is the mean total-variation distance between a client's labels
    and the pooled ones, from 0 (alike) to 1; ``skew_by_chance`` is about what clients of these sizes would show
    if examples were dealt at random.
    """

    population: int
    names: Sequence[str]
    sizes: Mapping[str, Int64s]
    central: int
    label_names: tuple[str, ...]
    label_counts: Int64s
    size_quantiles: Mapping[float, float]
    skew: float
    skew_by_chance: float

    @property
    def total(self) -> int:
        """Return the number of all clients' examples."""
        return int(self.label_counts.sum())

    @property
    def client_skews(self) -> Array:
        """Return each client's total-variation distance from the pooled labels: float64 [clients]."""
        return client_skews(self.label_counts)


def describe(data: FederatedData) -> Description:
    """Return the description of what :func:`hansa.data.load` returned: clients that train, then held-out ones."""
    kept = {name: part for name in _PARTS if (part := getattr(data, name)) is not None}
    population = sum(len(kept[name].names) for name in ("train", "held_out") if name in kept)
    parts = {name: _described(part, population) for name, part in kept.items()}
    trains = len(parts["train"])
    held_out = parts.get("held_out")
    clients = trains + (0 if held_out is None else len(held_out))
    names = [*parts["train"].names, *(() if held_out is None else held_out.names)]
    count_labels, label_names = _counting(data, parts)
    sizes, counts = {}, np.zeros((clients, len(label_names)), dtype=np.int64)
    for name, part in parts.items():
        rows = slice(trains, clients) if name == "held_out" else slice(0, trains)
        sizes[name] = np.zeros(clients, dtype=np.int64)
        sizes[name][rows] = part.rows.all_sizes
        counts[rows] += count_labels(part)
    totals = counts.sum(axis=1)
    return Description(
        population=population,
        names=names,
        sizes=sizes,
        central=0 if data.central is None else len(data.central.y),
        label_names=label_names,
        label_counts=counts,
        size_quantiles=dict(zip(QUANTILES, np.quantile(totals, QUANTILES).tolist(), strict=True)),
        skew=float(client_skews(counts).mean()),
        skew_by_chance=_skew_by_chance(counts),
    )


def _described(part: ClientDatasets, population: int) -> ClientExamples:
    """Return a part's examples; of those that are made as they are read, the labels of some clients."""
    if isinstance(part, ClientExamples):
        return part
    clients = len(part.names)
    count = max(1, clients * min(_CLIENTS, population) // population)
    some = np.arange(count) * clients // count
    sizes = part.sizes(some)
    labels = [
        part.gather(some[place, None], np.arange(size)[None, :])[1].reshape(-1)
        for place, size in enumerate(sizes.tolist())
    ]
    names = Names.listing([part.names[ordinal] for ordinal in some.tolist()])
    pooled = np.concatenate(labels)
    return ClientExamples(names, ArrayStore(np.zeros((len(pooled), 0)), pooled), ClientRows.contiguous(sizes))


def client_skews(label_counts: Int64s) -> Array:
    """Return the total-variation distance of each client's labels from the pooled ones: float64 [clients]."""
    shares = label_counts / np.maximum(label_counts.sum(axis=1, keepdims=True), 1)
    pooled = label_counts.sum(axis=0) / max(1, int(label_counts.sum()))
    return np.asarray(np.abs(shares - pooled).sum(axis=1) / 2)


def _skew_by_chance(label_counts: Int64s) -> float:
    """Return the mean distance under random dealing, each count taken as normal: E|z| = sqrt(2 / pi)."""
    sizes = np.maximum(label_counts.sum(axis=1), 1)
    pooled = label_counts.sum(axis=0) / max(1, int(label_counts.sum()))
    spread = np.sqrt(pooled * (1 - pooled)).sum()
    left = 1 - sizes / max(1, int(sizes.sum()))
    return float(np.minimum(1.0, np.sqrt(2 / np.pi * left / sizes) * spread / 2).mean())


def _counting(
    data: FederatedData, parts: Mapping[str, ClientExamples]
) -> tuple[Callable[[ClientExamples], Int64s], tuple[str, ...]]:
    """Return how labels are counted and what the counts are called."""
    if data.signature.classes:
        return lambda part: part.label_counts(data.signature.classes), data.class_names
    pooled = np.concatenate([part.labels() for part in parts.values()])
    edges = np.unique(np.quantile(pooled, np.linspace(0, 1, _BINS + 1)[1:-1]))
    bounds = [float(pooled.min()), *edges.tolist(), float(pooled.max())]
    names = tuple(f"{low:.4g} to {high:.4g}" for low, high in pairwise(bounds))

    def count(part: ClientExamples) -> Int64s:
        cells = part.rows.clients() * len(names) + np.searchsorted(edges, part.labels(), side="left")
        return np.bincount(cells, minlength=len(part) * len(names)).reshape(len(part), len(names))

    return count, names
