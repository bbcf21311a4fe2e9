"""Where examples lie: one big array, gathered by row numbers of any shape in one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from hansa.core.layout import Array, Int64s
from hansa.data.archives import let_go
from hansa.data.imputation import Imputation
from hansa.data.rows import ClientRows

AddArray = Callable[[str, Array], None]
Form = Literal["number", "unit", "token"]


class ExampleStore(Protocol):
    """Examples addressed by row. ``take`` reads them; nothing else needs to be in memory."""

    @property
    def labels(self) -> Array:
        """The label of every row: integers [N] (class numbers) or float32 [N]."""

    def take(self, rows: Int64s) -> tuple[Array, Array]:
        """Return the examples of ``rows`` (of any shape): x [*rows.shape, ...], y [*rows.shape]."""

    def imputed(self, basis: ClientRows, everything: ClientRows, imputation: Imputation) -> ExampleStore:
        """Return the store with missing numbers replaced, each client's from its rows in ``basis`` alone."""

    def fingerprint(self, add: AddArray) -> None:
        """Hand every array that ``take`` reads to ``add``, by name."""


@dataclass(frozen=True, eq=False)
class ArrayStore:
    """Examples in two arrays: x [N, ...] as it lies in memory or on disk, and labels [N].

    ``form`` says what x becomes when it is read: "number" float32, "unit" float32 in [0, 1] from bytes
    0 to 255, "token" int64.
    """

    x: Array
    labels: Array
    form: Form = "number"

    def take(self, rows: Int64s) -> tuple[Array, Array]:
        """Return the examples of ``rows``."""
        taken = converted(_take(self.x, rows), self.form), _labels(self.labels.take(rows))
        let_go(self.x)
        return taken

    def imputed(self, basis: ClientRows, everything: ClientRows, imputation: Imputation) -> ArrayStore:
        """Return a store whose missing numbers are replaced; x itself is not changed."""
        if self.form != "number" or self.x.ndim != 2:
            return self
        return replace(self, x=imputation.apply(self.x, basis, everything))

    def fingerprint(self, add: AddArray) -> None:
        """Hand both arrays to ``add``."""
        add(self.form, self.x)
        add("labels", self.labels)


@dataclass(frozen=True, eq=False)
class TextStore:
    """Examples that are windows of texts: ``width`` symbols in, the next one out.

    ``symbols`` uint8 [C] holds all texts; row r predicts ``symbols[targets[r]]`` from those before it, so
    that no window is stored.
    """

    symbols: Array
    targets: Array
    width: int

    @property
    def labels(self) -> Array:
        """The symbol to predict, for every window: uint8 [N]."""
        return self.symbols.take(self.targets)

    def take(self, rows: Int64s) -> tuple[Array, Array]:
        """Return windows: x int64 [*rows.shape, width], y int64 [*rows.shape]."""
        targets = self.targets.take(rows).astype(np.int64)
        x = self.symbols.take(targets[..., None] + np.arange(-self.width, 0))
        return x.astype(np.int64), self.symbols.take(targets).astype(np.int64)

    def imputed(self, basis: ClientRows, everything: ClientRows, imputation: Imputation) -> TextStore:  # noqa: ARG002
        """Return the store itself: a text has no missing numbers."""
        return self

    def fingerprint(self, add: AddArray) -> None:
        """Hand the texts and the windows to ``add``."""
        add("symbols", self.symbols)
        add("targets", self.targets)


def converted(values: Array, form: Form) -> Array:
    """Return gathered values as a model reads them: float32, or int64 tokens."""
    if form == "unit":
        return np.divide(values, np.float32(255), dtype=np.float32)
    return values.astype(np.int64 if form == "token" else np.float32, copy=False)


def _take(x: Array, rows: Int64s) -> Array:
    """Gather rows.

    Of an array that is not aligned (mapped from within an archive) or not in C order, ``take`` would first copy all.
    """
    if not x.flags.c_contiguous:
        return np.asarray(x[rows])
    if x.flags.aligned:
        return x.take(rows, axis=0)
    width = x.nbytes // len(x)
    raw = x.reshape(-1).view(np.uint8).reshape(len(x), width)
    return raw.take(rows, axis=0).view(x.dtype).reshape(*rows.shape, *x.shape[1:])


def _labels(labels: Array) -> Array:
    return labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64, copy=False)
