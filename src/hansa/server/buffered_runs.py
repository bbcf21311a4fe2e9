"""The life of a buffered run: clients are started as they become free, and steps are taken as the buffer fills."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from hansa.algorithms.schedule import Buffer
from hansa.core.errors import StoreConflictError
from hansa.core.killpoints import reached
from hansa.core.layout import Int64s
from hansa.server import buffering, lifecycle
from hansa.server.buffering import Training
from hansa.server.closing import Closed
from hansa.server.cohorts import pick, secret_coins
from hansa.server.contexts import RunContext, store_state
from hansa.server.measures import ROUNDS
from hansa.server.opening import deadline_of, eligible_of, next_attempt, posted, too_few, wait
from hansa.server.rounds_at_rest import round_name
from hansa.server.services import Services
from hansa.store.records import Assigned, Fate, Release, Round, RoundKey
from hansa.store.store import Rows

_AT_A_TIME: Final = 10_000
"""Clients that are started in one transaction, at most."""


@dataclass(frozen=True)
class Turn:
    """What one look gave: the context after a step, and the rounds of which nothing is accepted any more."""

    context: RunContext | None
    drained: tuple[Round, ...]


async def look(services: Services, context: RunContext, rounds: Sequence[Round]) -> Turn:
    """Take a step if the buffer is full, else start clients that are free. Raises StoreConflictError."""
    now = services.clock.now()
    async with services.store.reading() as rows:
        trainings = [
            Training(each, await rows.rounds.assigned(each.id), await rows.reports.of(each.id)) for each in rounds
        ]
    buffer = buffering.read_buffer(context.plan, dict(context.run.notes))
    heard = buffering.hear(buffer, trainings, now=now)
    fates: dict[RoundKey, dict[str, Fate]] = {}
    for each in heard.lost:
        if each.fate is None:
            fates.setdefault(each.round, {})[each.client] = "lost"
    for each in heard.stale:
        fates.setdefault(each.round, {})[each.client] = "late"
    if buffer.full:
        return await _step(services, context, buffer, trainings, fates, now=now)
    return await _start(services, context, buffer, trainings, fates, now=now)


async def _step(  # noqa: PLR0913 - what a step is made of
    services: Services,
    context: RunContext,
    buffer: Buffer,
    trainings: list[Training],
    fates: dict[RoundKey, dict[str, Fate]],
    *,
    now: float,
) -> Turn:
    contributions = buffer.step()
    closed, counted = await buffering.step(
        context,
        contributions,
        trainings,
        blobs=services.blobs,
        keys=services.keys,
        largest_norm=services.settings.largest_update_norm,
        now=now,
    )
    reached("coordinator.round.folded")
    model, slots, size = await store_state(services.blobs, closed.state)
    reached("coordinator.round.model-written")
    for each in counted:
        fates.setdefault(each.round, {})[each.client] = "included"
    old = buffering.drained(buffer, trainings)
    number = closed.state.round
    newest = max(trainings, key=lambda training: training.version).round
    async with services.store.transaction() as rows:
        run = replace(context.run, model=model, slots=slots, round=number, notes=_notes(context, closed, buffer))
        run = await rows.runs.change(run)
        await _settle(rows, fates)
        if newest.id not in {training.round.id for training in old}:
            await rows.rounds.change(replace(newest, report=closed.event))
        await _close(rows, old, newest.id, closed.event, now)
        numbers = np.array(sorted(each.number for each in counted), dtype=np.int64)
        await rows.participation.record(run.id, numbers, number)
        await rows.releases.add(Release(run.tenant, run.id, number, model, "candidate", now))
        detail = {"kind": "training", "round": number, "cohort": closed.event["cohort"]}
        await rows.events.add("round.closed", tenant=run.tenant, at=now, run=run.id, detail=detail)
    ROUNDS.labels("training", "closed").inc()
    reached("coordinator.round.closed")
    for training in old:
        services.board.take_down(training.round.id)
    return Turn(context.with_state(run, closed.state, size), tuple(training.round for training in old))


async def _start(  # noqa: PLR0913 - what a start is made of
    services: Services,
    context: RunContext,
    buffer: Buffer,
    trainings: list[Training],
    fates: dict[RoundKey, dict[str, Fate]],
    *,
    now: float,
) -> Turn:
    """Start clients on the newest version, which gets its round with the first of them."""
    run, old = context.run, buffering.drained(buffer, trainings)
    eligible = await eligible_of(services, context)
    taken = frozenset({*buffer.training, *buffer.held})
    fewest = int(run.notes.get("wait_for", 1))
    why = None if eligible.count >= fewest else too_few("the run (--wait-for)", fewest)
    wanted = min(buffer.free, _AT_A_TIME) if why is None else 0
    numbers: Int64s = np.zeros(0, dtype=np.int64)
    if wanted:
        numbers = await pick(services.store, eligible, secret_coins(), wanted=wanted, taken=taken)
    current = next((training for training in trainings if training.version == buffer.version), None)
    if not len(numbers) and not fates and not old:
        if why is not None and why != run.why:
            await wait(services, run, why)
        return Turn(None, ())
    async with services.store.reading() as rows:
        last = await rows.rounds.last_attempt(run.id, "training", buffer.version + 1)
    key = RoundKey(run.id, "training", buffer.version + 1, next_attempt(run, last))
    wrapped = b""
    if current is None and len(numbers):
        _, wrapped = await asyncio.to_thread(services.keys.create, round_name(key))
    model = run.model if run.slots is not None else (await store_state(services.blobs, context.state))[0]
    reached("coordinator.round.opening")
    async with services.store.transaction() as rows:
        clients = await rows.clients.numbered(run.population, numbers)
        round_ = None if current is None else current.round
        if round_ is None and clients:
            round_ = _round(key, model, wrapped, eligible.count, run.tenant, now)
            await rows.rounds.add(round_, [])
            detail = {"kind": "training", "round": key.round, "attempt": key.attempt}
            await rows.events.add("round.opening", tenant=run.tenant, at=now, run=run.id, detail=detail)
        fresh: list[Assigned] = []
        if round_ is not None:
            deadline = deadline_of(services, context, now)
            fresh = [buffering.started(round_, each, buffer.start(each.number), deadline) for each in clients]
            await rows.rounds.assign(round_.id, fresh)
            if round_.id not in {training.round.id for training in old}:
                round_ = await rows.rounds.change(replace(round_, cohort_size=round_.cohort_size + len(fresh)))
        await rows.runs.change(replace(run, why=why, notes=buffering.with_buffer(dict(run.notes), buffer)))
        await _settle(rows, fates)
        await _close(rows, old, None, {}, now)
    reached("coordinator.round.opened")
    for training in old:
        services.board.take_down(training.round.id)
    if round_ is not None and fresh:
        known = [] if current is None else current.assigned
        services.board.post(posted(services, context, round_), [*known, *fresh])
    return Turn(None, tuple(training.round for training in old))


def _round(key: RoundKey, model: str, wrapped: bytes, population: int, tenant: str, now: float) -> Round:  # noqa: PLR0913, PLR0917 - a row
    return Round(
        id=key,
        state="collecting",
        version=0,
        model=model,
        cohort_size=0,
        population=population,
        opened_at=now,
        deadline=None,
        key=wrapped,
        notes={"tenant": tenant, "size": 0, "everyone": False, "failed": 0},
    )


async def _settle(rows: Rows, fates: Mapping[RoundKey, Mapping[str, Fate]]) -> None:
    """Write what became of clients. Raises StoreConflictError where one that is given up has just answered."""
    for key, of in fates.items():
        for client in [client for client, fate in of.items() if fate == "lost"]:
            now = await rows.rounds.assignment(key, client, for_change=True)
            if now is not None and now.fate is not None:
                raise StoreConflictError("A report")
        await rows.rounds.set_fates(key, of)


async def _close(
    rows: Rows, old: Sequence[Training], newest: RoundKey | None, event: Mapping[str, Any], now: float
) -> None:
    """Close the rounds of which nothing can be accepted any more: who still trains there, or has reported, is late."""
    for training in old:
        report = event if training.round.id == newest else training.round.report
        done = lifecycle.advance(training.round, "aggregating", "closed", closed_at=now, report=report)
        await rows.rounds.change(done)
        left: dict[str | None, Fate] = {None: "lost", "reported": "late"}
        assigned = await rows.rounds.assigned(training.round.id)  # as it is now that nobody reports any more
        await rows.rounds.set_fates(
            training.round.id, {each.client: left[each.fate] for each in assigned if each.fate in left}
        )


def _notes(context: RunContext, closed: Closed, buffer: Buffer) -> dict[str, Any]:
    return buffering.with_buffer({**context.run.notes, **closed.notes}, buffer)
