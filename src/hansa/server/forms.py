"""What an update looks like once the plan's transforms have encoded it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hansa.algorithms.plan import Plan
from hansa.algorithms.secure_sums import training_code
from hansa.core.layout import Array, Int64s, Layout
from hansa.core.nouns import Assignment, Batch, ClientBatch, ClientContext, Signature
from hansa.core.streams import Streams
from hansa.wire.update_checks import NAMES, Wanted


def encoded_form(plan: Plan, layout: Layout, signature: Signature) -> Mapping[str, Wanted]:
    """Return what the plan's transforms make of an update of a layout.

    A linear transform leaves values float32 [d]. Of others it is the form of an update of zeros, encoded here: nothing
    is drawn that protects anybody, the streams are those of a simulation.
    """
    shape, dtype = (layout.size,), np.dtype(np.float32).str
    side: dict[str, Array] = {}
    if changing := [transform for transform in plan.transforms if not transform.linear]:
        ordinals = np.zeros(1, dtype=np.int64)
        assignment = Assignment(1, layout, np.zeros(layout.size, dtype=np.float32), ordinals, 1)
        clients = ClientBatch(ordinals, _OneExample(), signature)
        values = np.zeros((1, layout.size), dtype=np.float32)
        lanes = np.zeros((1, len(layout.lanes)), dtype=np.int64)
        batch = Batch(values, lanes, layout, {"steps": np.ones(1, dtype=np.int64)})
        for transform in changing:
            batch = transform.encode(batch, ClientContext(assignment, clients, Streams(plan.seed)), {})
        shape, dtype = batch.values.shape[1:], batch.values.dtype.str
        side = {f"side/{name}": array for name, array in batch.side.items() if name != "steps"}
    if (code := training_code(plan, layout)) is not None:  # without a secure sum: integers travel under privacy only
        shape, dtype = (code.width,), np.dtype(code.dtype).str
    form = {name: Wanted(NAMES[array.dtype.str], array.shape[1:]) for name, array in side.items()}
    return {"values": Wanted(NAMES[dtype], shape), **form}


class _OneExample:
    """A client of whom nothing is known but that it has one example."""

    names = ("",)

    def sizes(self, ordinals: Int64s) -> Int64s:
        """Return 1 for each: int64 [n]."""
        return np.ones(len(ordinals), dtype=np.int64)

    def gather(self, ordinals: Int64s, positions: Int64s) -> tuple[Array, Array]:  # noqa: ARG002 - the datasets' protocol
        """Raise TypeError: a transform reads no examples."""
        raise TypeError("a transform reads no examples")

    def labels_at(self, ordinals: Int64s, positions: Int64s) -> Array:  # noqa: ARG002 - likewise
        """Raise TypeError: a transform reads no examples."""
        raise TypeError("a transform reads no examples")
