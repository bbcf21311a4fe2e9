"""From the sealed updates of a frozen round to the next state: unseal, decode, fold in order, close.

Survivors are folded in the order of the cohort, whatever the order in which they came: the sum is the one that a
simulation of the same clients makes, bit for bit.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hansa.algorithms import divergence
from hansa.algorithms.aggregators import FixedMean
from hansa.algorithms.fold import Collector, Fold, collector
from hansa.algorithms.prologue import close_prologue, statistics_layout
from hansa.algorithms.rounds import close_round, receive
from hansa.core.errors import StoreError
from hansa.core.layout import Array
from hansa.core.nouns import Assignment, Batch, RoundReport, ServerState
from hansa.server.contexts import RunContext
from hansa.server.rounds_at_rest import binding, part_name
from hansa.store.blobs import Blobs
from hansa.store.records import Report, Round, RoundKey
from hansa.store.sealing import unseal
from hansa.wire.updates import decode_tallies, decode_update


@dataclass(frozen=True)
class Closed:
    """What a round gave: the next state, what is told of it, and what the run must remember."""

    state: ServerState
    event: dict[str, Any]
    notes: dict[str, Any]


async def update_bytes(blobs: Blobs, key: bytes, round_: RoundKey, report: Report) -> bytes:
    """Return one client's update, unsealed. Raises BrokenUpdateError where it is not what was acknowledged."""
    parts, size = [], 0
    while size < report.size:  # what lies behind these parts was left over by an earlier try
        name = part_name(round_, report.client, report.sha256, len(parts))
        sealed = b"".join([chunk async for chunk in blobs.read(name, 0, None)])
        bound = binding(round_, report.client, report.sha256, len(parts))
        parts.append(b"".join(unseal(key, bound, [sealed])))
        size += len(parts[-1])
    content = b"".join(parts)
    if hashlib.sha256(content).hexdigest() != report.sha256:
        raise BrokenUpdateError(report)
    return content


def decoded(context: RunContext, assignment: Assignment, content: bytes, report: Report) -> Batch:
    """Return one client's update, ready to fold. Raises BrokenUpdateError where it overflows as it is decoded."""
    with np.errstate(over="ignore", invalid="ignore"):
        batch = receive(context.plan, assignment, decode_update(content, context.state.layout), context.streams)
    if not np.isfinite(batch.values).all():
        raise BrokenUpdateError(report)
    return batch


class BrokenUpdateError(StoreError):
    """An acknowledged update that cannot be counted: its round is abandoned, and its client is suspended."""

    def __init__(self, report: Report) -> None:
        super().__init__(
            "HANSA-REPORT-INVALID",
            rule="What was acknowledged is counted.",
            found="An update is not the bytes that were acknowledged, or overflows as it is decoded.",
            action="See the run's events for whose it is.",
        )
        self.report = report


async def close(  # noqa: PLR0913 - a round, its updates, and what unseals them
    context: RunContext, round_: Round, reports: Sequence[Report], *, blobs: Blobs, key: bytes, now: float
) -> Closed:
    """Fold a frozen round's updates and close it. Raises DivergenceError where training diverged."""
    ordered = sorted(reports, key=lambda report: report.position)
    updates = _unsealed(blobs, key, round_.id, ordered)
    if round_.id.kind == "statistics":
        return await _close_statistics(context, round_, updates)
    if round_.id.kind == "evaluation":
        return await _close_evaluation(context, round_, updates, len(ordered))
    return await _close_training(context, round_, updates, ordered, now=now)


async def _unsealed(blobs: Blobs, key: bytes, round_: RoundKey, reports: Sequence[Report]) -> AsyncIterator[bytes]:
    for report in reports:
        yield await update_bytes(blobs, key, round_, report)


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


async def _close_training(
    context: RunContext, round_: Round, updates: AsyncIterator[bytes], reports: Sequence[Report], *, now: float
) -> Closed:
    plan, state = context.plan, context.state
    numbers = np.array([int(number) for number in round_.notes["survivors"]], dtype=np.int64)
    assignment = Assignment(round_.id.round, state.layout, state.model, numbers, round_.population, state.features)
    collected = collector(plan.aggregator, state.layout, len(reports), None)
    position = 0
    async for content in updates:
        batch = decoded(context, assignment, content, reports[position])
        await asyncio.to_thread(collected.add, batch, position)
        position += 1
    closed, report = await asyncio.to_thread(finish, context, collected, round_.population)
    early = divergence.check(plan, report, context.run.notes.get("early_norms", []))
    event = training_event(context, report, round_, [each.size for each in reports], now=now)
    return Closed(closed, event, {"early_norms": early})


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
    }


@np.errstate(over="ignore", invalid="ignore")  # what overflows is found, and explained, by divergence.check
def finish(context: RunContext, collected: Collector, population: int) -> tuple[ServerState, RoundReport]:
    """Return the next state from a sum of updates, and what is told of it."""
    return close_round(context.plan, context.state, collected.finish(context.plan.aggregator, population))


def next_notes(context: RunContext, closed: Closed) -> dict[str, Any]:
    """Return the run's notes after a round."""
    return {**context.run.notes, **closed.notes}
