"""What travels: one flat vector of branches, beside integer lanes.

*Branches* hold parameters ("params"), a method's second vector ("control"), averaged buffers
("buffers"). *Lanes* hold what is summed exactly: weights, counts, metrics, statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from hansa.core.errors import HansaError

Array = NDArray[Any]
Floats = NDArray[np.float32]
Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Parameter:
    """One named array of a branch."""

    name: str
    shape: tuple[int, ...]

    @cached_property
    def size(self) -> int:
        """Return the number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Branch:
    """A named part of the vector with its own weight, clip group and server optimizer."""

    name: str
    parameters: tuple[Parameter, ...]

    @cached_property
    def size(self) -> int:
        """Return the number of entries of all its parameters."""
        return sum(parameter.size for parameter in self.parameters)


@dataclass(frozen=True)
class Lane:
    """One integer that each client adds: a value in [low, high] as a multiple of ``resolution``.

    ``weighted`` lanes are multiplied by the client's weight where a transform weighs the update.
    """

    name: str
    low: float
    high: float
    resolution: float = 1.0
    purpose: Literal["weight", "count", "metric", "statistic"] = "metric"
    weighted: bool = False

    def encode(self, values: Array) -> Int64s:
        """Return values, clamped to [low, high], as integers: int64, the shape of ``values``."""
        clamped = np.clip(np.asarray(values, dtype=np.float64), self.low, self.high)
        return np.rint(clamped / self.resolution).astype(np.int64)

    def decode(self, total: Any) -> Any:
        """Return a sum of encoded values in the lane's own unit."""
        return total * self.resolution


@dataclass(frozen=True)
class Layout:
    """The branches and lanes of one plan's vector."""

    branches: tuple[Branch, ...]
    lanes: tuple[Lane, ...] = ()

    @cached_property
    def size(self) -> int:
        """Return d, the number of entries of all branches."""
        return sum(branch.size for branch in self.branches)

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        """Return where each branch lies in the flat vector."""
        ends = np.cumsum([branch.size for branch in self.branches]).tolist()
        return {branch.name: slice(end - branch.size, end) for branch, end in zip(self.branches, ends, strict=True)}

    @cached_property
    def lane_index(self) -> Mapping[str, int]:
        """Return the column of each lane."""
        return {lane.name: column for column, lane in enumerate(self.lanes)}

    def branch(self, name: str) -> Branch:
        """Return the branch of that name."""
        return next(branch for branch in self.branches if branch.name == name)

    def views(self, vectors: Array, branch: str) -> dict[str, Array]:
        """Return views of a branch's parameters in flat vectors [..., d]: name -> [..., *shape]."""
        return views_of(self.branch(branch), vectors[..., self.slices[branch]])

    def with_branches(self, *branches: Branch) -> Layout:
        """Return this layout with more branches at its end."""
        return replace(self, branches=(*self.branches, *branches))

    def with_lanes(self, *lanes: Lane) -> Layout:
        """Return this layout with more lanes at its end."""
        return replace(self, lanes=(*self.lanes, *lanes))

    def encode_lanes(self, columns: Mapping[str, Array], count: int) -> Int64s:
        """Return per-client columns as integers: int64 [count, lanes]; a lane without a column is 0."""
        encoded = np.zeros((count, len(self.lanes)), dtype=np.int64)
        for name, values in columns.items():
            column = self.lane_index[name]
            encoded[:, column] = self.lanes[column].encode(values)
        return encoded

    def decode_lane(self, name: str, totals: Int64s) -> float:
        """Return one lane of summed lanes [lanes] in its own unit."""
        column = self.lane_index[name]
        return float(self.lanes[column].decode(int(totals[column])))


COUNT: Final = Lane("count", low=0.0, high=1.0, purpose="count")
"""1 for each update."""
NON_FINITE: Final = Lane("non_finite", low=0.0, high=1.0, purpose="count")
"""1 for an update that was not finite and was emptied."""
TRAIN_LOSS: Final = Lane("train_loss", low=0.0, high=2.0**30, resolution=2.0**-16)
"""A client's mean loss over its local steps, as it trained; clamped to the lane."""


def views_of(branch: Branch, vectors: Array) -> dict[str, Array]:
    """Return views of a branch's parameters in vectors of that branch [..., size]: name -> [..., *shape]."""
    views: dict[str, Array] = {}
    start = 0
    for parameter in branch.parameters:
        part = vectors[..., start : start + parameter.size]
        views[parameter.name] = part.reshape((*vectors.shape[:-1], *parameter.shape), copy=False)
        start += parameter.size
    return views


def weight_lane(branch: str) -> str:
    """Return the name of the lane that carries the weight of a branch."""
    return f"weight.{branch}"


def require_room(lane: Lane, largest: float, what: str) -> None:
    """Raise HansaError if a value does not fit a lane."""
    if largest > lane.high:
        raise HansaError(
            "HANSA-DATA-INVALID",
            rule=f"Lane {lane.name!r} holds values up to {lane.high:g}.",
            found=f"{what} is larger.",
            action="Split the client's data over several clients.",
        )
