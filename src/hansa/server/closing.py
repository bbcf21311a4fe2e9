"""From the sealed updates of a frozen round to the next state: unseal, decode, fold in order, close.

Survivors are folded in the order of the cohort, whatever the order in which they came: the sum is the one that a
simulation of the same clients makes, bit for bit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hansa.algorithms import divergence
from hansa.algorithms.aggregators import FixedMean
from hansa.algorithms.fold import BLOCK, Collector, Fold, collector
from hansa.algorithms.plan import Plan
from hansa.algorithms.private_sums import central_noise
from hansa.algorithms.prologue import close_prologue, statistics_layout
from hansa.algorithms.rounds import clip_facts, clip_norm_of, close_round, receive
from hansa.algorithms.secure_sums import Groups, training_code
from hansa.algorithms.secure_sums import Opening as SumOpening
from hansa.core.errors import RefusedError
from hansa.core.layout import Array, Layout, weight_lane
from hansa.core.nouns import Aggregate, Assignment, Batch, RoundReport, ServerState
from hansa.core.ring import RingVector
from hansa.evaluation.lanes import tallies_of
from hansa.server import partial_sums
from hansa.server.contexts import RunContext
from hansa.server.held_sums import groups_of
from hansa.server.limits import norm_limits
from hansa.server.reading import BrokenUpdateError, SealedUpdate, UpdateColumns
from hansa.server.secure_tasks import code_of
from hansa.store.blobs import Blobs
from hansa.store.records import Report, Round, RoundKey
from hansa.wire.update_checks import require_norms, sum_of_squares
from hansa.wire.updates import decode_tallies, decode_update

_COLUMNS: Final = 1 << 18
"""Columns that are folded at a time: a megabyte of each update."""


@dataclass(frozen=True)
class Closed:
    """What a round gave: the next state, what is told of it, and what the run must remember."""

    state: ServerState
    event: dict[str, Any]
    notes: dict[str, Any]


def decoded(
    context: RunContext, assignment: Assignment, content: bytes, report: Report, *, largest_norm: float
) -> Batch:
    """Return one client's update, ready to fold.

    Raises BrokenUpdateError where it overflows as it is decoded, or is larger than the plan or ``largest_norm`` allows.
    """
    layout = context.state.layout
    with np.errstate(over="ignore", invalid="ignore"):
        batch = receive(context.plan, assignment, decode_update(content, layout), context.streams)
    if not np.isfinite(batch.values).all():
        raise BrokenUpdateError(report)
    limits = norm_limits(context.plan, layout, largest_norm)
    squares = {name: sum_of_squares(batch.values[0, place]) for name, place in layout.slices.items()}
    try:
        require_norms(limits, squares, {name: float(batch.lane(weight_lane(name))[0]) for name in limits})
    except RefusedError:
        raise BrokenUpdateError(report) from None
    return batch


async def close(  # noqa: PLR0913 - a round, its updates, and what unseals them
    context: RunContext,
    round_: Round,
    reports: Sequence[Report],
    *,
    blobs: Blobs,
    key: bytes,
    largest_norm: float,
    now: float,
    noise_key: bytes | None = None,
) -> Closed:
    """Fold a frozen round's updates and close it, under privacy with noise of a key.

    Raises DivergenceError where training diverged.
    """
    ordered = sorted(reports, key=lambda report: report.position)
    if round_.id.kind == "training" and _by_columns(context.plan):
        fold = await _folded_columns(context.state.layout, ordered, blobs=blobs, key=key, round_=round_.id)
        return await _close_training(context, round_, fold, ordered, now=now)
    updates = _unsealed(blobs, key, round_.id, ordered)
    if round_.id.kind == "statistics":
        return await _close_statistics(context, round_, updates)
    if round_.id.kind == "evaluation":
        return await _close_evaluation(context, round_, updates, len(ordered))
    collected: Collector
    if context.plan.privacy is not None:
        opened = opening(context, round_, Groups(len(ordered), 1), noise_key)
        collected = await partial_sums.total(context, round_, ordered, opened, blobs=blobs, key=key)
    else:
        collected = await _folded_rows(context, round_, updates, ordered, largest_norm=largest_norm)
    return await _close_training(context, round_, collected, ordered, now=now)


def _by_columns(plan: Plan) -> bool:
    """Return True where a sum is wanted, of the very numbers that travel: it can be folded column by column."""
    return (
        plan.privacy is None
        and plan.aggregator.needs_sum_only
        and all(transform.linear for transform in plan.transforms)
    )


async def _folded_columns(
    layout: Layout, reports: Sequence[Report], *, blobs: Blobs, key: bytes, round_: RoundKey
) -> Fold:
    """Return the sum of updates, block after block, a piece of each at a time: memory is the sum's alone."""
    fold = Fold(layout)
    for first in range(0, len(reports), BLOCK):
        block = [UpdateColumns(SealedUpdate(blobs, key, round_, report)) for report in reports[first : first + BLOCK]]
        for update in block:
            await update.begin()
        for start in range(0, layout.size, _COLUMNS):
            count = min(_COLUMNS, layout.size - start)
            rows = [await update.columns(count) for update in block]
            await asyncio.to_thread(fold.add_columns, start, rows)
        fold.add_lanes(np.stack([await update.end() for update in block]))
    return fold


