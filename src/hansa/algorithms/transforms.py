"""Transforms whose sum can be decoded as a sum: weights, normalisation, clipping.

Each claims what it can: ``bound``, the largest L2 norm of one client's part, and ``slip``, the largest
change of an entry by encoding and decoding. What claims nothing loses the guarantee (``None``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Gt

from hansa.core.layout import Array, Lane, Layout, require_room, weight_lane
from hansa.core.nouns import Aggregate, Assignment, Batch, ClientContext, ServerState
from hansa.core.pieces import Bounds
from hansa.core.schema import Doc, Unsound
from hansa.core.streams import Streams

_TAU = Lane("tau", low=0.0, high=2.0**40, resolution=2.0**-8, purpose="statistic", weighted=True)
_BELOW_CLIP = Lane("below_clip", low=0.0, high=1.0, purpose="statistic")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a transform does unless it says otherwise: nothing, and it claims nothing for others."""

    linear: ClassVar[bool] = True
    changes_values: ClassVar[bool] = False
    emits: ClassVar[Literal["value", "ring"] | None] = None
    noise_unit: ClassVar[Literal["value", "ring"] | None] = None

    def lanes(self) -> tuple[Lane, ...]:
        """Return no lanes."""
        return ()

    def encode(self, batch: Batch, context: ClientContext, states: dict[str, Array]) -> Batch:  # noqa: ARG002 - the transform protocol
        """Return the batch as it is."""
        return batch

    def decode_rows(self, batch: Batch, assignment: Assignment, streams: Streams) -> Batch:  # noqa: ARG002 - the transform protocol
        """Return the batch as it is."""
        return batch

    def decode_sum(self, aggregate: Aggregate, state: ServerState) -> Aggregate:  # noqa: ARG002 - the transform protocol
        """Return the sum as it is."""
        return aggregate

    def bound(self, incoming: Bounds, layout: Layout) -> Bounds:  # noqa: ARG002 - the transform protocol
        """Return no bound for any branch."""
        return dict.fromkeys(incoming)

    def slip(self, layout: Layout) -> float | None:  # noqa: ARG002 - the transform protocol
        """Return that no limit is known."""
        return None


@dataclass(frozen=True, kw_only=True)
class WeighBySize(Identity):
    """Weighs each update by the client's number of training examples (McMahan et al. 2017, algorithm 1).

    With ``maximum``, larger clients count as that many, and a bound B becomes maximum x B.
    """

    changes_values: ClassVar[bool] = True

    maximum: Annotated[int | None, Ge(1), Doc("weight of the largest clients; absent: no limit, and no bound")] = None

    def encode(self, batch: Batch, context: ClientContext, states: dict[str, Array]) -> Batch:  # noqa: ARG002 - the transform protocol
        """Return values and weighted lanes times the weight, and the weight in each branch's lane."""
        weights = context.clients.sizes.astype(np.float64)
        if self.maximum is not None:
            weights = np.minimum(weights, self.maximum)
        layout = batch.layout
        lane = layout.lanes[layout.lane_index[weight_lane("params")]]
        require_room(lane, float(weights.max(initial=0)), "The number of a client's examples")
        columns = {
            lane.name: batch.lane(lane.name) * weights
            for lane in layout.lanes
            if lane.weighted or lane.purpose == "weight"
        }
        return replace(batch, values=batch.values * weights[:, None].astype(np.float32)).with_lanes(columns)

    def bound(self, incoming: Bounds, layout: Layout) -> Bounds:  # noqa: ARG002 - the transform protocol
        """Return the bounds times the largest weight, or none without a maximum."""
        most = self.maximum
        return {name: None if most is None or value is None else value * most for name, value in incoming.items()}


