"""Which rows of a store belong to which client, laid out so that a million clients cost two arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from hansa.core.layout import Array, Int64s


@dataclass(frozen=True, eq=False)
class ClientRows:
    """The rows of every client, one client after another: a compressed sparse row matrix without values.

    ``order`` int64 [total] holds row numbers of a store; client c has ``order[offsets[c]:offsets[c + 1]]``.
    ``offsets`` is int64 [clients + 1].
    """

    order: Int64s
    offsets: Int64s

    @classmethod
    def from_numbers(cls, numbers: Int64s, clients: int) -> ClientRows:
        """Return the rows of each client, ascending, from the client number of each row [N]."""
        sizes = np.bincount(numbers, minlength=clients)
        return cls(np.argsort(numbers, kind="stable").astype(np.int64, copy=False), offsets_of(sizes))

    @classmethod
    def contiguous(cls, sizes: Int64s) -> ClientRows:
        """Return the rows of clients that lie one after another in the store."""
        return cls(np.arange(int(sizes.sum()), dtype=np.int64), offsets_of(sizes))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def all_sizes(self) -> Int64s:
        """Return how many rows each client has: int64 [clients]."""
        return np.diff(self.offsets)

    def sizes(self, ordinals: Int64s) -> Int64s:
        """Return how many rows some clients have, in O(n): int64 [n]."""
        ordinals = np.asarray(ordinals, dtype=np.int64)
        return self.offsets[ordinals + 1] - self.offsets[ordinals]

    def at(self, ordinals: Int64s, positions: Int64s) -> Int64s:
        """Return the store's rows at ``positions`` [n, b] of each client: int64 [n, b].

        -1 is padding and gives some row of the store. Raises IndexError for a position past the end of a
        client, where the next client's rows begin.
        """
        ordinals = np.asarray(ordinals, dtype=np.int64)
        positions = np.asarray(positions, dtype=np.int64)
        if (positions >= self.sizes(ordinals)[:, None]).any():
            raise IndexError("a position lies past a client's last example")
        entries = self.offsets[ordinals][:, None] + np.maximum(positions, 0)
        return self.order.take(np.minimum(entries, len(self.order) - 1))

    def clients(self) -> Int64s:
        """Return the client number of each entry of ``order``: int64 [total]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.all_sizes)

    def positions(self) -> Int64s:
        """Return the position of each entry within its client: int64 [total]."""
        return np.arange(len(self.order), dtype=np.int64) - np.repeat(self.offsets[:-1], self.all_sizes)

    def where(self, keep: NDArray[np.bool_]) -> ClientRows:
        """Return the same clients with only the entries that ``keep`` [total] marks."""
        kept = np.concatenate([[0], np.cumsum(keep)]).astype(np.int64)
        return ClientRows(self.order[keep], kept[self.offsets])

    def subset(self, ordinals: Int64s) -> ClientRows:
        """Return some clients, in the order given, with all their rows."""
        sizes = self.sizes(ordinals)
        offsets = offsets_of(sizes)
        steps = np.arange(int(offsets[-1]), dtype=np.int64)
        return ClientRows(self.order[steps + np.repeat(self.offsets[ordinals] - offsets[:-1], sizes)], offsets)


def offsets_of(sizes: Array) -> Int64s:
    """Return where each client's rows begin, and where the last ones end: int64 [clients + 1]."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Names(Sequence[str]):
    """The names of many clients, made into strings when they are asked for.

    ``listed`` holds names to pick from by ``numbers`` int64 [clients]; without it a client that was dealt
    is called "client-" and its number, with ``width`` digits.
    """

    numbers: Int64s
    listed: Array | None = None
    width: int = 3

    @classmethod
    def listing(cls, names: Array | Sequence[str]) -> Names:
        """Return these names."""
        return cls(np.arange(len(names), dtype=np.int64), np.asarray(names))

    @classmethod
    def dealt(cls, clients: int) -> Names:
        """Return the names of dealt clients: "client-000", "client-001" ..."""
        return cls(np.arange(clients, dtype=np.int64), width=max(3, len(str(clients - 1))))

    def subset(self, ordinals: Int64s) -> Names:
        """Return the names of some clients."""
        return Names(self.numbers[ordinals], self.listed, self.width)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Names: ...
    def __getitem__(self, index: Any) -> str | Names:
        if isinstance(index, slice):
            return Names(self.numbers[index], self.listed, self.width)
        number = int(self.numbers[index])
        return f"client-{number:0{self.width}d}" if self.listed is None else str(self.listed[number])


@dataclass(frozen=True, eq=False)
class Roster:
    """The clients of a pool of examples: their names and their rows."""

    names: Names
    rows: ClientRows
