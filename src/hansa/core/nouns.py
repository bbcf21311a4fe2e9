"""The nouns of a round, all frozen: what the four functions take and return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from hansa.core.layout import Array, Floats, Int64s, Layout
from hansa.core.streams import Streams

ClientStates = Mapping[str, Array]
"""What clients keep between rounds: name -> one row a client, [n, ...]. It never leaves the client."""


class ClientDatasets(Protocol):
    """The examples of many clients, addressed by ordinal; read when they are gathered."""

    @property
    def names(self) -> Sequence[str]:
        """The clients' names, in the order of the plan's population list."""

    def sizes(self, ordinals: Int64s) -> Int64s:
        """Return how many examples each client has: int64 [n]."""

    def gather(self, ordinals: Int64s, positions: Int64s) -> tuple[Array, Array]:
        """Return examples at ``positions`` [n, b] of each client: x [n, b, ...], y [n, b, ...].

        A position of -1 is padding: its row holds some example and must be masked by the caller.
        """

    def labels_at(self, ordinals: Int64s, positions: Int64s) -> Array:
        """Return the labels alone, y of ``gather``."""


@dataclass(frozen=True)
class Signature:
    """What a model needs to know of the data: the shape of one example, and the classes of its label.

    ``classes`` is 0 for a real-valued label. ``integer_inputs`` is True for tokens (``vocabulary`` of them).
    """

    shape: tuple[int, ...]
    classes: int
    integer_inputs: bool = False
    vocabulary: int = 0


@dataclass(frozen=True)
class Scaling:
    """Centre and scale of every feature, [p] (or [n, 1, p]); what is missing becomes the centre."""

    center: Floats
    scale: Floats

    def apply(self, x: Array) -> Array:
        """Return scaled features, with missing values at the centre (0)."""
        scaled: Array = (x - self.center) / self.scale
        return np.nan_to_num(scaled, copy=False, nan=0.0)


@dataclass(frozen=True)
class ClientBatch:
    """The clients that train together: on a device one, in a simulator a chunk of the cohort."""

    ordinals: Int64s
    data: ClientDatasets
    signature: Signature
    scaling: Scaling | None = None

    def __len__(self) -> int:
        return len(self.ordinals)

    @property
    def sizes(self) -> Int64s:
        """Return the number of training examples of each client: int64 [n]."""
        return self.data.sizes(self.ordinals)

    def gather(self, positions: Int64s) -> tuple[Array, Array]:
        """Return scaled examples at ``positions`` [n, b] (-1 is padding): x [n, b, ...], y [n, b, ...]."""
        x, y = self.data.gather(self.ordinals, positions)
        return (x if self.scaling is None else self.scaling.apply(x)), y

    def parts(self, *, rows: int, clients: int) -> Iterator[ClientBatch]:
        """Yield runs of these clients whose examples, padded to the largest, fill at most so many rows.

        A client with more rows than that comes alone.
        """
        sizes, start = self.sizes, 0
        if len(sizes) <= clients and len(sizes) * int(sizes.max(initial=0)) <= rows:
            yield self
            return
        while start < len(sizes):
            stop, widest = start + 1, int(sizes[start])
            while stop < len(sizes) and stop - start < clients:
                widest = max(widest, int(sizes[stop]))
                if widest * (stop - start + 1) > rows:
                    break
                stop += 1
            yield self.of(slice(start, stop))
            start = stop

    def of(self, some: slice | Int64s) -> ClientBatch:
        """Return some of these clients, in that order, with their own rows of a scaling that has one a client."""
        scaling = self.scaling
        if scaling is not None and scaling.center.ndim > 1:
            scaling = Scaling(scaling.center[some], scaling.scale[some])
        return replace(self, ordinals=self.ordinals[some], scaling=scaling)

    def everything(self) -> tuple[Array, Array]:
        """Return every example of every client, padded to the largest: x [n, max, ...], y [n, max, ...]."""
        return self.gather(self._all_positions())

    def all_labels(self) -> Array:
        """Return the labels alone, y of ``everything``."""
        return self.data.labels_at(self.ordinals, self._all_positions())

    def _all_positions(self) -> Int64s:
        sizes = self.sizes
        positions = np.arange(int(sizes.max(initial=0)))[None, :].repeat(len(self), axis=0)
        return np.where(positions < sizes[:, None], positions, -1)


@dataclass(frozen=True)
class InitialModel:
    """A model before training: the layout of what travels and its first values [d]."""

    layout: Layout
    values: Floats


@dataclass(frozen=True)
class ServerState:
    """Everything the server keeps between rounds.

    ``model`` is float32 [d] over all branches of ``layout``; ``slots`` holds the arrays of each piece.
    """

    round: int
    layout: Layout
    model: Floats
    features: Scaling | None = None
    slots: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)


@dataclass(frozen=True)
class Assignment:
    """What one cohort is asked to do. ``cohort`` holds ordinals, in the order that folding follows.

    ``model`` is float32 [d]; clients that each go their own way (a baseline) have a row each, [n, d]. ``clip_norm`` is
    that of the round under privacy.
    """

    round: int
    layout: Layout
    model: Floats
    cohort: Int64s
    population: int
    features: Scaling | None = None
    clip_norm: float | None = None


@dataclass(frozen=True)
class ClientContext:
    """What client-side pieces may know beside their own data: the assignment, and where numbers come from."""

    assignment: Assignment
    clients: ClientBatch
    streams: Streams

    @property
    def layout(self) -> Layout:
        """Return the layout of the plan's vector."""
        return self.assignment.layout


@dataclass(frozen=True)
class Batch:
    """The updates of n clients, between training and the server's fold.

    ``values`` is [n, d]: float32, or what a transform made of it. ``lanes`` is int64 [n, lanes].
    ``side`` holds arrays that belong to one client each (scales, indices): name -> [n, ...].
    """

    values: Array
    lanes: Int64s
    layout: Layout
    side: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def lane(self, name: str) -> Array:
        """Return one lane of every client in its own unit: float64 [n]."""
        column = self.layout.lane_index[name]
        return np.asarray(self.layout.lanes[column].decode(self.lanes[:, column]), dtype=np.float64)

    def with_lanes(self, columns: Mapping[str, Array]) -> Batch:
        """Return this batch with some lanes replaced by new columns [n]."""
        lanes = self.lanes.copy()
        for name, values in columns.items():
            column = self.layout.lane_index[name]
            lanes[:, column] = self.layout.lanes[column].encode(values)
        return replace(self, lanes=lanes)

    @property
    def bytes_each(self) -> float:
        """Return the mean size of one client's encoded update in bytes."""
        total = self.values.nbytes + self.lanes.nbytes + sum(array.nbytes for array in self.side.values())
        return total / max(1, len(self))


@dataclass(frozen=True)
class Aggregate:
    """What a finished aggregation hands on.

    ``values`` float64 [d] is the combined vector, still to be divided by ``weights`` (one a branch);
    ``lanes`` int64 [lanes] are summed; ``count`` is the number of updates, of ``population`` eligible clients.
    """

    values: Array
    weights: Mapping[str, float]
    lanes: Int64s
    count: int
    population: int
    layout: Layout

    @property
    def share(self) -> float:
        """Return included/population."""
        return self.count / self.population

    def lane(self, name: str) -> float:
        """Return one summed lane in its own unit."""
        return self.layout.decode_lane(name, self.lanes)


@dataclass(frozen=True)
class RoundReport:
    """What a closed round tells: sums over the cohort only, nothing about one client."""

    round: int
    count: int
    train_loss: float | None
    update_norm: float
    model_norm: float
    non_finite: int
