"""How sums of integers are collected, secure or noised: added in the ring, group by group, and decoded afterwards.

Adding integers is exact, so the order of clients, chunks and workers does not matter. Two collectors make the same sum:
:class:`RingFold` adds as updates come, in memory of the model; :class:`RingRows` keeps every client's vector and hands
them to the protocol's machines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from hansa.algorithms.fixed_point import decode, joined, vectors, whole_numbers
from hansa.algorithms.fold import finished
from hansa.algorithms.plan import Plan
from hansa.algorithms.private_sums import NoiseOf, private_code
from hansa.algorithms.prologue import statistics_layout
from hansa.algorithms.ring_plan import RingCode, largest_cohort, largest_sum, largest_weight, ring_code
from hansa.core.layout import Array, Int64s, Layout
from hansa.core.nouns import Aggregate, Assignment, Batch
from hansa.core.ring import Ring, RingVector
from hansa.core.secure_aggregation import SecureAggregation
from hansa.core.streams import Streams

_ENTRIES_AT_ONCE: Final = 1 << 18
"""Entries of a sum that are copied at a time when it is written."""
SumOf = Callable[[Ring, Sequence[RingVector], slice], RingVector]
"""What the protocol's machines make of the vectors of one group, at some positions of the cohort: their sum."""


def training_code(plan: Plan, layout: Layout, clip_norm: float | None = None) -> RingCode | None:
    """Return the integers of a plan's updates, or None where floats travel. PlanError: a sum could overflow.

    ``clip_norm`` is that of the round, under an adaptive clip.
    """
    section = plan.secure_aggregation
    if plan.privacy is not None:
        return private_code(plan, layout, clip_norm)
    if section is None:
        return None
    weight, whole = largest_weight(section, plan.transforms)
    clients = largest_sum(section, plan.cohort, plan.schedule)
    cohort = largest_cohort(section, plan.cohort, plan.schedule)
    return ring_code(section, layout, clients=clients, cohort=cohort, weight=weight, whole_weights=whole)


def lanes_code(plan: Plan, layout: Layout, clients: int) -> RingCode | None:
    """Return the integers of lanes alone (statistics, evaluation) of so many clients, or None without a secure sum."""
    section = plan.secure_aggregation
    if section is None:
        return None
    return ring_code(section, layout, clients=largest_group(section, clients), cohort=clients)


def round_code(  # noqa: PLR0913 - a round, and what its kinds sum
    plan: Plan, kind: str, cohort: int, *, updates: Layout, tallies: Layout, clip_norm: float | None = None
) -> RingCode:
    """Return the integers of a deployed round's sum, the same at the server and at every client.

    ``kind`` is "training", "statistics" or "evaluation"; ``updates`` is the layout of updates, ``tallies`` that of an
    evaluation's lanes. ``clip_norm`` is that of the round, which nothing depends on but the unit of a step.
    """
    if kind == "training":
        code = training_code(plan, updates, clip_norm)
    elif kind == "evaluation":
        code = lanes_code(plan, tallies, cohort)
    elif plan.features is None:
        raise LookupError("a plan without features has no statistics")
    else:
        code = lanes_code(plan, statistics_layout(plan.features), cohort)
    if code is None:
        raise LookupError("a plan without [secure_aggregation] has no secure sum")
    return code