@dataclass(frozen=True, kw_only=True)
class NormaliseBySteps(Identity):
    """Divides each update by its effective local steps, and multiplies the mean by their weighted mean.

    Averaged buffers are no sum of steps and stay as they are.
    Source: Wang, Liu, Liang, Joshi, Poor 2020, "Tackling the objective inconsistency problem in
    heterogeneous federated optimization" (FedNova), equation 10, https://arxiv.org/abs/2007.07481.
    """

    changes_values: ClassVar[bool] = True

    def lanes(self) -> tuple[Lane, ...]:
        """Return the lane of the effective steps, which is weighted as the update is."""
        return (_TAU,)

    def encode(self, batch: Batch, context: ClientContext, states: dict[str, Array]) -> Batch:  # noqa: ARG002 - the transform protocol
        """Return values over tau, and tau in its lane (0 for an update that weighs nothing)."""
        tau = np.maximum(batch.side["steps"], 1e-12)
        values, params = batch.values.copy(), batch.layout.slices["params"]
        values[:, params] /= tau[:, None]
        return replace(batch, values=values).with_lanes({_TAU.name: tau * batch.lane(weight_lane("params"))})

    def decode_sum(self, aggregate: Aggregate, state: ServerState) -> Aggregate:  # noqa: ARG002 - the transform protocol
        """Return the sum times the weighted mean of tau."""
        weight = aggregate.lane(weight_lane("params"))
        tau = aggregate.lane(_TAU.name) / weight if weight > 0 else 1.0
        values, params = aggregate.values.copy(), aggregate.layout.slices["params"]
        values[params] *= tau
        return replace(aggregate, values=values)


def clipped(values: Array, parts: Sequence[slice], clip_norm: float) -> tuple[Array, Array]:
    """Return updates [n, d] with the joint norm of some parts at most ``clip_norm``, and their norms before, [n].

    In float32 arithmetic too: see :class:`Clip`.
    """
    squares = np.zeros(len(values))
    for part in parts:
        squares += np.square(values[:, part], dtype=np.float64).sum(axis=1)
    norms = np.sqrt(squares)
    limit = clip_norm * (1 - 1e-6)
    factors = np.where(norms > limit, limit / np.maximum(norms, 1e-300), 1.0)
    shorter = values.copy()
    shorter[~np.isfinite(norms)] = 0
    for part in parts:
        np.multiply(shorter[:, part], factors[:, None], out=shorter[:, part], casting="same_kind")
    return shorter, norms


@dataclass(frozen=True, kw_only=True)
class Clip(Identity):
    """Scales an update down to an L2 norm, jointly over the branches it names (all, unless named).

    Formal guarantee: the joint norm of those branches is at most ``clip_norm`` after encoding, in float32
    arithmetic too: a clipped update is scaled to clip_norm (1 - 1e-6), in double precision, and rounding stays within
    the rest, also after weighing. (True for norms above 1e-30.) An update that is not finite is emptied.
    """

    clip_norm: Annotated[float, Gt(0), Doc("largest L2 norm of a client's update")]
    branches: Annotated[tuple[str, ...], Doc("branches that are clipped together; absent: all")] = ()

    def __post_init__(self) -> None:
        if len(set(self.branches)) != len(self.branches):
            raise Unsound("branches names a branch twice.")

    def lanes(self) -> tuple[Lane, ...]:
        """Return the lane that counts updates which were not clipped."""
        return (_BELOW_CLIP,)

    def encode(self, batch: Batch, context: ClientContext, states: dict[str, Array]) -> Batch:  # noqa: ARG002 - the transform protocol
        """Return the clipped batch."""
        slices = batch.layout.slices
        named = [slices[name] for name in self.branches or slices if name in slices]
        values, norms = clipped(batch.values, named, self.clip_norm)
        return replace(batch, values=values).with_lanes(
            {_BELOW_CLIP.name: (norms <= self.clip_norm).astype(np.float64)}
        )

    def bound(self, incoming: Bounds, layout: Layout) -> Bounds:  # noqa: ARG002 - the transform protocol
        """Return the norm for every branch that is clipped."""
        return {
            name: self.clip_norm if name in self.branches or not self.branches else value
            for name, value in incoming.items()
        }

    def slip(self, layout: Layout) -> float | None:  # noqa: ARG002 - the transform protocol
        """Return 0: decoding changes nothing."""
        return 0.0
