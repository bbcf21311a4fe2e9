"""How updates are collected: a sum in an order that the plan fixes, or rows on disk for rules that need them.

Float addition is not associative. So positions of the cohort are summed in float64 in blocks of 4, row after
row, and blocks are merged in order of position, whatever the order in which they come. Workers and replicas collect
whole blocks apart (:func:`partial_collector`); the sum is the same.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hansa.core.errors import PlanError, Problem
from hansa.core.layout import NON_FINITE, Array, Int64s, Layout
from hansa.core.nouns import Aggregate, Batch
from hansa.core.own_folder import OwnFolder

BLOCK = 4
"""Cohort positions in one block: small, so that a small cohort can be shared out evenly."""
COLUMNS = 4096
"""Columns that a rule over rows reads at a time."""


class Collector(Protocol):
    """Takes the decoded updates of a round, by cohort position."""

    def add(self, batch: Batch, position: int) -> None:
        """Take updates of consecutive positions from ``position`` on."""

    def merge(self, other: Any) -> None:
        """Take over what a partial collector of the same kind holds."""

    def finish(self, aggregator: Any, population: int) -> Aggregate:
        """Return what the aggregator makes of them; ``population`` clients were eligible."""


def collector(aggregator: Any, layout: Layout, capacity: int, folder: Path | None) -> Collector:
    """Return what an aggregator needs: the sum alone, or every row.

    At most ``capacity`` rows are kept in a file in ``folder``, or in the system's folder for temporary files.
    """
    return Fold(layout) if aggregator.needs_sum_only else RowStore(layout, capacity, folder)


def partial_collector(aggregator: Any, layout: Layout) -> Fold | Rows:
    """Return an empty collector of a part of a round, which goes into the round's own by ``merge``."""
    return Fold(layout) if aggregator.needs_sum_only else Rows()


def one_after_another(collections: Sequence[Collector]) -> Collector:
    """Return the collection of several cohorts, in their order. Raises ValueError for more than one that is no sum."""
    first, *rest = collections
    for other in rest:
        if not (isinstance(first, Fold) and isinstance(other, Fold)):
            raise ValueError("only sums of several cohorts can be added")  # noqa: TRY004 - it is a matter of the plan
        first.add_after(other)
    return first


@dataclass
class Rows:
    """Updates as they came: a part of what a :class:`RowStore` holds."""

    parts: list[tuple[Batch, int]] = field(default_factory=list)

    def add(self, batch: Batch, position: int) -> None:
        """Keep updates of consecutive positions from ``position`` on."""
        self.parts.append((batch, position))


@dataclass
class _Block:
    values: Array
    rows: int = 0


@dataclass
class Fold:
    """A sum in the making: ``values`` float64 [d] holds the first ``merged`` blocks (and nothing before there is one).

    Memory is that of the model, plus a vector for each block that is open or waits for its predecessor.
    """

    layout: Layout
    values: Array = field(init=False)
    lanes: Int64s = field(init=False)
    count: int = 0
    merged: int = 0
    waiting: dict[int, _Block] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = np.zeros(0)
        self.lanes = np.zeros(len(self.layout.lanes), dtype=np.int64)

    def add(self, batch: Batch, position: int) -> None:
        """Add decoded updates; the rows of one block come in order. Raises ValueError for any other position."""
        done, count = 0, len(batch)
        while done < count:
            number, place = divmod(position + done, BLOCK)
            whole = (count - done) // BLOCK if place == 0 else 0
            rows = whole * BLOCK or min(BLOCK - place, count - done)
            if whole:
                self._add_blocks(number, batch.values[done : done + rows])
            else:
                self._add_rows(number, place, batch.values[done : done + rows])
            done += rows
        self.lanes += batch.lanes.sum(axis=0, dtype=np.int64)
        self.count += count
        self._merge(complete=True)

    def _add_rows(self, number: int, place: int, rows: Array) -> None:
        """Add rows to an open block from a place on, or begin one."""
        taken = BLOCK if number < self.merged else self.waiting[number].rows if number in self.waiting else 0
        if taken != place:
            raise ValueError(f"position {number * BLOCK + place} of the cohort came twice or out of order")
        if number not in self.waiting:  # adding the first row to 0 takes one pass, where zeros would take another
            self.waiting[number], rows = _Block(np.add(rows[0], 0.0, dtype=np.float64), 1), rows[1:]
        block = self.waiting[number]
        for row in rows:
            block.values += row
        block.rows += len(rows)

    def _add_blocks(self, first: int, rows: Array) -> None:
        """Add whole blocks: rows [blocks x BLOCK, d], each block summed row after row."""
        count = len(rows) // BLOCK
        known = [number for number in range(first, first + count) if self._has(number)]
        if known:
            raise ValueError(f"position {known[0] * BLOCK} of the cohort came twice or out of order")
        sums = np.add.reduce(rows.reshape(count, BLOCK, -1), axis=1, dtype=np.float64, initial=0.0)
        for number, values in enumerate(sums, start=first):
            self.waiting[number] = _Block(values, BLOCK)

    def add_columns(self, start: int, rows: Sequence[Array]) -> None:
        """Add some columns of the next block, from ``start`` on: for each of its positions in order, float32 [k].

        The sum is that of ``add``, bit for bit, and memory the sum's alone. When all columns were added, ``add_lanes``
        completes the block.
        """
        if not len(self.values):
            self.values = np.zeros(self.layout.size)
        part = np.add(rows[0], 0.0, dtype=np.float64)
        for row in rows[1:]:
            part += row
        self.values[start : start + len(part)] += part

    def add_lanes(self, lanes: Int64s) -> None:
        """Complete the block whose columns were added, all of its positions or the cohort's last: int64 [n, lanes]."""
        self.lanes += lanes.sum(axis=0, dtype=np.int64)
        self.count += len(lanes)
        self.merged += 1

    def merge(self, other: Fold) -> None:
        """Take over the blocks of another fold. Raises ValueError if both have one, which would count it twice."""
        mine = [*self.waiting, *([0] if self.merged else [])]
        if any(map(other._has, mine)) or any(map(self._has, other.waiting)):
            raise ValueError("two folds that have the same block of the cohort cannot be merged")
        if other.merged:
            self.values, self.merged = other.values.copy(), other.merged  # it may be mapped, to be read only
        self.waiting |= other.waiting
        self.lanes += other.lanes
        self.count += other.count
        self._merge(complete=True)

    def add_after(self, other: Fold) -> None:
        """Add another cohort's sum after this one's, both complete. Raises ValueError if a block of one is missing."""
        self.end()
        other.end()
        self.values = self.values + other.values
        self.lanes = self.lanes + other.lanes
        self.count += other.count

    def finish(self, aggregator: Any, population: int) -> Aggregate:
        """Return the sum with the weights that the aggregator divides by. Raises ValueError if a block is missing."""
        self.end()
        unset = {branch.name: math.nan for branch in self.layout.branches}
        total = Aggregate(self.values, unset, self.lanes, self.count, population, self.layout)
        return finished(aggregator, total)

    def end(self) -> None:
        """Merge what is left. Raises ValueError if a block is missing."""
        self._merge(complete=False)
        if self.waiting:
            raise ValueError(f"block {self.merged} of the cohort is missing")

    def _has(self, number: int) -> bool:
        return number < self.merged or number in self.waiting

    def _merge(self, *, complete: bool) -> None:
        if not self.merged and (0 in self.waiting or not complete):
            self.values = np.zeros(self.layout.size)
        while self.merged in self.waiting:
            rows = self.waiting[self.merged].rows
            if rows < BLOCK and complete:
                return
            if rows < BLOCK and len(self.waiting) > 1:
                raise ValueError(f"position {self.merged * BLOCK + rows} of the cohort is missing")
            self.values += self.waiting.pop(self.merged).values
            self.merged += 1


