"""Updates as they travel: safetensors, checked against what the plan's vector must look like.

A training update holds "values" [d] (float32, or what a transform made of it), "lanes" int64 [lanes] and "side/NAME";
one for feature statistics "lanes" alone; one of an evaluation "tallies/METRIC", float64 [k].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import safetensors
import safetensors.numpy

from hansa.core.errors import RefusedError
from hansa.core.layout import Array, Layout
from hansa.core.nouns import Batch

_SIDE: Final = "side/"
_TALLIES: Final = "tallies/"


def encode_update(batch: Batch) -> bytes:
    """Return the bytes of one client's update, a batch of one."""
    side = {f"{_SIDE}{name}": np.ascontiguousarray(array[0]) for name, array in batch.side.items()}
    values = {"values": np.ascontiguousarray(batch.values[0])} if batch.layout.size else {}
    return safetensors.numpy.save({**values, "lanes": np.ascontiguousarray(batch.lanes[0]), **side})


def decode_update(content: bytes, layout: Layout) -> Batch:
    """Return the batch of one that bytes hold, for a layout.

    Raises RefusedError for another form, for lanes outside their bounds, and for floats that are not finite.
    """
    arrays = _arrays(content)
    lanes = arrays.pop("lanes", None)
    if lanes is None or lanes.dtype != np.int64 or lanes.shape != (len(layout.lanes),):
        raise invalid(f"Lanes must be int64 [{len(layout.lanes)}].")
    for lane, total in zip(layout.lanes, lanes.tolist(), strict=True):
        low, high = sorted((round(lane.low / lane.resolution), round(lane.high / lane.resolution)))
        if not low <= total <= high:
            raise invalid(f"Lane {lane.name!r} is outside what it declares.")
    values = arrays.pop("values", np.zeros(0, dtype=np.float32))
    side = {name.removeprefix(_SIDE): array[None] for name, array in arrays.items() if name.startswith(_SIDE)}
    if len(side) != len(arrays):
        raise invalid("It holds other arrays than values, lanes and side.")
    if layout.size and not side and values.shape != (layout.size,):
        raise invalid(f"Values must be [{layout.size}].")
    for array in (values, *side.values()):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise not_finite()
    return Batch(values[None], lanes[None], layout, side)


def encode_tallies(tallies: Mapping[str, Array]) -> bytes:
    """Return the bytes of an evaluation: metric -> float64 [k]."""
    return safetensors.numpy.save(
        {f"{_TALLIES}{name}": np.ascontiguousarray(tally, dtype=np.float64) for name, tally in tallies.items()}
    )


def decode_tallies(content: bytes, widths: Mapping[str, int]) -> dict[str, Array]:
    """Return the tallies in bytes, for metrics of known widths; a client without examples sends zeros.

    Raises RefusedError for another form, and for numbers that are not finite.
    """
    arrays = _arrays(content)
    if arrays.keys() != {f"{_TALLIES}{name}" for name in widths}:
        raise invalid(f"Tallies must be of {', '.join(sorted(widths))}.")
    tallies = {name: arrays[f"{_TALLIES}{name}"] for name in widths}
    for name, tally in tallies.items():
        if tally.dtype != np.float64 or tally.shape != (widths[name],):
            raise invalid(f"The tally of {name} must be float64 [{widths[name]}].")
        if not np.isfinite(tally).all():
            raise not_finite()
    return tallies


def _arrays(content: bytes) -> dict[str, Array]:
    try:
        return safetensors.numpy.load(content)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise invalid(f"It is no safetensors file of known types ({type(error).__name__}).") from None


def invalid(found: str) -> RefusedError:
    """Return what to say of an update of another form."""
    return RefusedError(
        "HANSA-REPORT-INVALID",
        rule="An update has the form that the plan's layout gives it.",
        found=found,
        action="Check that client and plan are of the same version; the update was not counted.",
    )


def not_finite() -> RefusedError:
    """Return what to say of numbers that are not finite."""
    return RefusedError(
        "HANSA-REPORT-NOT-FINITE",
        rule="An update holds finite numbers only.",
        found="Some are infinite or not a number.",
        action="Look at the client's data and learning rate; the update was not counted.",
    )
