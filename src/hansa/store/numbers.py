"""Numbers of clients in arrays, to and from the database."""

from __future__ import annotations

import numpy as np

from hansa.core.layout import Array, Int64s


def wanted_of(numbers: Int64s) -> list[int]:
    """Return numbers as a parameter: sorted, each once, so that the index is walked in one direction."""
    distinct: list[int] = np.unique(numbers).tolist()
    return distinct


def numbers_of(found: Int64s, wanted: Int64s) -> tuple[Int64s, Array]:
    """Return where in ``found`` each of ``wanted`` is that is there, and which of ``wanted`` are."""
    order = np.argsort(found, kind="stable")
    places = np.searchsorted(found, wanted, sorter=order)
    places = np.minimum(places, len(found) - 1)
    known = found[order[places]] == wanted
    return order[places][known], known


def parsed(text: str | None) -> Int64s:
    """Return the numbers of a text in which commas part them."""
    return np.fromstring(text or "", dtype=np.int64, sep=",")
