"""Examples in a file per client, read when they are gathered; the last ones read stay in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from hansa.core.layout import Array, Int64s
from hansa.data.imputation import Imputation
from hansa.data.refusals import malformed
from hansa.data.rows import ClientRows
from hansa.data.stores import AddArray, ArrayStore, Form, converted

KEPT_BYTES: Final = 256 * 2**20


class Recent:
    """The files read last, by ordinal, up to so many bytes. Another process that gets a copy starts empty."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self._kept: OrderedDict[int, Array] = OrderedDict()

    def get(self, ordinal: int, read: Callable[[int], Array]) -> Array:
        """Return what is kept for ``ordinal``, or read and keep it."""
        if ordinal in self._kept:
            self._kept.move_to_end(ordinal)
            return self._kept[ordinal]
        values = self._kept[ordinal] = read(ordinal)
        self._bytes += values.nbytes
        while self._bytes > self._limit and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return values

    def __reduce__(self) -> tuple[type[Recent], tuple[int]]:
        return Recent, (self._limit,)


@dataclass(frozen=True, eq=False)
class FolderStore:
    """Examples of clients that lie one after another, each in a file of its own.

    ``starts`` int64 [clients + 1] says which rows are whose; ``read`` returns x of one file; ``digests`` uint8
    [clients, 32] are of the files' bytes. Once ``imputed``, ``basis`` holds the rows that a client learns from.
    """

    paths: tuple[Path, ...]
    starts: Int64s
    labels: Array
    shape: tuple[int, ...]
    form: Form
    read: Callable[[Path], Array]
    digests: Array
    imputation: Imputation | None = None
    basis: ClientRows | None = None
    recent: Recent = field(default_factory=Recent)

    def take(self, rows: Int64s) -> tuple[Array, Array]:
        """Return the examples of ``rows``, reading every client's file at most once."""
        flat = rows.reshape(-1)
        owners = np.searchsorted(self.starts, flat, side="right") - 1
        x = np.empty((len(flat), *self.shape), dtype=np.int64 if self.form == "token" else np.float32)
        by_owner = np.argsort(owners, kind="stable")
        ordinals, firsts = np.unique(owners[by_owner], return_index=True)
        for ordinal, entries in zip(ordinals.tolist(), np.split(by_owner, firsts[1:]), strict=True):
            values = self.recent.get(ordinal, self._values)
            x[entries] = converted(values[flat[entries] - self.starts[ordinal]], self.form)
        y = self.labels.take(rows)
        return x.reshape(*rows.shape, *self.shape), y

    def imputed(self, basis: ClientRows, everything: ClientRows, imputation: Imputation) -> FolderStore:  # noqa: ARG002
        """Return a store that imputes each client when its file is read."""
        return replace(self, imputation=imputation, basis=basis, recent=Recent())

    def fingerprint(self, add: AddArray) -> None:
        """Hand the digests of the files to ``add``, and the labels."""
        add(self.form, self.digests)
        add("labels", self.labels)

    def in_memory(self) -> ArrayStore:
        """Return all examples in one array."""
        return ArrayStore(np.concatenate([self.read(path) for path in self.paths]), self.labels, self.form)

    def _values(self, ordinal: int) -> Array:
        values = self.read(self.paths[ordinal])
        start, size = int(self.starts[ordinal]), int(self.starts[ordinal + 1] - self.starts[ordinal])
        if len(values) != size:
            why = f"it had {size} examples when the run began and has {len(values)} now"
            raise malformed(self.paths[ordinal], why, action="Restore the file, or start again.")
        if self.basis is None or self.imputation is None:
            return values
        learned = self.basis.subset(np.array([ordinal]))
        alone = ClientRows(learned.order - start, learned.offsets)
        return self.imputation.apply(values, alone, ClientRows.contiguous(np.array([size])))
