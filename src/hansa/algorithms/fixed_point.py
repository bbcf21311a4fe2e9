"""From updates to the integers of a secure sum, and from their sum back: the only way in and out of the ring.

On the client: (clip, where the plan lists it or has privacy) -> weight in whole units -> optional rotation -> scale ->
stochastic rounding -> (its share of the noise) -> modulo 2^b. Weights, counts, the loss and every other lane travel as
integers of the same vector.
Source: Bonawitz, Salehi, Konecny, McMahan, Gruteser 2019, "Federated learning with autotuned communication-efficient
secure aggregation", section III, https://arxiv.org/abs/1912.00131.

Formal guarantees: no entry of a client's vector is larger than :mod:`hansa.algorithms.ring_plan` counts with, whatever
the update; an entry that is not scaled down is right on average, to 2^-32 of a step (under privacy up to the condition
on the norm); the decoded weights are exactly those by which the values were multiplied. Under privacy the norm of one
client's integers is at most ``norm`` of the plan of the ring, whatever the coins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Final

import numpy as np

from hansa.algorithms.ring_plan import BranchCode, RingCode
from hansa.algorithms.rotation import hadamard, padded, signs
from hansa.algorithms.travelling import CAPPED, SCALED_DOWN
from hansa.core.errors import HansaError, PlanError, Problem
from hansa.core.layout import NON_FINITE, TRAIN_LOSS, Array, Int64s, weight_lane
from hansa.core.nouns import Batch, ClientContext
from hansa.core.registry import resolve
from hansa.core.ring import RingVector, UInts
from hansa.core.streams import Stream, Streams

_ENTRIES_AT_ONCE: Final = 2**16
"""Entries that are rounded at a time: what a processor's caches hold."""
_DRAWS: Final = 64
"""Draws of an update whose integers came out too long; the last is towards zero, which never is."""


