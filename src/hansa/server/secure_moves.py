"""The next move of a round whose server learns a sum: what its machine says, in the words of a round's life."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hansa.core.errors import StoreConflictError, StoreError
from hansa.core.ring import RingVector
from hansa.server import round_changes
from hansa.server.contexts import RunContext
from hansa.server.held_sums import HeldRound
from hansa.server.reading import UNREADABLE
from hansa.server.services import Services
from hansa.store.records import Report, Round


@dataclass(frozen=True)
class Ending:
    """How a round's sums end: with totals, each of so many clients, and the reports in them, or without and why."""

    round: Round
    why: str = ""
    totals: Sequence[tuple[RingVector, int]] | None = None
    reports: Sequence[Report] = ()


async def look(services: Services, context: RunContext, round_: Round) -> Ending | None:
    """Return how a round's sums end, or None while they go on. Raises StoreConflictError where another was first."""
    try:
        held = await services.sums.look(context, round_.id, services.clock.now())
    except StoreError as error:
        if error.code not in UNREADABLE:
            raise
        return Ending(round_, f"its secure sum cannot be read: {error.code}")
    if not held.over:
        return None
    await _blame(services, held)
    if not held.done:
        return Ending(held.round, held.why)
    async with services.store.reading() as rows:
        reports = await rows.reports.of(round_.id)
        assigned = await rows.rounds.assigned(round_.id)
        frozen = await rows.rounds.get(round_.id)
    if frozen is None or frozen.state != "aggregating":
        raise StoreConflictError(f"The round {round_.id.name}")
    inside = [each for each in reports if each.position in held.included]
    survivors = [str(each.number) for each in assigned if each.position in held.included]
    frozen = replace(frozen, notes={**frozen.notes, "survivors": survivors})
    totals = [(each.result, len(each.vectors)) for each in held.done if each.result is not None]
    return Ending(frozen, totals=totals, reports=inside)


async def _blame(services: Services, held: HeldRound) -> None:
    """Name to the operator whoever sent what no honest client sends, and of whom others say so."""
    round_, clients = held.round, {position: client for client, position in held.positions.items()}
    async with services.store.transaction() as rows:
        for of in held.sums:
            for each in getattr(of.server, "blamed", ()):
                at, who = services.clock.now(), clients[of.first + each.client]
                await round_changes.tell(rows, round_, "client.blamed", at=at, client=who, why=each.reason)
            accusers: dict[int, list[str]] = {}
            for accuser, accused in getattr(of.server, "complaints", ()):
                accusers.setdefault(accused, []).append(clients[of.first + accuser])
            for accused, by in accusers.items():
                at, who = services.clock.now(), clients[of.first + accused]
                await round_changes.tell(rows, round_, "client.accused", at=at, client=who, by=by)