def finished(aggregator: Any, total: Aggregate) -> Aggregate:
    """Return what an aggregator makes of the sum. Raises PlanError if that cannot be divided."""
    made = aggregator.finish(total)
    if not isinstance(made, Aggregate) or made.values.shape != total.values.shape:
        raise _unfit("finish must return the Aggregate that it was given, with its weights set.")
    missing = [name for name in total.weights if not math.isfinite(made.weights.get(name, math.nan))]
    if missing:
        raise _unfit(f"finish must set the weight that each branch is divided by; {', '.join(missing)} has none.")
    return made


def _unfit(sentence: str) -> PlanError:
    return PlanError([Problem("aggregator", sentence)])


class RowStore:
    """Every update as a row of a file: disk of cohort x d, memory of cohort x block.

    The file's room is reserved at once: a full disk is an OSError here, and not a crash at a later write.

    Updates that were emptied because they were not finite are counted and take no part in the combination.
    """

    def __init__(self, layout: Layout, capacity: int, within: Path | None = None) -> None:
        self.layout = layout
        self.lanes = np.zeros(len(layout.lanes), dtype=np.int64)
        self.count = 0
        self._folder = OwnFolder("hansa-rows-", within)
        self._taken = np.zeros(capacity, dtype=np.bool_)
        self._finite = np.ones(capacity, dtype=np.bool_)
        shape = (max(1, capacity), max(1, layout.size))
        path = self._folder.path / "rows.npy"
        self._rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

    def add(self, batch: Batch, position: int) -> None:
        """Write updates to their positions. Raises ValueError for a position that is taken."""
        taken = self._taken[position : position + len(batch)]
        if taken.any():
            raise ValueError(f"position {position + int(taken.argmax())} of the cohort came twice or out of order")
        taken[:] = True
        self._rows[position : position + len(batch)] = batch.values
        if NON_FINITE.name in self.layout.lane_index:
            self._finite[position : position + len(batch)] = batch.lane(NON_FINITE.name) == 0
        self.lanes += batch.lanes.sum(axis=0, dtype=np.int64)
        self.count += len(batch)

    def merge(self, other: Rows) -> None:
        """Write the updates of a part to their positions."""
        for batch, position in other.parts:
            self.add(batch, position)

    def finish(self, aggregator: Any, population: int) -> Aggregate:
        """Return the aggregator's combination, block of columns by block; nobody's, if nobody came."""
        if not self._taken[: self.count].all():
            raise ValueError(f"position {int(self._taken.argmin())} of the cohort is missing")
        size, finite = self.layout.size, np.flatnonzero(self._finite[: self.count])
        values = np.zeros(size)
        for start in range(0, size if len(finite) else 0, COLUMNS):
            stop = min(start + COLUMNS, size)
            combined = np.asarray(aggregator.combine(self._rows[: self.count, start:stop][finite]))
            if combined.shape != (stop - start,):
                raise _unfit(f"combine must return {stop - start} numbers for as many columns, not {combined.shape}.")
            values[start:stop] = combined
        weights = {branch.name: float(len(finite) > 0) for branch in self.layout.branches}
        self._folder.close()
        return Aggregate(values, weights, self.lanes, self.count, population, self.layout)
