"""What an update looks like once the plan's transforms have encoded it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hansa.algorithms.secure_sums import training_code
from hansa.core.layout import Array, Int64s
from hansa.core.nouns import Assignment, Batch, ClientBatch, ClientContext
from hansa.core.streams import Streams
from hansa.server.contexts import RunContext
from hansa.wire.update_checks import NAMES, Wanted


def encoded_form(context: RunContext) -> Mapping[str, Wanted]:
    """Return what the plan's transforms make of an update: the form of an update of zeros, encoded here.

    Nothing is drawn that protects anybody: the streams are those of a simulation.
    """
    plan, layout = context.plan, context.state.layout
    ordinals = np.zeros(1, dtype=np.int64)
    assignment = Assignment(1, layout, context.state.model, ordinals, 1, context.state.features)
    clients = ClientBatch(ordinals, _OneExample(), context.signature)
    values = np.zeros((1, layout.size), dtype=np.float32)
    lanes = np.zeros((1, len(layout.lanes)), dtype=np.int64)
    batch = Batch(values, lanes, layout, {"steps": np.ones(1, dtype=np.int64)})
    for transform in plan.transforms:
        batch = transform.encode(batch, ClientContext(assignment, clients, Streams(plan.seed)), {})
    code = training_code(plan, layout)  # without a secure sum: integers travel under privacy only
    values = batch.values if code is None else np.zeros((1, code.width), dtype=code.dtype)
    form = {"values": values, **{f"side/{name}": array for name, array in batch.side.items() if name != "steps"}}
    return {name: Wanted(NAMES[array.dtype.str], array.shape[1:]) for name, array in form.items()}


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