def encode(code: RingCode, batch: Batch, context: ClientContext) -> Batch:
    """Return updates as integers: values unsigned [n, width], modulo 2^b of each branch; lanes int64 [n, lanes].

    Raises PlanError where a transform left arrays beside the values, which no sum holds.
    """
    if batch.side:
        named = ", ".join(sorted(batch.side))
        raise PlanError([Problem("transforms", f"leave {named} beside the values, which a secure sum cannot add.")])
    batch = _finite(batch)
    weights = {branch.name: _weights(code, batch, branch.name) for branch in code.branches}
    values = np.zeros((len(batch), code.width), dtype=code.dtype)
    scaled = np.zeros(len(batch), dtype=np.bool_)
    coins = context.streams.of("rounding", context.assignment.round)
    rows = max(1, _ENTRIES_AT_ONCE // max(1, code.width))
    for start in range(0, len(batch), rows):
        here = np.arange(start, min(start + rows, len(batch)))
        values[here], scaled[here] = _rounded(code, batch, here, weights, context, coins)
        if code.norm is not None:
            _shorten(code, batch, here, weights, context, values)
    if code.client_variance:
        _add_noise(code, values, context)
    return replace(_with_lanes(code, batch, weights, scaled), values=values)


def _rounded(  # noqa: PLR0913, PLR0917 - some updates, and what rounds them
    code: RingCode, batch: Batch, rows: Int64s, weights: dict[str, Array], context: ClientContext, coins: Stream | None
) -> tuple[Array, Array]:
    """Return some updates as integers, unsigned [k, width], and which were scaled down; without coins towards zero."""
    drawn = None
    if coins is not None:
        words = coins.bits(context.clients.ordinals[rows], -(-code.width // 2))
        drawn = words.astype("<u8", copy=False).view("<u4")
    values, scaled = np.zeros((len(rows), code.width), dtype=code.dtype), np.zeros(len(rows), dtype=np.bool_)
    for branch in code.branches:
        entries = _entries(branch, batch.values[rows, batch.layout.slices[branch.name]], context)
        its_coins = None if drawn is None else drawn[:, branch.part]
        scaled |= _round_into(values[:, branch.part], branch, entries, weights[branch.name][rows], its_coins)
    return values, scaled


def _shorten(  # noqa: PLR0913, PLR0917 - as above
    code: RingCode, batch: Batch, rows: Int64s, weights: dict[str, Array], context: ClientContext, values: Array
) -> None:
    """Draw again whose integers are longer than ``norm``; who stays too long is rounded towards zero, and is not."""
    coins = context.streams.of("rounding", context.assignment.round)
    for draw in range(1, _DRAWS + 1):
        rows = rows[squared_norms(code, values[rows]) > int(code.norm**2)]  # type: ignore[operator]  # it has one
        if not len(rows):
            return
        again = coins.draw(draw) if draw < _DRAWS else None
        values[rows], _ = _rounded(code, batch, rows, weights, context, again)


def squared_norms(code: RingCode, values: Array) -> Int64s:
    """Return the squared L2 norm of each client's integers, or the largest number if it is beyond 2^62: int64 [n]."""
    squares = np.zeros(len(values))
    for branch in code.branches:
        entries = signed(values[:, branch.part], branch.bits).astype(np.float64)
        squares += np.einsum("nd,nd->n", entries, entries)
    return np.ceil(np.minimum(squares * (1 + 1e-9), 2.0**62)).astype(np.int64)


def _add_noise(code: RingCode, values: Array, context: ClientContext) -> None:
    """Add each client's share of the noise, from its own key, in place."""
    keys = context.streams.of("noise", context.assignment.round).bits(context.clients.ordinals, 4)
    draw = resolve("noise", "discrete-gaussian")
    for row, key in zip(values, keys, strict=True):
        noise = draw(Fraction(code.client_variance), code.width, key=key.astype("<u8").tobytes())
        for branch in code.branches:
            noised = row[branch.part].astype(np.uint64) + noise[branch.part].view(np.uint64)
            row[branch.part] = modulo(noised.view(np.int64), branch.bits)


def _weights(code: RingCode, batch: Batch, branch: str) -> Array:
    """Return the weight that each update carries in a branch, and the units that it is to carry: [n, 2]."""
    carried = batch.lane(weight_lane(branch))
    return np.stack([carried, weight_units(code, carried)], axis=1)


def weight_units(code: RingCode, weights: Array) -> Array:
    """Return weights [n] in whole units: 0 stays 0, everything else is rounded to 1 or more, and at most the cap."""
    units = np.clip(np.rint(weights / code.weight_unit), 1, code.weight_steps)
    return np.asarray(np.where(weights > 0, units, 0.0))


def vectors(code: RingCode, batch: Batch) -> list[RingVector]:
    """Return the vector of each client of an encoded batch: what a client's machine masks."""
    return [_vector(code, values, lanes) for values, lanes in zip(batch.values, batch.lanes, strict=True)]


def joined(code: RingCode, values: UInts, lanes: Int64s) -> RingVector:
    """Return sums of encoded values [width], which may have wrapped in their type, and of lanes, as one vector."""
    return code.ring.reduce(_vector(code, values, lanes))


def whole_numbers(code: RingCode, total: Sequence[UInts], clients: int) -> tuple[Int64s, Int64s]:
    """Return the sum of so many clients' vectors as whole numbers: values int64 [width], lanes int64 [lanes].

    Raises HansaError where an entry lies outside what so many clients can give: then somebody's vector was none; and
    for more clients than the integers are sized for, of whom the sum may have overflowed.
    """
    if clients > code.clients:
        raise HansaError(
            "HANSA-SUM-RANGE",
            rule=f"The integers of this sum are sized for {code.clients} clients.",
            found=f"It is of {clients}, and may have overflowed.",
            action="Raise secure_aggregation.maximum_cohort, or pick fewer.",
        )
    values, lanes = np.zeros(code.width, dtype=np.int64), np.zeros(len(code.layout.lanes), dtype=np.int64)
    for branch, array in zip(code.branches, total, strict=False):
        entries, largest = signed(array, branch.bits), code.most(branch, clients)
        if entries.max(initial=0) > largest or entries.min(initial=0) < -largest:
            raise _out_of_range(branch.name)
        values[branch.part] = entries
    for run, array in zip(code.lanes, total[len(code.branches) :], strict=True):
        lanes[run.start : run.stop] = signed(array, run.bits)
    most = clients * code.lane_limits
    beyond = (lanes > most) | (lanes < -most)
    if beyond.any():
        raise _out_of_range(code.layout.lanes[int(beyond.argmax())].name)
    return values, lanes


def decode(code: RingCode, values: Int64s, round_number: int, streams: Streams) -> Array:
    """Return a sum of values in the units of the update, as weighed: float64 [d]."""
    decoded = np.zeros(code.layout.size)
    for branch in code.branches:
        part = values[branch.part] * (branch.step * code.weight_unit)
        if branch.block > 1:
            part = hadamard(part.reshape(-1, branch.block)).reshape(-1) * _signs(branch, round_number, streams)
        decoded[code.layout.slices[branch.name]] = part[: branch.size]
    return decoded


def modulo(whole: Int64s, bits: int) -> UInts:
    """Return whole numbers modulo 2^bits: uint64, the shape of ``whole``."""
    return whole.view(np.uint64) & np.uint64((1 << bits) - 1)


def signed(entries: UInts, bits: int) -> Int64s:
    """Return the number of smallest size that has each remainder modulo 2^bits: int64, the shape of ``entries``."""
    half = np.uint64(1 << (bits - 1))
    return ((entries.astype(np.uint64) ^ half) - half).view(np.int64)


def _out_of_range(what: str) -> HansaError:
    return HansaError(
        "HANSA-SUM-RANGE",
        rule="Every entry of a secure sum lies within what its clients can give.",
        found=f"One of {what!r} does not.",
        action="Nothing of this sum is used. A client sent no encoded update, or a mask is left.",
    )


def _finite(batch: Batch) -> Batch:
    """Return the batch with every update emptied that the transforms made infinite: a sum cannot leave it out."""
    finite: Array = np.asarray(np.isfinite(batch.values).all(axis=1))
    if finite.all() or NON_FINITE.name not in batch.layout.lane_index:
        return batch
    emptied = [
        lane.name
        for lane in batch.layout.lanes
        if lane.weighted or lane.purpose == "weight" or lane.name == TRAIN_LOSS.name
    ]
    lanes = {name: batch.lane(name) * finite for name in emptied}
    lanes[NON_FINITE.name] = np.maximum(batch.lane(NON_FINITE.name), 1.0 - finite)
    return replace(batch, values=np.where(finite[:, None], batch.values, np.float32(0))).with_lanes(lanes)


def _entries(branch: BranchCode, values: Array, context: ClientContext) -> Array:
    """Return the entries that are rounded: those of the branch, rotated if the plan says so: [n, length].

    A rotation is taken in double precision, in which no float32 overflows.
    """
    if branch.block == 1:
        return values
    flat = padded(values, branch.block).reshape(len(values), -1).astype(np.float64)
    turned = flat * _signs(branch, context.assignment.round, context.streams)
    return hadamard(turned.reshape(len(values), -1, branch.block)).reshape(len(values), -1)


def _signs(branch: BranchCode, round_number: int, streams: Streams) -> Array:
    return signs(branch.start + branch.length, round_number, streams)[branch.start :]


def _round_into(out: Array, branch: BranchCode, entries: Array, weights: Array, coins: Array | None) -> Array:
    """Write entries [n, length] as whole steps modulo 2^bits, weighed anew; return whose largest was beyond the limit.

    ``weights`` [n, 2] holds the weight that the entries carry, and the units that they are to carry; ``coins`` are
    uint32, without which entries are rounded towards zero. An update that is too large is scaled down as a whole, which
    keeps its direction.
    """
    carried, units = weights[:, 0], weights[:, 1]
    factors = np.divide(units, carried * branch.step, out=np.zeros(len(units)), where=carried > 0)
    most = units * branch.limit
    largest = np.maximum(entries.max(axis=1, initial=0), -entries.min(axis=1, initial=0)) * factors
    beyond: Array = np.asarray(largest > most)
    factors *= np.where(beyond, most / np.maximum(largest, 1e-300), 1.0)
    for start in range(0, entries.shape[1], _ENTRIES_AT_ONCE):
        here = slice(start, start + _ENTRIES_AT_ONCE)
        exact = entries[:, here] * factors[:, None]
        if coins is None:
            np.trunc(exact, out=exact)
        else:
            exact += coins[:, here] * 2.0**-32
            np.floor(exact, out=exact)
        np.clip(exact, -most[:, None], most[:, None], out=exact)
        out[:, here] = modulo(exact.astype(np.int64), branch.bits)
    return beyond


def _with_lanes(code: RingCode, batch: Batch, weights: dict[str, Array], scaled: Array) -> Batch:
    """Return the batch with weights as they were rounded, weighted lanes to match, and what was cut counted."""
    carried = {name: pair[:, 0] for name, pair in weights.items()}
    rounded = {name: pair[:, 1] * code.weight_unit for name, pair in weights.items()}
    columns: dict[str, Array] = {weight_lane(name): column for name, column in rounded.items()}
    if "params" in carried:
        old = carried["params"]
        factors = np.divide(rounded["params"], old, out=np.zeros(len(old)), where=old > 0)
        columns |= {lane.name: batch.lane(lane.name) * factors for lane in batch.layout.lanes if lane.weighted}
    capped = np.zeros(len(batch), dtype=np.bool_)
    for column in carried.values():
        capped |= column > code.max_weight
    counted = {SCALED_DOWN.name: scaled, CAPPED.name: capped}
    return batch.with_lanes(columns | {name: flags.astype(np.float64) for name, flags in counted.items()})


def _vector(code: RingCode, values: UInts, lanes: Int64s) -> RingVector:
    segments = code.ring.segments
    parts = [values[branch.part] for branch in code.branches]
    runs = [modulo(lanes[run.start : run.stop], run.bits) for run in code.lanes]
    return tuple(part.astype(segment.dtype) for segment, part in zip(segments, (*parts, *runs), strict=True))
