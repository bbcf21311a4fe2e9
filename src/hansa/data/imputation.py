"""Missing numbers, replaced per client from the client's own training rows and nobody else's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from hansa.core.layout import Array, Int64s
from hansa.core.sections import Features
from hansa.data.rows import ClientRows, offsets_of


@dataclass(frozen=True, eq=False)
class Imputation:
    """How missing numbers are replaced: by a client's own median or mean, or left to scaling ("center").

    ``rest`` [slots] replaces what is still missing after that, such as a column that a client never measured;
    None leaves it NaN, which scaling puts at the centre.
    """

    method: Literal["median", "mean", "center"]
    rest: Array | None = None

    @classmethod
    def of(cls, features: Features) -> Imputation:
        """Return the imputation of a table. Without scaling, the centre is the declared one, or 0."""
        if features.scaling != "none":
            return cls(features.imputation)
        return cls(features.imputation, np.array([slot.column.center or 0.0 for slot in features.slots()], np.float32))

    def apply(self, x: Array, basis: ClientRows, everything: ClientRows) -> Array:
        """Return x [N, p] without the missing numbers that can be replaced.

        ``basis`` holds the rows that a client may learn from (its training rows), ``everything`` all its rows;
        both list the same clients. x is copied only if something is missing.
        """
        gaps = np.isnan(x).any(axis=0)
        if not gaps.any():
            return x
        x = np.array(x, dtype=np.float32)
        if self.method != "center":
            owners, learners = everything.clients(), basis.clients()
            for column in np.flatnonzero(gaps):
                fills = segment_centres(x[basis.order, column], learners, clients=len(basis), method=self.method)
                missing = np.isnan(x[everything.order, column])
                x[everything.order[missing], column] = fills[owners[missing]]
        return x if self.rest is None else np.where(np.isnan(x), self.rest, x)


def segment_centres(values: Array, clients_of: Int64s, *, clients: int, method: Literal["median", "mean"]) -> Array:
    """Return each client's median or mean of what is not NaN in ``values`` [total]: float64 [clients].

    Clients without a value get NaN. Sorted once for all clients.
    """
    known = ~np.isnan(values)
    numbers, owners = values[known].astype(np.float64), clients_of[known]
    counts = np.bincount(owners, minlength=clients)
    if method == "mean":
        sums = np.bincount(owners, weights=numbers, minlength=clients)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    ranked = np.append(numbers[np.lexsort((numbers, owners))], np.nan)
    starts = offsets_of(counts)[:-1]
    lower = ranked[starts + (np.maximum(counts, 1) - 1) // 2]
    upper = ranked[starts + np.maximum(counts, 1) // 2]
    return np.where(counts > 0, (lower + upper) / 2, np.nan)