def opening(context: RunContext, round_: Round, groups: Groups, noise_key: bytes | None) -> SumOpening:
    """Return what turns a round's sums of integers back, with the server's noise where the plan has any.

    Raises LookupError where noise has no key: nothing is released without it.
    """
    plan, kind = context.plan, round_.id.kind
    code = training_code(plan, context.state.layout, clip_norm_of(context.state))
    if kind != "training" or code is None:
        code = code_of(context, kind, round_.cohort_size)
    noise = None
    if plan.privacy is not None and plan.privacy.noise_by == "server":
        if noise_key is None:
            raise LookupError("a round under privacy is closed with a key for its noise")
        noise = central_noise(plan, round_.id.round, noise_key)
    return SumOpening(code, groups, round_.id.round, context.streams, noise)


async def close_sum(  # noqa: PLR0913 - a round, its sums, and its noise
    context: RunContext,
    round_: Round,
    reports: Sequence[Report],
    *,
    totals: Sequence[tuple[RingVector, int]],
    now: float,
    noise_key: bytes | None = None,
) -> Closed:
    """Close a frozen round of which only sums are known, each with how many are in it.

    Raises HansaError for one out of its range.
    """
    kind, count = round_.id.kind, len(reports)
    opened = opening(context, round_, groups_of(context, round_.cohort_size), noise_key)
    aggregator = context.plan.aggregator if kind == "training" else FixedMean(divisor=1.0)
    summed = await asyncio.to_thread(opened.aggregate, totals, aggregator, round_.population)
    if kind == "statistics":
        closed = close_prologue(context.plan, context.state, summed)
        return Closed(closed, {"event": "statistics", "round": 0, "cohort": count}, {"statistics": True})
    if kind == "evaluation":
        return _evaluated(context, round_, tallies_of(opened.code.layout, summed.lanes), count)
    state, report = await asyncio.to_thread(_stepped, context, summed)
    return _trained(context, round_, state, report, [each.size for each in reports], now=now)


async def _unsealed(blobs: Blobs, key: bytes, round_: RoundKey, reports: Sequence[Report]) -> AsyncIterator[bytes]:
    for report in reports:
        yield await SealedUpdate(blobs, key, round_, report).whole()


async def _close_statistics(context: RunContext, round_: Round, updates: AsyncIterator[bytes]) -> Closed:
    plan, state = context.plan, context.state
    if plan.features is None:
        raise LookupError("a plan without features has no statistics")
    layout = statistics_layout(plan.features)
    fold, position = Fold(layout), 0
    async for content in updates:
        fold.add(decode_update(content, layout), position)
        position += 1
    total = fold.finish(FixedMean(divisor=1.0), round_.population)
    closed = close_prologue(plan, state, total)
    return Closed(closed, {"event": "statistics", "round": 0, "cohort": position}, {"statistics": True})


async def _close_evaluation(context: RunContext, round_: Round, updates: AsyncIterator[bytes], count: int) -> Closed:
    totals: dict[str, Array] = {}
    async for content in updates:
        for name, tally in decode_tallies(content).items():
            totals[name] = totals[name] + tally if name in totals else tally
    return _evaluated(context, round_, totals, count)


def _evaluated(context: RunContext, round_: Round, totals: Mapping[str, Array], count: int) -> Closed:
    federated = {
        metric.name: {"overall": metric.of(totals[metric.name]), "clients": count}
        for metric in context.metrics
        if metric.name in totals
    }
    event = {"event": "evaluation", "round": round_.id.round, "federated": federated}
    part, _, name = (context.plan.stopping.metric or "").partition(".")
    watched = federated.get(name, {}).get("overall") if part == "federated" else None
    notes = {
        "evaluated": {"round": round_.id.round, "everyone": bool(round_.notes.get("everyone"))},
        "watched": [*context.run.notes.get("watched", []), watched],
    }
    return Closed(context.state, event, notes)


