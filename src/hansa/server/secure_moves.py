"""The next move of a round whose server learns a sum: what its machine says, in the words of a round's life."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hansa.core.errors import StoreConflictError, StoreError
from hansa.core.ring import RingVector
from hansa.secagg.server import Phase
from hansa.server import round_changes
from hansa.server.contexts import RunContext
from hansa.server.reading import UNREADABLE
from hansa.server.secure_sums import Held
from hansa.server.services import Services
from hansa.store.records import Report, Round


@dataclass(frozen=True)
class Ending:
    """How a sum ends: with a total and the reports that are in it, or without one and why."""

    round: Round
    why: str = ""
    total: RingVector | None = None
    reports: Sequence[Report] = ()


async def look(services: Services, context: RunContext, round_: Round) -> Ending | None:
    """Return how a round's sum ends, or None while it goes on. Raises StoreConflictError where another was first."""
    try:
        held = await services.sums.look(context, round_.id, services.clock.now())
    except StoreError as error:
        if error.code not in UNREADABLE:
            raise
        return Ending(round_, f"its secure sum cannot be read: {error.code}")
    if held.server.phase is Phase.ABORTED:
        await _blame(services, round_, held)
        return Ending(held.round, held.server.abort_reason)
    if held.server.result is None:
        return None
    async with services.store.reading() as rows:
        reports = await rows.reports.of(round_.id)
        frozen = await rows.rounds.get(round_.id)
    if frozen is None or frozen.state != "aggregating":
        raise StoreConflictError(f"The round {round_.id.name}")
    await _blame(services, round_, held)
    return Ending(frozen, total=held.server.result, reports=reports)


async def _blame(services: Services, round_: Round, held: Held) -> None:
    """Name to the operator whoever sent what no honest client sends."""
    clients = {position: client for client, position in held.positions.items()}
    async with services.store.transaction() as rows:
        for each in held.server.blamed:
            at, who = services.clock.now(), clients[each.client]
            await round_changes.tell(rows, round_, "client.blamed", at=at, client=who, why=each.reason)