def largest_group(section: SecureAggregation, clients: int) -> int:
    """Return the most clients of one group of so many."""
    return -(-clients // section.groups(clients))


@dataclass(frozen=True)
class Groups:
    """A cohort cut into runs of positions of nearly equal length, a sum each."""

    cohort: int
    count: int

    def bounds(self, number: int) -> tuple[int, int]:
        """Return the first position of a group, and that of the next."""
        return number * self.cohort // self.count, (number + 1) * self.cohort // self.count

    def size(self, number: int) -> int:
        """Return the number of clients of a group."""
        first, after = self.bounds(number)
        return after - first

    def of(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the parts of a run of positions by group: (group, first position, position after the last)."""
        for number in range(self.count):
            first, after = self.bounds(number)
            if max(start, first) < min(stop, after):
                yield number, max(start, first), min(stop, after)


@dataclass(frozen=True)
class Opening:
    """What turns sums of one round back: its integers, its groups, the public signs of its rotation, and its noise."""

    code: RingCode
    groups: Groups
    round: int
    streams: Streams
    noise: NoiseOf | None = None

    @classmethod
    def of(
        cls,
        section: SecureAggregation | None,
        code: RingCode,
        assignment: Assignment,
        streams: Streams,
    ) -> Opening:
        """Return it for a round's cohort; without a section for one plain sum."""
        cohort = len(assignment.cohort)
        groups = Groups(cohort, 1 if section is None else section.groups(cohort))
        return cls(code, groups, assignment.round, streams)

    def aggregate(self, totals: Sequence[tuple[RingVector, int]], aggregator: Any, population: int) -> Aggregate:
        """Return what an aggregator makes of the sums of all groups, each with the number of clients in it.

        Noise is drawn here, once. Raises HansaError for a sum that is out of its range.
        """
        layout = self.code.layout
        values, lanes = np.zeros(self.code.width, dtype=np.int64), np.zeros(len(layout.lanes), dtype=np.int64)
        for total, clients in totals:
            of_values, of_lanes = whole_numbers(self.code, total, clients)
            values += of_values
            lanes += of_lanes
        if self.noise is not None:
            of_values, of_lanes = self.noise(self.code)
            values += of_values
            lanes += of_lanes
        decoded = decode(self.code, values, self.round, self.streams)
        unset = {branch.name: math.nan for branch in layout.branches}
        count = sum(clients for _, clients in totals)
        return finished(aggregator, Aggregate(decoded, unset, lanes, count, population, layout))


@dataclass
class _Sum:
    values: Array
    lanes: Int64s

    def add(self, values: Array, lanes: Int64s) -> None:
        self.values += values
        self.lanes += lanes


@dataclass
class RingFold:
    """Sums in the making, one for each group, in the ring's own types. Memory is that of the model, a group."""

    opening: Opening
    sums: dict[int, _Sum] = field(default_factory=dict)
    taken: list[tuple[int, int]] = field(default_factory=list)

    def add(self, batch: Batch, position: int) -> None:
        """Add encoded updates of consecutive positions from ``position`` on, in any order."""
        for group, start, stop in self.opening.groups.of(position, position + len(batch)):
            rows = slice(start - position, stop - position)
            values = np.add.reduce(batch.values[rows], axis=0, dtype=batch.values.dtype)
            self._sum(group).add(values, batch.lanes[rows].sum(axis=0, dtype=np.int64))
        self.taken.append((position, position + len(batch)))

    def merge(self, other: RingFold) -> None:
        """Take over what a partial fold holds."""
        for group, part in other.sums.items():
            self._sum(group).add(part.values, part.lanes)
        self.taken += other.taken

    def pieces(self) -> Iterator[bytes]:
        """Yield the sums as bytes, from which :meth:`from_bytes` makes the same fold."""
        for number in range(self.opening.groups.count):
            part = self._sum(number)
            values = part.values.astype(part.values.dtype.newbyteorder("<"), copy=False)
            for start in range(0, len(values), _ENTRIES_AT_ONCE):
                yield values[start : start + _ENTRIES_AT_ONCE].tobytes()
            yield part.lanes.astype("<i8", copy=False).tobytes()

    @classmethod
    def from_bytes(cls, opening: Opening, content: bytes | bytearray) -> RingFold:
        """Return the fold of an opening's whole cohort that was written as bytes, which may be its sums' memory.

        Raises ValueError for bytes of another length.
        """
        fold, code, start = cls(opening, taken=[(0, opening.groups.cohort)]), opening.code, 0
        for number in range(opening.groups.count):
            values = np.frombuffer(content, code.dtype.newbyteorder("<"), code.width, start)
            lanes = np.frombuffer(content, "<i8", len(code.layout.lanes), start + values.nbytes)
            start += values.nbytes + lanes.nbytes
            fold.sums[number] = _Sum(values.astype(code.dtype, copy=False), lanes.astype(np.int64, copy=False))
        if start != len(content):
            raise ValueError(f"sums of this plan have {start} bytes, not {len(content)}")
        return fold

    def finish(self, aggregator: Any, population: int) -> Aggregate:
        """Return what the aggregator makes of the sums. Raises ValueError where a position is missing or came twice."""
        _require_all(self.taken, self.opening.groups.cohort)
        groups, code = self.opening.groups, self.opening.code
        totals = []
        for number in range(groups.count):
            part = self._sum(number)
            totals.append((joined(code, part.values, part.lanes), groups.size(number)))
        return self.opening.aggregate(totals, aggregator, population)

    def _sum(self, group: int) -> _Sum:
        code = self.opening.code
        if group not in self.sums:
            lanes = np.zeros(len(code.layout.lanes), dtype=np.int64)
            self.sums[group] = _Sum(np.zeros(code.width, dtype=code.dtype), lanes)
        return self.sums[group]


@dataclass
class RingRows:
    """Every client's vector, which the protocol's machines add: memory of the cohort."""

    opening: Opening
    sum_of: SumOf | None = None
    parts: list[tuple[Batch, int]] = field(default_factory=list)

    def add(self, batch: Batch, position: int) -> None:
        """Keep encoded updates of consecutive positions from ``position`` on."""
        self.parts.append((batch, position))

    def merge(self, other: RingRows) -> None:
        """Take over what a partial collector holds."""
        self.parts += other.parts

    def finish(self, aggregator: Any, population: int) -> Aggregate:
        """Return what the aggregator makes of the machines' sums. Raises ValueError where a position is missing."""
        if self.sum_of is None:
            raise ValueError("a part of a round has no sum")
        groups, code = self.opening.groups, self.opening.code
        ordered = sorted(self.parts, key=lambda part: part[1])
        _require_all([(position, position + len(batch)) for batch, position in ordered], groups.cohort)
        rows = [vector for batch, _ in ordered for vector in vectors(code, batch)]
        places = [slice(*groups.bounds(number)) for number in range(groups.count)]
        totals = [(self.sum_of(code.ring, rows[place], place), place.stop - place.start) for place in places]
        return self.opening.aggregate(totals, aggregator, population)


def _require_all(taken: Sequence[tuple[int, int]], cohort: int) -> None:
    """Raise ValueError unless runs of positions make up the cohort, each position once."""
    reached = 0
    for start, stop in sorted(taken):
        if start != reached:
            raise ValueError(f"position {min(start, reached)} of the cohort is missing, or came twice")
        reached = stop
    if reached != cohort:
        raise ValueError(f"position {reached} of the cohort is missing, or came twice")
