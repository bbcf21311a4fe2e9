"""Transforms that make claims, or refuse to, so that what a plan may combine can be tried out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from annotated_types import Ge, Le

from hansa.algorithms.transforms import Identity
from hansa.core.layout import Array, Layout
from hansa.core.nouns import Aggregate, Batch, ClientContext, ServerState
from hansa.core.pieces import Bounds
from hansa.core.schema import Doc


@dataclass(frozen=True, kw_only=True)
class ValueNoise(Identity):
    """Claims to add noise to values, and adds none. It protects nobody."""

    noise_unit: ClassVar[Literal["value", "ring"] | None] = "value"


@dataclass(frozen=True, kw_only=True)
class RingNoise(Identity):
    """Claims to add noise to integers of a ring, and adds none. It protects nobody."""

    noise_unit: ClassVar[Literal["value", "ring"] | None] = "ring"


@dataclass(frozen=True, kw_only=True)
class FixedPoint(Identity):
    """Rounds values to multiples of 2^-bits and ships the integers; the sum is divided again."""

    changes_values: ClassVar[bool] = True
    emits: ClassVar[Literal["value", "ring"] | None] = "ring"

    bits: Annotated[int, Ge(0), Le(40), Doc("bits behind the binary point")] = 16

    def encode(self, batch: Batch, context: ClientContext, states: dict[str, Array]) -> Batch:  # noqa: ARG002 - the transform protocol
        """Return int64 values."""
        scaled = np.rint(batch.values.astype(np.float64) * 2.0**self.bits)
        return replace(batch, values=scaled.astype(np.int64))

    def decode_sum(self, aggregate: Aggregate, state: ServerState) -> Aggregate:  # noqa: ARG002 - the transform protocol
        """Return the sum in value units."""
        return replace(aggregate, values=aggregate.values / 2.0**self.bits)

    def bound(self, incoming: Bounds, layout: Layout) -> Bounds:
        """Return the bounds in ring units, with the rounding of every entry."""
        return {
            name: None if value is None else 2.0**self.bits * value + layout.branch(name).size ** 0.5 / 2
            for name, value in incoming.items()
        }

    def slip(self, layout: Layout) -> float | None:  # noqa: ARG002 - the transform protocol
        """Return half a step."""
        return 2.0 ** -(self.bits + 1)


@dataclass(frozen=True, kw_only=True)
class TopK(Identity):
    """Keeps the largest entries and drops the others. It claims no bound, so it loses any that was there."""

    keep: Annotated[int, Ge(1), Doc("entries that are kept")] = 1

    def encode(self, batch: Batch, context: ClientContext, states: dict[str, Array]) -> Batch:  # noqa: ARG002 - the transform protocol
        """Return values with zeros in all but the largest entries."""
        ranks = np.argsort(np.argsort(-np.abs(batch.values), axis=1, kind="stable"), axis=1, kind="stable")
        return replace(batch, values=np.where(ranks < self.keep, batch.values, np.float32(0)))