async def _folded_rows(
    context: RunContext, round_: Round, updates: AsyncIterator[bytes], reports: Sequence[Report], *, largest_norm: float
) -> Collector:
    """Return what an aggregator needs of updates that are decoded one by one, each as a whole."""
    assignment = _assignment(context, round_)
    collected = collector(context.plan.aggregator, context.state.layout, len(reports), None)
    position = 0
    async for content in updates:
        batch = decoded(context, assignment, content, reports[position], largest_norm=largest_norm)
        await asyncio.to_thread(collected.add, batch, position)
        position += 1
    return collected


def _assignment(context: RunContext, round_: Round) -> Assignment:
    """Return what the survivors of a frozen round were asked."""
    state = context.state
    numbers = np.array([int(number) for number in round_.notes["survivors"]], dtype=np.int64)
    return Assignment(round_.id.round, state.layout, state.model, numbers, round_.population, state.features)


async def exploded(  # noqa: PLR0913 - a round, its updates, and what unseals them
    context: RunContext, round_: Round, reports: Sequence[Report], *, blobs: Blobs, key: bytes, largest_norm: float
) -> list[str]:
    """Return the clients whose own update is divergence, in a round that diverged; none unless they are a minority.

    The updates are read once more: a round that diverges is rare, and most runs have none.
    """
    early = context.run.notes.get("early_norms", [])
    if context.plan.privacy is not None:
        return []  # clipped, nobody's update is of another size
    ordered = sorted(reports, key=lambda report: report.position)
    most, found, position = context.plan.stopping.explosion_factor * max(early, default=np.inf), list[str](), 0
    async for content in _unsealed(blobs, key, round_.id, ordered):
        report, assignment = ordered[position], _assignment(context, round_)
        batch = decoded(context, assignment, content, report, largest_norm=largest_norm)
        norm = np.sqrt(sum_of_squares(batch.values[0, batch.layout.slices["params"]]))
        if norm > most * max(1.0, float(batch.lane(weight_lane("params"))[0])):
            found.append(report.client)
        position += 1
    return found if 2 * len(found) < len(ordered) else []


async def _close_training(
    context: RunContext, round_: Round, collected: Collector, reports: Sequence[Report], *, now: float
) -> Closed:
    closed, report = await asyncio.to_thread(finish, context, collected, round_.population)
    return _trained(context, round_, closed, report, [each.size for each in reports], now=now)


def _trained(  # noqa: PLR0913 - what a step of the model gave
    context: RunContext, round_: Round, state: ServerState, report: RoundReport, sizes: Sequence[int], *, now: float
) -> Closed:
    early = divergence.check(context.plan, report, context.run.notes.get("early_norms", []))
    event = training_event(context, report, round_, sizes, now=now)
    return Closed(state, event, {"early_norms": early})


def training_event(
    context: RunContext, report: RoundReport, round_: Round, sizes: Sequence[int], *, now: float
) -> dict[str, Any]:
    """Return what is told of a step of the model; ``sizes`` are the bytes of the updates in it."""
    return {
        "event": "round",
        "round": report.round,
        "cohort": report.count,
        "train_loss": report.train_loss,
        "update_norm": report.update_norm,
        "model_norm": report.model_norm,
        "seconds": now - round_.opened_at,
        "bytes_up": sum(sizes) / max(1, len(sizes)),
        "bytes_down": float(context.model_size),
        "selected": round_.cohort_size,
        "reported": len(sizes),
        "attempt": round_.id.attempt,
        **clip_facts(context.plan, context.state),
    }


@np.errstate(over="ignore", invalid="ignore")  # what overflows is found, and explained, by divergence.check
def finish(context: RunContext, collected: Collector, population: int) -> tuple[ServerState, RoundReport]:
    """Return the next state from a sum of updates, and what is told of it."""
    return close_round(context.plan, context.state, collected.finish(context.plan.aggregator, population))


@np.errstate(over="ignore", invalid="ignore")  # as above
def _stepped(context: RunContext, summed: Aggregate) -> tuple[ServerState, RoundReport]:
    return close_round(context.plan, context.state, summed)


def next_notes(context: RunContext, closed: Closed) -> dict[str, Any]:
    """Return the run's notes after a round."""
    return {**context.run.notes, **closed.notes}
