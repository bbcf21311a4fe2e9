"""Updates as they travel: safetensors. What a server takes is checked first (:mod:`hansa.wire.update_checks`).

A training update holds "values" [d] (float32, or what a transform made of it), "lanes" int64 [lanes] and "side/NAME";
one for feature statistics "lanes" alone; one of an evaluation "tallies/METRIC", float64 [k].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import safetensors.numpy

from hansa.core.layout import Array, Layout
from hansa.core.nouns import Batch

_SIDE: Final = "side/"
_TALLIES: Final = "tallies/"


def encode_update(batch: Batch) -> bytes:
    """Return the bytes of one client's update, a batch of one."""
    side = {f"{_SIDE}{name}": _first(array) for name, array in batch.side.items()}
    values = {"values": _first(batch.values)} if batch.layout.size else {}
    return safetensors.numpy.save({**values, "lanes": _first(batch.lanes), **side})


def decode_update(content: bytes, layout: Layout) -> Batch:
    """Return the batch of one that the bytes of a checked update hold."""
    arrays = safetensors.numpy.load(content)
    lanes = arrays.pop("lanes")
    values = arrays.pop("values", np.zeros(0, dtype=np.float32))
    side = {name.removeprefix(_SIDE): array[None] for name, array in arrays.items()}
    return Batch(values[None], lanes[None], layout, side)


def _first(rows: Array) -> Array:
    """Return the first of some clients' rows [n, ...] as [...], where a number for each client is an array of none."""
    return np.ascontiguousarray(rows[:1]).reshape(rows.shape[1:])


def encode_tallies(tallies: Mapping[str, Array]) -> bytes:
    """Return the bytes of an evaluation: metric -> float64 [k]."""
    return safetensors.numpy.save(
        {f"{_TALLIES}{name}": np.ascontiguousarray(tally, dtype=np.float64) for name, tally in tallies.items()}
    )


def decode_tallies(content: bytes) -> dict[str, Array]:
    """Return the tallies that the bytes of a checked evaluation hold: metric -> float64 [k]."""
    return {name.removeprefix(_TALLIES): array for name, array in safetensors.numpy.load(content).items()}
