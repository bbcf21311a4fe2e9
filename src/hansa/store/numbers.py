"""Numbers of clients in arrays, to and from the database."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

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


def packed(numbers: Int64s) -> bytes:
    """Return numbers, at least one and none below 0, as a bit for each up to the largest, compressed."""
    among = np.zeros(int(numbers.max()) + 1, dtype=np.bool_)
    among[numbers] = True
    return zlib.compress(np.packbits(among).tobytes(), level=1)


def among_packed(packs: Iterable[bytes], size: int) -> NDArray[np.bool_]:
    """Return which numbers below ``size`` are in any of some packs: bool [size]. It takes ``size`` bytes and a bit."""
    bits = np.zeros(size // 8 + 1, dtype=np.uint8)
    for pack in packs:
        more = np.frombuffer(zlib.decompressobj().decompress(pack, len(bits)), dtype=np.uint8)
        bits[: len(more)] |= more
    return np.unpackbits(bits, count=size).astype(np.bool_)
