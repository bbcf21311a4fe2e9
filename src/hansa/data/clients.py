"""The clients' examples as a run reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hansa.core.layout import Array, Int64s
from hansa.data.rows import ClientRows, Names
from hansa.data.stores import ExampleStore


@dataclass(frozen=True, eq=False)
class ClientExamples:
    """One part (training, test ...) of the examples of many clients; a ``core.nouns.ClientDatasets``.

    A gather is one step for all clients of a chunk; its cost does not depend on the population.
    """

    names: Names
    store: ExampleStore
    rows: ClientRows

    def __len__(self) -> int:
        return len(self.rows)

    def sizes(self, ordinals: Int64s) -> Int64s:
        """Return how many examples each client has: int64 [n]."""
        return self.rows.sizes(ordinals)

    def gather(self, ordinals: Int64s, positions: Int64s) -> tuple[Array, Array]:
        """Return examples at ``positions`` [n, b] of each client: x [n, b, ...], y [n, b].

        A position of -1 is padding: its row holds some example. Raises IndexError past a client's end.
        """
        return self.store.take(self.rows.at(ordinals, positions))

    def labels_at(self, ordinals: Int64s, positions: Int64s) -> Array:
        """Return the labels alone, y of ``gather``."""
        return self.store.labels[self.rows.at(ordinals, positions)]

    def labels(self) -> Array:
        """Return the labels of all examples, client after client: [total]."""
        return self.store.labels[self.rows.order]

    def label_counts(self, classes: int) -> Int64s:
        """Return how many examples of each class each client has: int64 [clients, classes]."""
        cells = self.rows.clients() * classes + self.labels().astype(np.int64)
        return np.bincount(cells, minlength=len(self) * classes).reshape(len(self), classes)
