"""How a round ends without a sum, and what goes once a round has ended: sealed updates, machines, the key."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from hansa.core.errors import StoreConflictError
from hansa.core.killpoints import reached
from hansa.server import round_changes
from hansa.server.leaving import tell
from hansa.server.measures import ROUNDS
from hansa.server.reading import BrokenUpdateError
from hansa.server.rounds_at_rest import round_name, round_prefix
from hansa.server.services import Services
from hansa.store.records import Report, Round

_LOG: Final = structlog.get_logger("hansa.coordinator")


@dataclass(frozen=True)
class RoundEnds:
    """Gives up attempts of rounds, and removes what rounds leave behind."""

    services: Services

    async def refuse(self, report: Report) -> None:
        """Take out of a buffer an update that cannot be counted, and its client.

        Raises StoreConflictError where it was decided about already: another replica has counted and removed it.
        """
        async with self.services.store.transaction() as rows:
            assigned = await rows.rounds.assignment(report.round, report.client, for_change=True)
            if assigned is None or assigned.fate != "reported":
                raise StoreConflictError("A report")
            await rows.rounds.set_fates(report.round, {report.client: "refused"})
            left = await round_changes.suspend(rows, report.round, report.client, self.services.clock.now())
        self.services.clients.drop(report.client)
        tell(self.services.board, report.client, left)

    async def sweep(self, round_: Round) -> None:
        """Remove what a round needs no more: the sealed updates, then the key. What is missed here, retention finds."""
        blobs = self.services.blobs
        self.services.sums.drop(round_.id)
        async with self.services.store.transaction() as rows:
            await rows.sums.remove(round_.id)
        for name in await blobs.names(round_prefix(round_.id)):
            await blobs.delete(name)
        reached("coordinator.round.swept")
        await asyncio.to_thread(self.services.keys.destroy, round_name(round_.id))

    async def abandon(self, round_: Round, why: str, *, suspended: Sequence[str] = ()) -> None:
        """Give up an attempt: the model stays as it is, and the round is opened again with a fresh cohort.

        ``suspended``: whose updates are the reason. Nothing is written where another replica has closed the round.
        """
        services, now = self.services, self.services.clock.now()
        async with services.store.transaction() as rows:
            await round_changes.abandon(rows, round_, why, now)
            left = {client: await round_changes.suspend(rows, round_.id, client, now) for client in suspended}
            await round_changes.tell(rows, round_, "round.abandoned", at=now, why=why)
        for client, rounds in left.items():
            services.clients.drop(client)
            tell(services.board, client, rounds)
        services.board.take_down(round_.id)
        _LOG.warning("round abandoned", run=round_.id.run, round=round_.id.round, attempt=round_.id.attempt, why=why)
        ROUNDS.labels(round_.id.kind, "abandoned").inc()
        reached("coordinator.round.abandoned")
        await self.sweep(round_)

    async def abandon_broken(self, round_: Round, error: BrokenUpdateError) -> None:
        """Give up an attempt for an update that cannot be counted, and take out its client."""
        why = f"an update was not what was acknowledged [{error.code}]"
        await self.abandon(round_, why, suspended=[error.report.client])
