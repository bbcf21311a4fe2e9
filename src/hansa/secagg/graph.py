"""Who shares keys with whom: a regular graph over those who advertised; everybody with everybody is one of them.

Source: Bell, Bonawitz, Gascon, Lepoint, Raykova 2020, "Secure single-server aggregation with (poly)logarithmic
overhead", https://eprint.iacr.org/2020/704, section 3: clients in a random order on a circle, each joined to the k/2
before it and the k/2 after it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from hansa.secagg.encoding import to_bitmap
from hansa.secagg.keys import digest
from hansa.secagg.masks import stream
from hansa.secagg.task import Task


@dataclass(frozen=True)
class Graph:
    """The graph of a task, of the clients that advertised in it, sorted, and of the beacon that was drawn for them."""

    task: Task
    advertised: tuple[int, ...]
    beacon: bytes = b""

    @property
    def complete(self) -> bool:
        """Say whether everybody is everybody's neighbour."""
        return not 0 < self.task.neighbours < len(self.advertised) - 1

    @property
    def threshold(self) -> int:
        """Return how many shares give a secret back."""
        return self.task.threshold_of(len(self.advertised))

    @property
    def holders(self) -> int:
        """Return how many clients hold shares of one secret, the dealer included."""
        return len(self.advertised) if self.complete else self.task.neighbours + 1

    @cached_property
    def _circle(self) -> tuple[list[int], dict[int, int]]:
        key = digest("graph", self.task.hash, to_bitmap(self.advertised, self.task.roster_size), self.beacon)
        words = np.frombuffer(stream(key, 8 * len(self.advertised)), "<u8")
        order = [self.advertised[place] for place in np.argsort(words, kind="stable")]
        return order, {client: place for place, client in enumerate(order)}

    @cached_property
    def _rows(self) -> dict[int, tuple[int, ...]]:
        return {}

    def neighbours(self, client: int) -> tuple[int, ...]:
        """Return the sorted neighbours of one who advertised."""
        if client not in self._rows:
            self._rows[client] = self._row(client)
        return self._rows[client]

    def _row(self, client: int) -> tuple[int, ...]:
        if self.complete:
            return tuple(each for each in self.advertised if each != client)
        order, places = self._circle
        place, half = places[client], self.task.neighbours // 2
        steps = (*range(-half, 0), *range(1, half + 1))
        return tuple(sorted(order[(place + step) % len(order)] for step in steps))

    def holders_within(self, client: int, present: Iterable[int]) -> list[int]:
        """Return who holds shares of a client's secrets and is present, the client itself included."""
        members = present if isinstance(present, AbstractSet | Mapping) else set(present)
        found = [each for each in self.neighbours(client) if each in members]
        if client in members:
            insort(found, client)
        return found


def sets_digest(task: Task, advertised: Iterable[int], shared: Iterable[int], survivors: Iterable[int]) -> bytes:
    """Return the digest of a round's three sets, which clients sign so that all know the same."""
    sets = (to_bitmap(each, task.roster_size) for each in (advertised, shared, survivors))
    return digest("surv", task.hash, *sets)
